"""``fit``, ``price``, ``heal_model`` and what merges, with plain arguments, as the command line has
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from blockwright.progress import Progress, SilentProgress
from blockwright.types import (
    AverageResult,
    Budget,
    FitRequest,
    FitResult,
    HealRequest,
    HealResult,
    MergeResult,
    Preset,
    Price,
    Recipe,
    parse_size,
)


def fit(
    model: str | Path,
    *,
    out: str | Path,
    budget: Budget | float | str | None = None,
    lossless: bool = False,
    plan: str | Path | None = None,
    kv: Sequence[str] = (),
    attention: Sequence[str] = (),
    profile: str | Path | None = None,
    preset: Preset | str = Preset.BALANCED,
    candidates: Sequence[str] = (),
    calibration: str | Path | None = None,
    eval_text: str | Path | None = None,
    library: str | Path | None = None,
    heal: float | None = None,
    heal_steps: int | None = None,
    revision: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    calibration_tokens: int | None = None,
    sampled_share: float | None = None,
    sequence_length: int | None = None,
    eval_tokens: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    speed: bool = True,
    progress: Progress | None = None,
) -> FitResult:
    """Fit a model to a budget, or build an edited plan, and write the folder ``out``.

    ``model`` is a folder or a hub id.  ``budget`` is a number of bits per weight, a size such as
    ``"4GB"``, or a ``Budget`` of several limits; leave it out when ``plan`` names a plan file, or
    with ``lossless``, which keeps every bit.  The rest is as in ``blockwright fit --help``.  Raises
    a ``UserError`` of one clear line for bad input; killed at any moment, the same call resumes.
    """
    from blockwright import pipeline

    request = FitRequest(
        model=str(model),
        out=Path(out),
        budget=read_budget(budget),
        lossless=lossless,
        preset=Preset(preset),
        candidates=tuple(candidates),
        calibration=_path(calibration),
        eval_text=_path(eval_text),
        library=_path(library),
        plan=_path(plan),
        kv=tuple(kv),
        attention=tuple(attention),
        profile=_path(profile),
        heal=heal,
        heal_steps=heal_steps,
        revision=revision,
        seed=seed,
        threads=threads,
        calibration_tokens=calibration_tokens,
        sampled_share=sampled_share,
        sequence_length=sequence_length,
        eval_tokens=eval_tokens,
        device=device,
        trust_remote_code=trust_remote_code,
        speed=speed,
    )
    return pipeline.fit(request, progress or SilentProgress())


def fit_recipe(
    recipe: str | Path,
    *,
    out: str | Path,
    library: str | Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Run a recipe (the ``blockwright.toml`` of a fitted folder) again, and write ``out``.

    Raises ``RecipeError`` when the model or a text is not what the recipe was made with.
    """
    from blockwright import pipeline

    path = Path(recipe)
    request = Recipe.read(path).request(
        out=Path(out), library=_path(library), recipe=path, trust_remote_code=trust_remote_code
    )
    return pipeline.fit(request, progress or SilentProgress())


def price(request: FitRequest, *, progress: Progress | None = None) -> Price:
    """Memory, disk and time that this fit would take, from one probed block."""
    from blockwright import pipeline

    return pipeline.price(request, progress or SilentProgress())


def heal_model(
    model: str | Path,
    *,
    against: str | Path,
    out: str | Path,
    data: str | Path | None = None,
    eval_text: str | Path | None = None,
    adapter: str = "auto",
    optimizer: str = "adam",
    minutes: float | None = None,
    steps: int | None = None,
    blockwise: bool = False,
    rate: float | None = None,
    tables: bool = True,
    save_adapter: str | Path | None = None,
    batch_tokens: int | None = None,
    sequence_length: int | None = None,
    eval_tokens: int | None = None,
    revision: str | None = None,
    seed: int = 0,
    threads: int | None = None,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> HealResult:
    """Train a fitted model towards its original, and write the folder ``out``.

    The arguments are as in ``blockwright heal --help``.  Raises a ``UserError`` of one clear line
    for bad input; killed at any moment, the same call resumes.
    """
    from blockwright import pipeline

    request = HealRequest(
        model=str(model),
        against=str(against),
        out=Path(out),
        data=_path(data),
        eval_text=_path(eval_text),
        adapter=adapter,
        optimizer=optimizer,
        minutes=minutes,
        steps=steps,
        blockwise=blockwise,
        rate=rate,
        tables=tables,
        save_adapter=_path(save_adapter),
        batch_tokens=batch_tokens,
        sequence_length=sequence_length,
        eval_tokens=eval_tokens,
        revision=revision,
        seed=seed,
        threads=threads,
        device=device,
        trust_remote_code=trust_remote_code,
    )
    return pipeline.heal(request, progress or SilentProgress())


def merge_adapter(
    model: str | Path,
    *,
    adapter: str | Path,
    out: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> MergeResult:
    """Merge an adapter of peft's files into a model that Blockwright wrote, or a dense one.

    The arguments are as in ``blockwright merge --help``.  Raises a ``UserError`` for bad input.
    """
    from blockwright import pipeline

    return pipeline.merge(
        str(model),
        Path(adapter),
        Path(out),
        revision=revision,
        trust_remote_code=trust_remote_code,
        progress=progress or SilentProgress(),
    )


def average_models(
    models: Sequence[str | Path],
    *,
    out: str | Path,
    data: str | Path | None = None,
    align: bool = True,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> AverageResult:
    """The mean of models of one shape, their units in the order of the first one's.

    The arguments are as in ``blockwright merge --help``.  Raises a ``UserError`` for bad input.
    """
    from blockwright import pipeline

    return pipeline.average(
        [str(model) for model in models],
        Path(out),
        data=_path(data),
        align=align,
        trust_remote_code=trust_remote_code,
        progress=progress or SilentProgress(),
    )


def read_budget(budget: Budget | float | str | None) -> Budget | None:
    """A number is bits per weight, a text is a size."""
    if budget is None or isinstance(budget, Budget):
        return budget
    if isinstance(budget, str):
        return Budget(size_bytes=parse_size(budget))
    return Budget(bits=float(budget))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given)
