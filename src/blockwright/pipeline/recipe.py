"""The recipe of a run: written into its folder, checked when it is run again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from blockwright.errors import RecipeError
from blockwright.pipeline.machine import versions
from blockwright.pipeline.opening import Opened, Run
from blockwright.pipeline.proving import PLAN_FILE
from blockwright.types import FitRequest, Recipe

RECIPE_FILE = "blockwright.toml"
PROFILE_FILE = "blockwright-profile.json"
HEAD = f"Run it again: blockwright fit --recipe {RECIPE_FILE} --out DIR"
DECIDES_MODEL = ("model", "revision")
DECIDES_TEXTS = (
    *DECIDES_MODEL,
    *("calibration", "eval_text", "preset", "seed"),
    *("calibration_tokens", "sequence_length", "eval_tokens"),
)
"""What was changed on the command line is not compared with the recipe's digest."""


def lossless_recipe_text(opened: Opened) -> str:
    """The recipe of a lossless fit as TOML."""
    request = replace(
        opened.request,
        revision=opened.original.source.revision,
        threads=torch.get_num_threads(),
    )
    return Recipe.of(request, model_digest(opened), versions()).to_toml(notes=(HEAD,))


def recipe_text(run: Run, *, profiled: bool) -> str:
    """The run's recipe as TOML; ``profiled``: the machine's profile is in the folder."""
    request = replace(resolved_request(run), profile=Path(PROFILE_FILE) if profiled else None)
    recipe = Recipe.of(request, digests_of(run), versions())
    return recipe.to_toml(notes=(HEAD, *run.texts.notes))


def resolved_request(run: Run) -> FitRequest:
    """The request with its defaults filled in as this machine and version did.

    A plan file is the one in the folder, found beside the recipe.
    """
    request, texts = run.request, run.texts
    return replace(
        request,
        plan=Path(PLAN_FILE) if request.plan else None,
        revision=run.original.source.revision,
        candidates=request.candidates if request.plan else tuple(map(str, run.candidates)),
        threads=torch.get_num_threads(),
        calibration_tokens=texts.calibration.tokens,
        sequence_length=texts.calibration.sequence_length,
        eval_tokens=texts.heldout.tokens,
    )


def digests_of(run: Run) -> dict[str, str]:
    """Digests of the model's tensors and config, and of the tokens of each text."""
    return model_digest(run) | {
        "calibration": run.texts.calibration.digest,
        "selection": run.texts.selection.digest,
        "heldout": run.texts.heldout.digest,
    }


def model_digest(opened: Opened) -> dict[str, str]:
    """Digest of the model's tensors and config."""
    return {"model": opened.original.fingerprint}


def check_recipe(run: Run) -> tuple[str, ...]:
    """Raise ``RecipeError`` if the model or a text is another than the recipe was made with.

    Returns notes on versions that differ.
    """
    return compare_with_recipe(run, digests_of(run))


def compare_with_recipe(run: Opened, found: Mapping[str, str]) -> tuple[str, ...]:
    """``check_recipe`` for the digests that a run has; a recipe's others are not asked for."""
    if run.request.recipe is None:
        return ()
    recipe = Recipe.read(run.request.recipe)
    asked = recipe.request(out=run.request.out)
    for name, digest in recipe.digests.items():
        deciding = DECIDES_MODEL if name == "model" else DECIDES_TEXTS
        changed = any(getattr(run.request, key) != getattr(asked, key) for key in deciding)
        if not changed and digest != found.get(name, digest):
            what = "model" if name == "model" else f"{name} text"
            raise RecipeError(
                f"recipe {run.request.recipe}: the {what} is not the one it was made with"
                f" (digest {found[name][:12]}, expected {digest[:12]}); bring that one back, name"
                " another on the command line, or take the line out of [digests]"
            )
    now, then = versions(), recipe.made_with
    both = {name: (then.get(name), now.get(name)) for name in (*then, *now)}
    differing = [
        f"{name} {was}, now {is_now}" for name, (was, is_now) in both.items() if was != is_now
    ]
    note = f"the recipe was made with {'; '.join(differing)}: bytes can differ"
    return (note,) if differing else ()
