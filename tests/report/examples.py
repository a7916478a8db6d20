"""Reports of made-up fits: any depth, experts, encoders, plan files."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

from blockwright.plan import best_uniform, plan_of
from blockwright.report import group_reasons, map_plan, weigh_blocks
from blockwright.types import (
    Budget,
    Option,
    Plan,
    Problem,
    Quality,
    Site,
    SiteKind,
    Speed,
    TableRole,
)
from blockwright.types.report import (
    NATS_PER_TOKEN,
    AskedLimit,
    Machine,
    MeasuredPlan,
    PredictedPoint,
    Provenance,
    Report,
    TextUsed,
    Verdict,
)

LINEARS = {
    "self_attn.q_proj": (256, 256),
    "self_attn.k_proj": (128, 256),
    "self_attn.v_proj": (128, 256),
    "self_attn.o_proj": (256, 256),
    "mlp.gate_proj": (704, 256),
    "mlp.up_proj": (704, 256),
    "mlp.down_proj": (256, 704),
}
EXPERTS = {"mlp.experts.gate_up_proj": (256, 256), "mlp.experts.down_proj": (256, 128)}
GRIDS = tuple((bits, group) for bits in (2, 3, 4, 5, 6) for group in (32, 64, 128))
QUALITY = Quality(tokens=16_384, perplexity=7.531, kl_divergence=0.00212, top1_agreement=0.9812)
ORIGINAL = Quality(tokens=16_384, perplexity=7.5, kl_divergence=0.0, top1_agreement=1.0)
RIVAL = Quality(tokens=16_384, perplexity=7.548, kl_divergence=0.00343, top1_agreement=0.975)


def sites_of(blocks: int, experts: int = 0) -> list[Site]:
    """A decoder's sites: tables, then block by block."""
    shapes = dict(list(LINEARS.items())[:4]) if experts else LINEARS
    tied = Site(
        id="model.embed_tokens",
        kind=SiteKind.TABLE,
        shape=(4096, 256),
        role=TableRole.TIED,
        weights=4096 * 256,
    )
    found = [tied]
    for block in range(blocks):
        prefix = f"model.layers.{block}"
        found += [_linear(f"{prefix}.{name}", block, shape) for name, shape in shapes.items()]
        for name, shape in EXPERTS.items():
            for expert in range(experts):
                site = _linear(f"{prefix}.{name}[{expert}]", block, shape)
                found.append(replace(site, expert=expert, tie=f"{prefix}.{name}"))
        weights = sum(s.weights for s in found if s.block == block)
        found.append(Site(id=prefix, kind=SiteKind.BLOCK, block=block, weights=weights))
    return found


def _linear(name: str, block: int, shape: tuple[int, int]) -> Site:
    weights = shape[0] * shape[1]
    return Site(id=name, kind=SiteKind.LINEAR, block=block, shape=shape, weights=weights)


def problem_of(sites: list[Site], *, unit: str = NATS_PER_TOKEN, drops: bool = False) -> Problem:
    """Integer groups everywhere; outer blocks and down projections matter most."""
    draw = random.Random(3)
    blocks = sum(site.kind is SiteKind.BLOCK for site in sites)
    options: list[Option] = []
    for site in sites:
        if site.kind is SiteKind.BLOCK and drops:
            options += _drop(site, sites, blocks, draw)
        if site.kind is SiteKind.BLOCK:
            continue
        weights = site.weights if site.kind is SiteKind.LINEAR else 0
        keep = Option(
            site=site.id,
            candidate="keep",
            weights=weights,
            stored_bytes=2 * site.weights,
            loss=0.0,
            tie=site.tie,
        )
        options.append(keep)
        options += _grids(site, blocks, draw) if weights else []
    linear = sum(site.weights for site in sites if site.kind is SiteKind.LINEAR)
    tables = sum(site.weights for site in sites if site.kind is SiteKind.TABLE)
    return Problem(
        model="models/example",
        fingerprint="f" * 32,
        statistics="5" * 32,
        options=tuple(options),
        linear_weights=linear,
        fixed_bytes=20_000,
        original_bytes=2 * (linear + tables) + 20_000,
        loss_unit=unit,
    )


def _grids(site: Site, blocks: int, draw: random.Random) -> list[Option]:
    place = (site.block or 0) / max(blocks - 1, 1)
    important = (1 + 9 * place**3 + 4 * (1 - place) ** 8) * draw.lognormvariate(0, 0.5)
    important *= (3.0 if "down" in site.id else 1.0) * site.weights / 4e6 / blocks
    return [
        Option(
            site=site.id,
            candidate=f"int{bits}-g{group}:gptq",
            weights=site.weights,
            stored_bytes=round(site.weights * (bits / 8 + 2.5 / group)),
            loss=important * 4.0 ** (2 - bits) * (group / 32) ** 0.35 * draw.uniform(0.95, 1.05),
            key=f"{site.id}/int{bits}-g{group}",
            tie=site.tie,
        )
        for bits, group in GRIDS
    ]


