"""The model card of a fitted folder: README.md with the front matter that the hub reads."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCardData, metadata_load

from blockwright import __version__
from blockwright.pipeline.machine import machine_line
from blockwright.pipeline.opening import Opened, Run
from blockwright.pipeline.placing import Placement
from blockwright.pipeline.proving import PLAN_FILE
from blockwright.pipeline.recipe import RECIPE_FILE
from blockwright.types import Candidate, FitResult, Group, Plan, Quality, Speed
from blockwright.types.recipe import BUNDLED, portable

CARD_FILE = "README.md"
INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag")
"""What a fitted model has from its original's card."""
PIPELINE_TAGS = {"causal-lm": "text-generation", "encoder": "feature-extraction"}
BUILDERS = {"causal-lm": "AutoModelForCausalLM", "encoder": "AutoModel"}
REPEATED = (
    f"`{PLAN_FILE}` says what stands at every site.  `{RECIPE_FILE}` is the run:"
    f" `blockwright fit --recipe {RECIPE_FILE} --out DIR` repeats it."
)
SETTLED = "keep"
"""Candidate of a site that has no entry in the plan."""

Column = Callable[[Quality], float | None]


def card_text(run: Run, plan: Plan, result: FitResult) -> str:
    """The card: what it is, its figures, how to load it, what was chosen, its licence."""
    metadata, reason = original_metadata(run.original.source.path)
    sections = [
        f"---\n{front_matter(run, metadata)}\n---",
        f"# {model_name(run)}, fitted to {result.bits_per_weight:.3g} bits per weight",
        origin_line(run, plan),
        "## Figures",
        figures_table(result),
        _measured_on(run, result),
        "## Load it",
        loading_note(run),
        "## What was chosen",
        chosen_table(run, plan, Placement(run, plan).grouped),
        REPEATED,
        "## Licence",
        licence_note(run, metadata, reason),
    ]
    return "\n\n".join(sections) + "\n"


def original_metadata(folder: Path) -> tuple[Mapping[str, Any], str]:
    """Front matter of the original's card, and why there is none (empty when it was read)."""
    card = folder / CARD_FILE
    if not card.is_file():
        return {}, "the original's folder has no README.md"
    try:
        metadata: Mapping[str, Any] | None = metadata_load(card)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        return {}, f"the front matter of the original's README.md cannot be read: {reason}"
    return (metadata, "") if metadata else ({}, "the original's README.md has no front matter")


def front_matter(run: Opened, metadata: Mapping[str, Any]) -> str:
    """YAML that the hub reads; ``base_model`` only where the original has a name on the hub."""
    source = run.original.source
    named = {"base_model": source.name, "base_model_relation": "quantized"}
    inherited = {key: metadata[key] for key in INHERITED if metadata.get(key)}
    data = ModelCardData(
        library_name="transformers",
        tags=["blockwright", "quantized"],
        **{
            "pipeline_tag": PIPELINE_TAGS[run.skeleton.task],
            **inherited,
            **(named if source.revision else {}),
        },
    )
    return str(data.to_yaml())


def model_name(run: Opened) -> str:
    """The hub's id, or the name of the folder."""
    source = run.original.source
    if portable(source.path).startswith(BUNDLED):
        return "Blockwright's bundled model"
    return source.name if source.revision else source.path.resolve().name


def origin_line(run: Opened, plan: Plan) -> str:
    source = run.original.source
    where = f" (revision `{source.revision}`)" if source.revision else ""
    return f"Made by Blockwright {__version__} from {model_name(run)}{where}: {plan.budget} asked."


