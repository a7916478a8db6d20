"""Calibration statistics, gathered one block at a time."""

from blockwright.capture.observe import BlockObserver, token_counts
from blockwright.capture.sweep import (
    CapturedBlock,
    capture_tables,
    forward_sweep,
    inputs_path,
    linear_sites,
)

__all__ = [
    "BlockObserver",
    "CapturedBlock",
    "capture_tables",
    "forward_sweep",
    "inputs_path",
    "linear_sites",
    "token_counts",
]
