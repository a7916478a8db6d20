"""Tiny models, built once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.models import tiny_model

ModelFolder = Callable[..., Path]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """``model_folder(kind, **options)``: the folder of a tiny model; shared, so read only."""
    built: dict[str, Path] = {}

    def build(kind: str, **options: Any) -> Path:
        key = f"{kind} {sorted(options.items())}"
        if key not in built:
            built[key] = tiny_model(kind, tmp_path_factory.mktemp(kind), **options)
        return built[key]

    return build
