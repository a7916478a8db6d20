"""Takes a picture of the top of a report, for the README; needs Chromium or Chrome on PATH.

python scripts/picture_report.py build/demo/blockwright-report.html docs/report.png
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
WIDTH, HEIGHT = 1080, 1310
LARGEST_BYTES = 300_000


def take_picture(report: Path, picture: Path) -> None:
    """Write the picture; leaves with one line when there is no browser, or it is too large."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser on PATH (looked for {', '.join(BROWSERS)})")
    with tempfile.TemporaryDirectory() as profile:
        command = [
            *(browser, "--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *(f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"),
            *(f"--screenshot={picture.resolve()}", report.resolve().as_uri()),
        ]
        if os.geteuid() == 0:
            command.insert(1, "--no-sandbox")
        subprocess.run(command, check=True, capture_output=True, timeout=120)
    size = picture.stat().st_size
    if size > LARGEST_BYTES:
        sys.exit(f"{picture} has {size} bytes, more than {LARGEST_BYTES}; take a smaller part")
    print(f"{picture}: {size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    take_picture(Path(sys.argv[1]), Path(sys.argv[2]))
