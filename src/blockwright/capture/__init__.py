"""Calibration statistics, gathered one block at a time."""

from blockwright.capture.grouping import FoundGroup, find_groups
from blockwright.capture.observe import BlockObserver, token_counts
from blockwright.capture.paired import PairedObserver, original_inputs
from blockwright.capture.reverse import (
    gradients_path,
    hidden_mean_square,
    probe_loss,
    reverse_sweep,
    sampled_label_loss,
)
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
    "FoundGroup",
    "PairedObserver",
    "capture_tables",
    "find_groups",
    "forward_sweep",
    "gradients_path",
    "hidden_mean_square",
    "inputs_path",
    "linear_sites",
    "original_inputs",
    "probe_loss",
    "reverse_sweep",
    "sampled_label_loss",
    "token_counts",
]