def figures_table(result: FitResult) -> str:
    """Original, fitted and uniform model side by side; what nothing was measured of is left out."""
    uniform = (f"uniform {result.uniform_candidate}",) if result.uniform else ()
    share = result.size_bytes / result.original_size_bytes
    rows = [
        ("size, bytes", f"{result.original_size_bytes:,}", f"{result.size_bytes:,} ({share:.1%})"),
        (
            *("bits per weight", "", f"{result.bits_per_weight:.3f}"),
            _cell(result.bits_per_weight_uniform, ".3f"),
        ),
        _quality_row(result, "perplexity", lambda q: q.perplexity, ".3f"),
        _quality_row(result, "KL from the original, nats/token", lambda q: q.kl_divergence, ".5f"),
        _quality_row(result, "top-1 agreement", lambda q: q.top1_agreement, ".2%"),
        _quality_row(result, "relative error", lambda q: q.relative_error, ".5f"),
        _quality_row(result, "cosine", lambda q: q.cosine, ".5f"),
        _speed_row(result, "prefill, tokens/s", lambda s: s.prefill_tokens_per_second),
        _speed_row(result, "decode, tokens/s", lambda s: s.decode_tokens_per_second),
        _speed_row(result, "resident memory, bytes", lambda s: s.resident_bytes),
    ]
    return _table(("", "original", "fitted", *uniform), [row for row in rows if any(row[1:])])


def _quality_row(result: FitResult, name: str, pick: Column, spec: str) -> tuple[str, ...]:
    models = (result.original, result.fitted, result.uniform)
    return (name, *(_cell(pick(model), spec) if model else "" for model in models))


def _speed_row(
    result: FitResult, name: str, pick: Callable[[Speed], float | None]
) -> tuple[str, ...]:
    models = (result.original_speed, result.fitted_speed)
    return (name, *(_cell(pick(model), ",.0f") if model else "" for model in models))


def _cell(value: float | None, spec: str) -> str:
    return "" if value is None else format(value, spec)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    width = len(head)
    lines = [head, ["---", *[align] * (width - 1)], *rows]
    filled = [[*line, *[""] * width][:width] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def _measured_on(run: Run, result: FitResult) -> str:
    notes = "".join(f"\n- {note}" for note in result.notes)
    texts, request = run.texts, run.request
    named = f" (`{request.eval_text.name}`)" if request.eval_text else ""
    return (
        f"- figures: {texts.heldout.description}{named}, {result.fitted.tokens} predictions, fp32\n"
        f"- statistics: {texts.calibration.description}, seed {request.seed}\n"
        f"- machine: {machine_line()}{notes}"
    )


def loading_note(run: Opened) -> str:
    builder = BUILDERS[run.skeleton.task]
    return (
        "```python\n"
        "import blockwright  # lets transformers read the packed weights\n"
        f"from transformers import {builder}\n\n"
        f'model = {builder}.from_pretrained("path/to/this/folder")\n'
        "```\n\n"
        "Without `import blockwright` loading stops with an error."
    )


def chosen_table(run: Opened, plan: Plan, grouped: Mapping[str, Group]) -> str:
    """What stands how often at each kind of place, e.g. ``mlp.down_proj``.

    ``grouped``: the chosen group of every member of one.
    """
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    decided = {member: group.site.id for member, group in grouped.items()}
    for site in run.skeleton.sites:
        choice = plan.choices.get(decided.get(site.id, site.id))
        if choice is None and not site.parameter:
            continue
        inside = site.module.removeprefix(f"{run.skeleton.block_path}.{site.block}").lstrip(".")
        counts[inside or "block"][choice.candidate if choice else SETTLED] += 1
    rows = [(kind, _counted(chosen)) for kind, chosen in counts.items()]
    return _table(("place", "candidates, and how many sites have them"), rows, "---")


def _counted(chosen: Counter[str]) -> str:
    ordered = sorted(chosen.items(), key=lambda item: (-item[1], Candidate.parse(item[0])))
    return ", ".join(f"{count} x `{name}`" for name, count in ordered)


def licence_note(run: Opened, metadata: Mapping[str, Any], reason: str) -> str:
    """Whose licence it is under, and which of its files came along."""
    files = sorted(
        path.name
        for path in run.original.source.path.iterdir()
        if path.is_file() and path.stem.upper() in ("LICENSE", "LICENCE", "NOTICE", "COPYING")
    )
    copied = f"  Copied from it: {', '.join(f'`{name}`' for name in files)}." if files else ""
    name = metadata.get("license_name") or metadata.get("license")
    if name:
        return f"The original's licence holds for this model too: {name}.{copied}"
    why = reason or "the original's README.md names none"
    return f"The original's licence holds for this model too; {why}, so look it up there.{copied}"
