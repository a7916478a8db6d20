"""Writes that fail: one clear line, nothing half-written, and the same command goes on later."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blockwright import pipeline
from blockwright.errors import UserError
from blockwright.types import Budget
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer


class Disk:
    """Counts writes and refuses from the ``fails_at``-th on."""

    def __init__(self, patch: pytest.MonkeyPatch, code: int) -> None:
        self.writes, self.fails_at, self.code = 0, 10**9, code
        for place, name in (
            (os, "pwrite"),
            (os, "replace"),
            (Path, "replace"),
            (Path, "write_text"),
            (Path, "open"),
            (shutil, "copyfile"),
        ):
            patch.setattr(place, name, self.counted(getattr(place, name), name))

    def counted(self, write: Callable[..., Any], name: str) -> Callable[..., Any]:
        def checked(*args: Any, **options: Any) -> Any:
            reads = name == "open" and "w" not in str((*args[1:], *options.values()))
            if not reads:
                self.writes += 1
                if self.writes >= self.fails_at:
                    raise OSError(self.code, os.strerror(self.code))
            return write(*args, **options)

        return checked


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
    asked = request(
        model, tmp_path, budget=Budget(bits=5.5), candidates=("int4-g32:rtn", "int8:rtn")
    )
    disk = Disk(monkeypatch, code)
    pipeline.fit(asked)
    total, expected = disk.writes, (tmp_path / "out" / "model.safetensors").read_bytes()
    for share in shares:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.rmtree(tmp_path / "library", ignore_errors=True)
        disk.writes, disk.fails_at = 0, 1 + int(share * total)
        with pytest.raises(UserError) as caught:
            pipeline.fit(asked)
        assert "\n" not in str(caught.value)
        assert os.strerror(code).lower() in str(caught.value).lower() or "space" in str(
            caught.value
        )
        assert not (tmp_path / "out.partial").exists()
        finished = (tmp_path / "out").exists()
        disk.fails_at = 10**9
        if not finished:
            pipeline.fit(asked)
        assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected
