"""Trains a model folder under a recipe and writes an ordinary model folder that ``fit`` takes.

Killed at any moment, the same call resumes: the checkpoint stands in ``OUT.partial`` until the
folder is whole and gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.checkpoint import resolve_model
from blockwright.errors import ModelError, OutputError, TrainingError
from blockwright.progress import Progress
from blockwright.texts import bundled_documents, load_tokenizer, read_documents, split_documents
from blockwright.texts.tokens import opening_tokens
from blockwright.training.loop import PROBE_TOKENS, Entry, mean_loss, train
from blockwright.training.places import under_recipe
from blockwright.training.recipe import TrainingRecipe
from blockwright.training.settings import TrainingSettings
from blockwright.training.windows import TokenStream

HELDOUT_TOKENS = 16_384
"""Judged at every check, at most."""
SHARES = {"train": 0.9, "heldout": 0.1}
"""Of a text that the user gives."""
WIDTH = 1024
"""Any width: a recipe that changes widths changes it."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What came out."""

    out: Path
    log: Sequence[Entry]
    original_loss: float
    """Nats per held-out token of the model before, dense."""
    loss: float
    """Of the model as written."""


def train_folder(
    model: str | Path,
    out: str | Path,
    recipe: TrainingRecipe | None,
    settings: TrainingSettings,
    *,
    text: str | Path | None = None,
    only: str = "*",
    progress: Progress | None = None,
) -> Trained:
    """Train ``model``, a causal LM, and write it to ``out`` in its own dtype.

    ``text``: a file, folder or JSONL, a tenth of which judges; the shipped calibration and held-out
    texts without it.  Raises ``UserError``.
    """
    out = Path(out)
    _check_out(out)
    folder = resolve_model(str(model)).path
    skeleton = build_skeleton(folder)
    _check_model(skeleton, folder, recipe)
    tokenizer = load_tokenizer(folder)
    stream, heldout = _texts(text, tokenizer, settings)
    trained = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with under_recipe(trained, recipe, heldout[None, :PROBE_TOKENS], only):
        pass  # whatever the recipe cannot take is refused before anything is written
    work = out.with_name(out.name + ".partial")
    _make_folder(work)

    def judge(model: PreTrainedModel) -> Mapping[str, float]:
        length = settings.short_length
        return {"heldout_loss": mean_loss(model, heldout, length, settings.batch_tokens)}

    original_loss = judge(trained)["heldout_loss"]
    checkpoint = work / "checkpoint.pt"
    log = train(
        trained,
        stream,
        settings,
        recipe=recipe,
        only=only,
        checkpoint=checkpoint,
        judge=judge,
        progress=progress,
    )
    trained.to(skeleton.config.dtype)
    loss = judge(trained)["heldout_loss"]
    trained.save_pretrained(work)
    tokenizer.save_pretrained(work)
    checkpoint.unlink()
    if out.exists():
        out.rmdir()
    work.rename(out)
    return Trained(out=out, log=log, original_loss=original_loss, loss=loss)


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} exists and is not empty; give another folder")


def _make_folder(work: Path) -> None:
    """The unfinished folder, with nothing in it but a checkpoint."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        for path in work.iterdir():
            if not path.name.startswith("checkpoint.pt"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    except OSError as error:
        raise OutputError(f"cannot write {work}: {error.strerror or error}") from None


def _check_model(skeleton: Skeleton, folder: Path, recipe: TrainingRecipe | None) -> None:
    if skeleton.task != "causal-lm":
        raise ModelError(f"{folder} is a model for {skeleton.task}; training takes causal LMs")
    if getattr(skeleton.config, "quantization_config", None):
        raise ModelError(f"{folder} is a compressed folder; train the original it was fitted from")
    if recipe is not None and recipe.inner_width(WIDTH) != WIDTH:
        raise TrainingError(
            f"recipe {type(recipe).__module__.rpartition('.')[2]} makes new models with wider FFNs,"
            f" it cannot train {folder}; scripts/train_bundled_model.py --recipe trains one"
        )


def _texts(
    text: str | Path | None, tokenizer: Any, settings: TrainingSettings
) -> tuple[TokenStream, Tensor]:
    """Training tokens, and held-out tokens [T]."""
    if text is None:
        splits = {
            "train": bundled_documents("calibration"),
            "heldout": bundled_documents("heldout"),
        }
    else:
        splits = split_documents(read_documents(text), SHARES, settings.seed)
    opening = opening_tokens(tokenizer)
    documents = {
        name: [_encoded(tokenizer, opening, document) for document in found]
        for name, found in splits.items()
    }
    heldout = torch.cat(documents["heldout"])[:HELDOUT_TOKENS]
    if len(heldout) < settings.short_length:
        raise TrainingError(
            f"training: {len(heldout)} held-out tokens are less than one sequence of"
            f" {settings.short_length}; give a longer text or shorter sequences"
        )
    return TokenStream(documents["train"], settings.seed), heldout


def _encoded(tokenizer: Any, opening: list[int], document: str) -> Tensor:
    ids = tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor([*opening, *ids])
