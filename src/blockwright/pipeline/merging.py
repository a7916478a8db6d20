"""``blockwright merge``: an adapter that was trained elsewhere, merged into a model."""

from __future__ import annotations

from pathlib import Path

from blockwright.assemble import check_free, unfinished_folder
from blockwright.checkpoint import Checkpoint, resolve_model
from blockwright.errors import AdapterError
from blockwright.heal.peft_files import finite_adapter, load_adapter
from blockwright.pipeline.heal_model import OUT_OF_DATE
from blockwright.pipeline.heal_student import load_student
from blockwright.pipeline.proving import open_fitted
from blockwright.pipeline.whole_healing import changes_of, write_changes
from blockwright.progress import Progress, SilentProgress
from blockwright.types import MergeResult


def merge(
    model: str,
    adapter: Path,
    out: Path,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge an adapter of peft's files, and write the folder ``out``: dense hosts take it into
    their weight, packed ones as a path beside it.

    Raises ``AdapterError`` where it does not fit.
    """
    check_free(out)
    progress = progress or SilentProgress()
    folder = resolve_model(model, revision, trust_remote_code=trust_remote_code).path
    skeleton = open_fitted(folder, trust_remote_code).skeleton
    with progress.stage("load model and adapter", 2, "parts") as stage:
        student = load_student(folder, skeleton, trust_remote_code=trust_remote_code)
        stage.advance()
        student.attach(load_adapter(student.model, student.hosts, adapter))
        stage.advance()
    if not student.attachments:
        raise AdapterError(f"adapter {adapter} stands at no linear of {model}")
    if not finite_adapter(student.attachments):
        raise AdapterError(f"adapter {adapter} holds numbers that are not finite; train it again")
    checkpoint, changes = Checkpoint.open(folder), changes_of(student)
    with unfinished_folder(out) as partial:
        size = write_changes(checkpoint, changes, partial, OUT_OF_DATE)
    return MergeResult(
        out=out,
        hosts=len(student.attachments),
        beside=len(changes.specs),
        size_bytes_before=checkpoint.total_file_bytes,
        size_bytes=size,
    )
