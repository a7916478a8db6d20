"""The verdict: asked, got, lost; and speed and memory beside the original's."""

from __future__ import annotations

from dataclasses import dataclass

from blockwright.report.wording import (
    NOTHING,
    change,
    percent,
    quotient,
    ratio,
    small,
    tokens_per_second,
)
from blockwright.types.figures import format_bytes
from blockwright.types.report import AskedLimit, Report, Verdict

LIMIT_UNITS = {"bits": "bits per weight", "ratio": "of the original's size"}
GAINS = ("decode", "resident")


@dataclass(frozen=True)
class Figure:
    """A figure of the verdict: large value, what it is, and what it is made from."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class SpeedRow:
    """One measured property of the loaded model, the ratio first."""

    name: str
    ratio: str
    better: bool | None
    original: str
    fitted: str
    absent: str = ""


def limit_figure(limit: AskedLimit, value: float | None) -> str:
    """A limit's figure in its own unit."""
    if value is None:
        return NOTHING
    if limit.name.endswith("_bytes"):
        return format_bytes(value)
    return ratio(value) if limit.name in ("ratio", "speedup") else f"{value:.2f}"


def limit_label(limit: AskedLimit) -> str:
    """What a limit limits."""
    return LIMIT_UNITS.get(limit.name, limit.name.removesuffix("_bytes").replace("_", " "))


def asked(verdict: Verdict) -> list[Figure]:
    """The budget."""
    if verdict.verified_tensors is not None:
        return [Figure("every bit", "kept")]
    figures = [Figure(limit_figure(item, item.asked), limit_label(item)) for item in verdict.limits]
    return figures or [
        Figure("a plan", "given as a file", verdict.budget.removeprefix("the plan file "))
    ]


def got(verdict: Verdict) -> list[Figure]:
    """Size first, in the unit asked; then what it buys."""
    size = f"{format_bytes(verdict.size_bytes)} of {format_bytes(verdict.original_size_bytes)}"
    original = verdict.original_bits_per_weight
    bits = Figure(
        f"{verdict.bits_per_weight:.2f}",
        "bits per weight",
        f"original {original:.2f}" if original else "",
    )
    share_of_size = quotient(verdict.size_bytes, verdict.original_size_bytes)
    found = [bits, Figure(ratio(share_of_size), "the original's size", size)]
    if verdict.limits and verdict.limits[0].name != "bits":
        found.reverse()
    return found + [figure for figure in _gains(verdict) if figure.value != NOTHING]


def _gains(verdict: Verdict) -> list[Figure]:
    before, after = verdict.original_speed, verdict.fitted_speed
    if before is None or after is None:
        return []
    old, new = before.decode_tokens_per_second, after.decode_tokens_per_second
    decode = f"{tokens_per_second(old)} → {tokens_per_second(new)} tokens/s"
    memory = f"{format_bytes(before.resident_bytes)} → {format_bytes(after.resident_bytes)}"
    held = quotient(after.resident_bytes, before.resident_bytes)
    return [
        Figure(ratio(quotient(new, old)), "decode speed", decode),
        Figure(ratio(held), "resident memory", memory),
    ]


def lost(verdict: Verdict) -> list[Figure]:
    """Quality on the held-out text, against the original."""
    if verdict.verified_tensors is not None:
        hashed = f"{verdict.verified_tensors} tensors hashed, each the original's bit for bit"
        return [Figure("nothing", "no bit", hashed)]
    old, new = verdict.original, verdict.fitted
    moved = (
        f"{old.perplexity:,.3f} → {new.perplexity:,.3f}"
        if old.perplexity is not None and new.perplexity is not None
        else ""
    )
    cosine = NOTHING if new.cosine is None else f"{new.cosine:.5f}"
    found = [
        Figure(small(new.kl_divergence), "KL, nats per token"),
        Figure(change(old.perplexity, new.perplexity), "perplexity", moved),
        Figure(percent(new.top1_agreement), "same most likely token"),
        Figure(small(new.relative_error), "relative error of the hidden states"),
        Figure(cosine, "cosine with the original's"),
    ]
    return [figure for figure in found if figure.value != NOTHING]