def _drop(site: Site, sites: list[Site], blocks: int, draw: random.Random) -> list[Option]:
    inner = tuple(s.id for s in sites if s.block == site.block and s.kind is SiteKind.LINEAR)
    middle = abs((site.block or 0) / max(blocks - 1, 1) - 0.62)
    lost = 2.5 / blocks * (0.02 + 6 * middle**2) * draw.uniform(0.8, 1.2)
    shared: dict[str, Any] = {"site": site.id, "weights": 0, "stored_bytes": 0}
    dropped = Option(**shared, candidate="drop", loss=lost, contains=inner)
    return [Option(**shared, candidate="keep", loss=0.0), dropped]


def plan_at(problem: Problem, price: float) -> Plan:
    """The plan that is best when a byte costs ``price`` nats: each unit decides for itself."""
    units: dict[str, dict[str, list[Option]]] = {}
    holders = {option.site: option for option in problem.options if option.contains}
    for option in problem.options:
        if option.site not in holders:
            unit = units.setdefault(option.tie or option.site, {})
            unit.setdefault(option.candidate, []).append(option)

    def cost(options: list[Option]) -> float:
        return sum(option.loss + price * option.stored_bytes for option in options)

    chosen = {
        option.site: option
        for offered in units.values()
        for option in min(offered.values(), key=cost)
    }
    for site, holder in holders.items():
        inner = [chosen[name] for name in holder.contains]
        if cost([holder]) < cost(inner):
            chosen = {k: o for k, o in chosen.items() if k not in holder.contains} | {site: holder}
    return plan_of(problem, chosen.values(), budget="")


def plan_under(problem: Problem, bits: float) -> Plan:
    """The best of these plans with at most so many bits per weight."""
    low, high = -16.0, 0.0
    for _ in range(18):
        middle = (low + high) / 2
        over = plan_at(problem, 10**middle).bits_per_weight > bits
        low, high = (middle, high) if over else (low, middle)
    return plan_at(problem, 10**high)


def measured(plan: Plan, *, taken: bool = False, heldout: float | None = None) -> MeasuredPlan:
    """A plan measured at a tenth more than predicted."""
    return MeasuredPlan(
        name=plan.name,
        taken=taken,
        uniform=plan.name.startswith("uniform "),
        bits_per_weight=plan.bits_per_weight,
        size_bytes=plan.size_bytes,
        predicted_loss=plan.loss,
        selection_loss=1.11 * plan.loss,
        heldout_loss=heldout,
    )


def verdict_of(problem: Problem, plan: Plan, uniform: Plan, budget: Budget) -> Verdict:
    """A little worse than predicted, and faster."""
    return Verdict(
        budget=str(budget),
        limits=(AskedLimit(name="bits", asked=budget.bits or 0.0, got=plan.bits_per_weight),),
        plan=plan.name,
        bits_per_weight=plan.bits_per_weight,
        original_bits_per_weight=16.0,
        size_bytes=plan.size_bytes,
        original_size_bytes=problem.original_bytes,
        original=ORIGINAL,
        fitted=replace(QUALITY, kl_divergence=1.13 * plan.loss),
        uniform=replace(RIVAL, kl_divergence=1.15 * uniform.loss),
        uniform_plan=uniform.name,
        uniform_bits_per_weight=uniform.bits_per_weight,
        original_speed=speed(41.3, 903.2, 1_213_000_000),
        fitted_speed=speed(99.4, 741.0, 634_000_000),
    )


@cache
def make_report(
    *,
    blocks: int = 8,
    experts: int = 0,
    bits: float = 4.3,
    unit: str = NATS_PER_TOKEN,
    drops: bool = False,
    **changes: Any,
) -> Report:
    """A whole report; ``changes`` replace its fields."""
    sites = sites_of(blocks, experts)
    problem = problem_of(sites, unit=unit, drops=drops)
    budget = Budget(bits=bits)
    plan = plan_under(problem, bits)
    uniform = best_uniform(problem, budget)
    assert uniform is not None
    tried = [replace(plan_under(problem, bits - 0.1 * i), name=f"plan {i}") for i in (1, 2)]
    verdict = verdict_of(problem, plan, uniform, budget)
    losses = (verdict.fitted.kl_divergence, 1.15 * uniform.loss)
    report = Report(
        model="models/example",
        model_type="llama",
        blocks=blocks,
        linear_weights=problem.linear_weights,
        verdict=verdict,
        loss_unit=unit,
        frontier=points(problem),
        map=map_plan(sites, plan, problem),
        importance=weigh_blocks(sites, plan, uniform, problem),
        measured=(
            measured(plan, taken=True, heldout=losses[0]),
            *(measured(item) for item in tried),
            measured(uniform, heldout=losses[1]),
        ),
        unavailable=(),
        notes=("calibration text: sampled from the model",),
        machine=MACHINE,
        provenance=PROVENANCE,
        absent={} if drops else {"drop_loss": "not measured, dropping blocks was not on offer"},
    )
    return replace(report, **changes)


