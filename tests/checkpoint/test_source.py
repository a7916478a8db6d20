"""A model is found locally or on the hub, else one line says why not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from blockwright.checkpoint import ModelSource, resolve_model
from blockwright.errors import ModelError
from tests.conftest import ModelFolder

DOWNLOAD = "blockwright.checkpoint.source.snapshot_download"


def test_a_local_folder_is_itself(model_folder: ModelFolder) -> None:
    folder = model_folder("llama")
    assert resolve_model(str(folder)) == ModelSource(folder, str(folder), None)


def test_hub_download_takes_no_pickles_and_records_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "0123abc"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")
    asked: dict[str, Any] = {}

    def download(model: str, **options: Any) -> str:
        asked.update(options, model=model)
        return str(snapshot)

    monkeypatch.setattr(DOWNLOAD, download)
    found = resolve_model("someone/some-model", "v1")
    assert found == ModelSource(snapshot, "someone/some-model", "0123abc")
    assert (asked["model"], asked["revision"]) == ("someone/some-model", "v1")
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])


RESPONSE: Any = SimpleNamespace(headers={}, request=None)
FAILURES: list[tuple[Exception, str]] = [
    (GatedRepoError("gated\nlong", response=RESPONSE), "licence must be accepted"),
    (RepositoryNotFoundError("none\nlong", response=RESPONSE), "no such repository"),
    (RevisionNotFoundError("none\nlong", response=RESPONSE), "no such revision"),
    (LocalEntryNotFoundError("offline\nlong"), "hub cannot be reached"),
    (ConnectionError("no route\nlong"), "no route"),
    (RuntimeError("odd\nlong"), "odd"),
]


@pytest.mark.parametrize(("failure", "message"), FAILURES, ids=lambda v: type(v).__name__)
def test_every_failure_of_the_hub_is_one_line(
    failure: Exception, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr(DOWNLOAD, download)
    with pytest.raises(ModelError, match=message) as caught:
        resolve_model("someone/some-model")
    assert "\n" not in str(caught.value)
    assert "someone/some-model" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "~/nowhere/x"])
def test_a_missing_path_is_never_looked_for_on_the_hub(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(DOWNLOAD)
    with pytest.raises(ModelError, match="no such folder"):
        resolve_model(name)


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
