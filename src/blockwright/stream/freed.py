"""Memory that is freed goes back to the system at once."""

from __future__ import annotations

import ctypes
import sys

M_MMAP_THRESHOLD = -3
"""Of glibc's malloc.h."""
THRESHOLD_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Let tensors of a megabyte and more have mappings of their own, where the C library is glibc.

    By itself it raises that size up to 32 MB as they are freed; weights of one block after another
    then leave holes in the heap, which grows with the depth of the model.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
