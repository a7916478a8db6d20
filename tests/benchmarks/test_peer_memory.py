"""Memory of a process with its children, from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.peers.memory_tree import PeakWatch, tree_bytes

MEGABYTE = 2**20
HOLD = "import sys; held = bytearray(b'x' * {0} * 2**20); print('ready', flush=True); {1}"
CHILD = HOLD.format(60, "sys.stdin.read()")
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_children_count() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with PeakWatch(process.pid) as watch:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        now = tree_bytes(process.pid)
        time.sleep(0.3)
        process.communicate()
    assert now > 60 * MEGABYTE
    assert watch.peak_bytes() > 60 * MEGABYTE
    assert tree_bytes(process.pid) == 0


def test_what_comes_behind_the_marker_does_not_count(tmp_path: Path) -> None:
    marker = tmp_path / "saved"
    marker.touch()
    watch = PeakWatch(os.getpid())
    at = marker.stat().st_mtime
    watch.seen = [(at - 2, 10), (at - 1, 20), (at + 1, 90)]
    assert watch.peak_bytes(marker) == 20
    assert watch.peak_bytes() == 90
    assert watch.peak_bytes(tmp_path / "never written") == 90
