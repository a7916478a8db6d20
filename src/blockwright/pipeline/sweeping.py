"""The original's hidden states, on disk."""

from __future__ import annotations

from blockwright.capture import forward_sweep
from blockwright.pipeline.opening import Run
from blockwright.stream import Stream


def sweep_original(run: Run) -> Stream:
    """See that the original's hidden states in front of and behind every block are on disk; the
    stream that left them.
    """
    stream = run.stream(dtype=run.capture_dtype)
    folder = run.library.work_folder(run.statistics_digest)
    for _ in forward_sweep(stream, run.calibration_inputs, folder, lambda _: None):
        pass
    return stream
