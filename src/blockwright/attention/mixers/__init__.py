"""Sequence mixers, one paper per file; ``attention.mixer`` is their interface."""
