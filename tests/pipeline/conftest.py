"""Fits of a few seconds: what a fresh process would do is done in this one.

Importing torch and transformers takes longer than a tiny fit.  Tests marked ``fresh`` start real
processes, as do those that run commands.
"""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from blockwright import pipeline
from blockwright.errors import ModelError
from blockwright.evaluate import fresh, sampled, timing
from blockwright.types import FitRequest, FitResult


def answers_of(child: str, asked: dict[str, Any], failed: str) -> Iterator[dict[str, Any]]:
    """What ``fresh.answers_of`` gives, by the same module."""
    asked["threads"] = torch.get_num_threads()
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.StringIO(json.dumps(asked)))
        patch.setattr(sys, "stdout", said)
        try:
            importlib.import_module(child).main()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(f"{failed}: {type(error).__name__}: {error}") from None
    yield from map(json.loads, said.getvalue().splitlines())


def load_here(patch: pytest.MonkeyPatch) -> None:
    """Load folders in this process instead of fresh ones."""
    for module in (fresh, sampled, timing):
        patch.setattr(module, "answers_of", answers_of)


@pytest.fixture(autouse=True)
def load_in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("fresh") is None:
        load_here(monkeypatch)


def fit_here(asked: FitRequest) -> FitResult:
    """A fit for fixtures of modules, which begin before the patch of every test."""
    with pytest.MonkeyPatch.context() as patch:
        load_here(patch)
        return pipeline.fit(asked)
