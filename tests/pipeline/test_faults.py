"""Writes that fail: one clear line, nothing half-written, and the same command goes on later."""

from __future__ import annotations

import errno
import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.errors import UserError
from blockwright.types import Budget, FitRequest
from tests.conftest import ModelFolder
from tests.fits import all_files, request, with_tokenizer
from tests.pipeline.writes import Writes

CANDIDATES = ("int4-g32:rtn", "int8:rtn")


def refuse(code: int) -> None:
    """What a full or forbidden disk does."""
    raise OSError(code, os.strerror(code))


def check_fault(disk: Writes, write: int, code: int, asked: FitRequest, expected: bytes) -> None:
    """Fail from a write on: one line, nothing half-written; then the same command ends well."""
    out = asked.out
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(str(asked.library), ignore_errors=True)
    disk.count, disk.stops_at = 0, write
    with pytest.raises(UserError) as caught:
        pipeline.fit(asked)
    assert "\n" not in str(caught.value)
    said = str(caught.value).lower()
    assert os.strerror(code).lower() in said or "space" in said
    assert not out.with_name("out.partial").exists()
    disk.stops_at = 10**9
    if not out.exists():
        pipeline.fit(asked)
    assert (out / "model.safetensors").read_bytes() == expected


@pytest.mark.parametrize(
    ("code", "shares"), [(errno.ENOSPC, (0, 1 / 7, 1 / 2, 0.97, 0.99)), (errno.EACCES, (1 / 3,))]
)
def test_a_failing_write_is_one_line_and_loses_nothing(
    code: int,
    shares: tuple[float, ...],
    model_folder: ModelFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    asked = request(model, tmp_path, budget=Budget(bits=5.5), candidates=CANDIDATES)
    disk = Writes(monkeypatch, partial(refuse, code))
    pipeline.fit(asked)
    total, expected = disk.count, (tmp_path / "out" / "model.safetensors").read_bytes()
    for share in shares:
        check_fault(disk, 1 + int(share * total), code, asked, expected)


@pytest.mark.slow
def test_a_fault_at_every_write_loses_nothing_and_leaves_nothing(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_tokenizer(model_folder("llama", num_hidden_layers=1), tmp_path)
    asked = request(model, tmp_path, budget=Budget(bits=5.5), candidates=CANDIDATES)
    disk = Writes(monkeypatch, partial(refuse, errno.ENOSPC))
    pipeline.fit(asked)
    total, expected = disk.count, (tmp_path / "out" / "model.safetensors").read_bytes()
    whole = all_files(tmp_path)
    for write in range(1, total + 1):
        check_fault(disk, write, errno.ENOSPC, asked, expected)
        assert all_files(tmp_path) == whole, f"after a fault at write {write} of {total}"
