"""One script per peer; each runs in that peer's environment: ``python -m ... JOB.json``."""