def speed(decode: float | None, prefill: float | None, resident_bytes: int) -> Speed:
    return Speed(
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        resident_bytes=resident_bytes,
        threads=2,
    )


def points(problem: Problem) -> tuple[PredictedPoint, ...]:
    """A frontier and three uniform plans."""
    mixed = [plan_at(problem, 10 ** (-4.5 - 0.4 * step)) for step in range(12)]
    same = []
    for bits in (2, 3, 4, 5, 6):
        chosen = [
            option
            for option in problem.options
            if option.candidate == f"int{bits}-g64:gptq"
            or (not option.weights and option.candidate == "keep")
        ]
        same.append(plan_of(problem, chosen, budget="", name=f"uniform int{bits}-g64:gptq"))
    return tuple(
        PredictedPoint(
            name=plan.name if plan.name != "plan" else f"best mix, {plan.bits_per_weight:.2f} bits",
            uniform=plan.name != "plan",
            bits_per_weight=plan.bits_per_weight,
            size_bytes=plan.size_bytes,
            predicted_loss=plan.loss,
        )
        for plan in (*mixed, *same)
    )


def encoder_report() -> Report:
    """No head: relative errors; nothing to decode."""
    report = make_report(blocks=12, unit="squared output error")
    figures = (
        Quality(tokens=4096, relative_error=0.0, cosine=1.0),
        Quality(tokens=4096, relative_error=0.0341, cosine=0.99941),
        Quality(tokens=4096, relative_error=0.0517, cosine=0.99866),
    )
    verdict = replace(
        report.verdict,
        original=figures[0],
        fitted=figures[1],
        uniform=figures[2],
        original_speed=speed(None, 5120.0, 913_000_000),
        fitted_speed=speed(None, 4380.5, 702_000_000),
    )
    losses = {True: figures[1].relative_error, False: figures[2].relative_error}
    plans = [p for p in report.measured if p.heldout_loss is not None]
    return replace(
        report,
        model="models/encoder",
        model_type="bert",
        verdict=verdict,
        measured=tuple(
            replace(p, selection_loss=0.97 * (losses[p.taken] or 0), heldout_loss=losses[p.taken])
            for p in plans
        ),
        absent={
            **report.absent,
            "decode": "the model has no language head, so nothing is generated",
        },
    )


def plan_file_report() -> Report:
    """``--plan``: nothing else was on offer, and nothing was timed."""
    report = make_report()
    verdict = replace(
        report.verdict,
        budget="the plan file plans/mine.json",
        limits=(),
        uniform=None,
        uniform_plan=None,
        uniform_bits_per_weight=None,
        original_speed=None,
        fitted_speed=None,
    )
    return replace(
        report,
        verdict=verdict,
        frontier=(),
        measured=report.measured[:1],
        importance=tuple(replace(b, uniform_share=None) for b in report.importance),
        absent={
            "frontier": "a plan file was built, so nothing else was on offer",
            "uniform": "a plan file was built, so no other was tried",
            "speed": "not measured, as asked (--no-speed)",
            "drop_loss": "not measured, dropping blocks was not on offer",
        },
    )


def experts_report() -> Report:
    """32 experts in each of 9 blocks; in one block some were never reached."""
    report = make_report(blocks=9, experts=32, bits=3.4)
    missing = {
        f"model.layers.7.mlp.experts.down_proj[{expert}] int{bits}-g64:gptq": (
            f"model.layers.7.mlp.experts.down_proj[{expert}]: no calibration token reached it"
        )
        for expert in range(30)
        for bits in (2, 3, 4)
    }
    return replace(report, model_type="qwen3_moe", unavailable=group_reasons(missing))


MACHINE = Machine(
    system="Linux 6.1, x86_64",
    processor="Example CPU at 2.50GHz",
    cores=2,
    threads=2,
    device="cpu",
    memory_bytes=16_000_000_000,
    versions={"blockwright": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
)
PROVENANCE = Provenance(
    command="blockwright fit models/example --out fitted --bits 4.3",
    recipe="",
    seed=0,
    texts=tuple(
        TextUsed(
            name=name,
            tokens=tokens,
            sequence_length=512,
            description=f"{tokens // 512} sequences of 512 tokens from {name} text",
            digest=digit * 64,
        )
        for name, tokens, digit in (
            ("calibration", 32_768, "a"),
            ("selection", 8_192, "b"),
            ("held-out", 16_384, "c"),
        )
    ),
    fingerprint="f" * 32,
    statistics="5" * 32,
    finished="2026-01-31 12:00 UTC",
    seconds=140.2,
    peak_rss_bytes=905_000_000,
    library_hits=0,
    library_misses=616,
)
