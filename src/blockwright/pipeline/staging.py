"""A folder appears under its name when everything in it is there: weights, proof and report.

Until then it has another name.  A run that was killed before finds that one, and starts over from
the library, which has every part of it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from blockwright.assemble import check_free
from blockwright.checkpoint.atomic import output_error, sync_folder
from blockwright.pipeline.proving import PLAN_FILE

SUFFIX = ".unproven"


def staged_folder(out: Path) -> Path:
    """The name that a folder is written and measured under; what a killed run left there is gone.

    Raises ``OutputError`` when something else has this name.
    """
    staged = out.with_name(out.name + SUFFIX)
    if (staged / PLAN_FILE).is_file():
        try:
            shutil.rmtree(staged)
        except OSError as error:
            raise output_error(staged, error, 0) from None
    check_free(staged)
    return staged


def publish(staged: Path, out: Path) -> None:
    """Give the folder its name, in one step (``OutputError`` when it was taken meanwhile)."""
    check_free(out)
    try:
        if out.exists():
            out.rmdir()
        os.replace(staged, out)
        sync_folder(out.parent)
    except OSError as error:
        raise output_error(out, error, 0) from None
