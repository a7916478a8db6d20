"""Other tools at their own measured bytes.  ``python -m benchmarks.peers --help``.

``runners`` run inside a peer's environment, where there is no blockwright: they and ``job`` import
nothing of it.
"""
