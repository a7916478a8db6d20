"""Where a model comes from: a local folder or a repository of the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from blockwright.errors import ModelError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?")
WANTED_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")
CARD_FILES = ("README.md", "LICENSE*", "LICENCE*", "NOTICE*")
"""What says under which licence a model is."""
REMOTE_CODE_FILES = ("*.py",)


@dataclass(frozen=True)
class ModelSource:
    """A model folder on this machine."""

    path: Path
    name: str
    """As the user gave it."""
    revision: str | None
    """Commit of the hub repository; None for a local folder."""


def resolve_model(
    model: str, revision: str | None = None, *, trust_remote_code: bool = False
) -> ModelSource:
    """Find or download a model; raises ``ModelError``."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} has no config.json: it is no model folder of transformers")
        return ModelSource(folder, model, None)
    if folder.exists() or not HUB_ID.fullmatch(model):
        raise ModelError(
            f"model {model!r}: no such folder, and no Hugging Face id of the form OWNER/NAME"
        )
    snapshot = Path(_download(model, revision, trust_remote_code))
    if not (snapshot / "config.json").is_file():
        raise ModelError(f"model {model!r}: its repository has no config.json")
    return ModelSource(snapshot, model, snapshot.name)


def _download(model: str, revision: str | None, trust_remote_code: bool) -> str:
    files = [*WANTED_FILES, *CARD_FILES, *(REMOTE_CODE_FILES if trust_remote_code else ())]
    at = f" at revision {revision}" if revision else ""
    try:
        return str(snapshot_download(model, revision=revision, allow_patterns=files))
    except GatedRepoError:
        reason = "its licence must be accepted on its page first; then log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "no such folder and no such repository on the Hugging Face hub (or it is private)"
    except RevisionNotFoundError:
        reason = "the repository has no such revision"
    except LocalEntryNotFoundError:
        reason = "no such folder, the hub cannot be reached, and it was not downloaded before"
    except Exception as error:  # the hub's client passes on whatever its transport raises
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(f"model {model!r}{at}: {reason}") from error
    raise ModelError(f"model {model!r}{at}: {reason}")