def sentence(verdict: Verdict) -> str:
    """The verdict in a line: asked, got, lost, and what it buys."""
    limits = [
        f"{limit_figure(item, item.asked)}{' bits' if item.name == 'bits' else ''} asked,"
        f" {limit_figure(item, item.got)} got"
        for item in verdict.limits
        if item.got is not None
    ]
    if verdict.verified_tensors is not None:
        share = ratio(quotient(verdict.size_bytes, verdict.original_size_bytes))
        limits = [f"every bit kept in {share} the size"]
    first = ", ".join(limits) or f"plan file built, {verdict.bits_per_weight:.2f} bits per weight"
    new = verdict.fitted
    parts = [
        first,
        f"perplexity {change(verdict.original.perplexity, new.perplexity)}",
        f"KL {small(new.kl_divergence)} nats/token",
        f"relative error {small(new.relative_error)}",
        *(f"{name} {figure.value}" for name, figure in zip(GAINS, _gains(verdict), strict=False)),
    ]
    return "; ".join(
        part for part in parts if not part.endswith((NOTHING, f"{NOTHING} nats/token"))
    )


def comparison(report: Report) -> str:
    """This plan against the uniform one, on the held-out text."""
    verdict = report.verdict
    if verdict.uniform is None or verdict.uniform_plan is None:
        reason = report.absent.get("uniform", "there is none")
        return f"Not compared with a uniform plan: {reason}."
    name = "KL" if report.measures_kl else "relative error"
    theirs = verdict.uniform.kl_divergence if report.measures_kl else verdict.uniform.relative_error
    ours = verdict.fitted.kl_divergence if report.measures_kl else verdict.fitted.relative_error
    candidate = verdict.uniform_plan.removeprefix("uniform ")
    bits = f"{verdict.uniform_bits_per_weight:.2f}" if verdict.uniform_bits_per_weight else NOTHING
    if verdict.plan == verdict.uniform_plan:
        return (
            f"The uniform plan, {candidate} at every linear, measured best on the selection text"
            " and was taken: no mix of candidates beat it."
        )
    share_of_loss = ratio(quotient(ours, theirs))
    return (
        f"The best uniform plan, {candidate} at {bits} bits, has {name} {small(theirs)}:"
        f" this plan has {share_of_loss} as much."
    )


def speed_rows(report: Report) -> list[SpeedRow]:
    """Size, memory and tokens per second, original against fitted."""
    verdict, absent = report.verdict, report.absent
    before, after = verdict.original_speed, verdict.fitted_speed
    why = absent.get("speed", "") or absent.get("original_speed", "")
    sizes = (verdict.original_size_bytes, verdict.size_bytes)
    files = SpeedRow(
        "size of the files",
        ratio(quotient(sizes[1], sizes[0])),
        sizes[1] < sizes[0],
        format_bytes(sizes[0]),
        format_bytes(sizes[1]),
    )
    if before is None and after is None:
        return [files, SpeedRow("memory and speed", NOTHING, None, NOTHING, NOTHING, why)]
    held = (before.resident_bytes if before else None, after.resident_bytes if after else None)
    rows = [files, _speed_row("resident memory", *held, why, in_bytes=True)]
    for name in ("decode", "prefill"):
        field = f"{name}_tokens_per_second"
        old = getattr(before, field) if before else None
        new = getattr(after, field) if after else None
        reason = absent.get(name, "") or why
        rows.append(_speed_row(f"{name}, tokens/s", old, new, reason, in_bytes=False))
    return rows


def _speed_row(
    name: str, old: float | None, new: float | None, why: str, *, in_bytes: bool
) -> SpeedRow:
    moved = quotient(new, old)
    better = None if moved is None else (moved < 1) is in_bytes

    def shown(value: float | None) -> str:
        if value is None:
            return NOTHING
        return format_bytes(value) if in_bytes else tokens_per_second(value)

    missing = old is None or new is None
    return SpeedRow(name, ratio(moved), better, shown(old), shown(new), why if missing else "")
