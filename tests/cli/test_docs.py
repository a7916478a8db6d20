"""``docs/cli.md`` is what ``make docs`` writes now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_of_commands_is_current(tmp_path: Path) -> None:
    written = tmp_path / "cli.md"
    command = [sys.executable, "-m", "typer", "blockwright.cli.app", "utils", "docs"]
    command += ["--name", "blockwright", "--output", str(written)]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert page == written.read_text(encoding="utf-8"), "run `make docs`"
