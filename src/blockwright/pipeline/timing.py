"""A plan under a limit on speed: solved by the machine profile, assembled, timed, and solved again
under a tighter limit where it is too slow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from blockwright.errors import BudgetError
from blockwright.evaluate import TimedFolder, time_folder, time_in_turn
from blockwright.machine import describe_machine
from blockwright.pipeline.choosing import Chosen, choose_plan
from blockwright.pipeline.measuring import kept_blocks
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.proving import (
    available_bytes,
    loading_of,
    original_fits,
    write_folder,
)
from blockwright.plan import limits_of, most_speedup, workload_of
from blockwright.types import Budget, LimitFigures, Phase, Plan, Problem, Workload

RESOLVES = 3
"""Times that the limit is tightened."""
TOLERANCE = 0.02
"""A measured speedup may fall short by this: timings of one folder differ as much."""


@dataclass(frozen=True)
class PlanTiming:
    """Original and plan, timed in turn."""

    original: TimedFolder
    fitted: TimedFolder

    @property
    def speedup(self) -> float:
        return self.original.least_ns / max(self.fitted.least_ns, 1)


Timer = Callable[[Run, Plan], PlanTiming | None]
"""Times a plan against the original; None where memory does not allow it."""


@dataclass(frozen=True)
class ChosenInTime:
    """What was chosen, and what timing found."""

    chosen: Chosen
    timing: PlanTiming | None = None
    notes: tuple[str, ...] = ()


def time_plan(run: Run, plan: Plan) -> PlanTiming | None:
    """Assemble a plan in the library's working folder and time it; a timing is taken once."""
    workload = workload_of(plan)
    key = timing_key(run, plan, workload)
    known = run.library.result(key)
    if known is not None:
        return PlanTiming(TimedFolder(**known["original"]), TimedFolder(**known["fitted"]))
    if not original_fits(run):
        return None
    scratch = run.library.work_folder(key)
    folder = scratch / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with run.progress.stage("time the plan"):
        try:
            write_folder(run, plan, folder)
            loadings = [loading_of(run, path) for path in (run.original.source.path, folder)]
            timing = PlanTiming(*time_in_turn(loadings[0], loadings[1], workload))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    run.library.store_result(key, asdict(timing))
    return timing


def choose_in_time(
    run: Run,
    problem: Problem,
    timer: Timer = time_plan,
    choose: Callable[[Run, Problem], Chosen] = choose_plan,
) -> ChosenInTime:
    """``choose_plan``; under a limit on speed its plan is timed, and the limit tightened by what
    was measured until it is kept, at most ``RESOLVES`` times.

    Raises ``BudgetError`` naming the largest speedup that was measured.
    """
    budget = run.request.budget
    if budget is None or budget.speedup is None:
        return ChosenInTime(choose(run, problem))
    asked, aim, fastest = budget.speedup, budget.speedup, 0.0
    most = most_speedup(problem, budget) or aim
    for _ in range(1 + RESOLVES):
        chosen = as_asked(choose(with_speedup(run, budget, aim), problem), budget)
        timing = timer(run, chosen.plan)
        if timing is None:
            return ChosenInTime(chosen, notes=(not_timed(run),))
        if timing.speedup >= asked * (1 - TOLERANCE):
            return ChosenInTime(chosen, timing)
        fastest = max(fastest, timing.speedup)
        reached = chosen.plan.speedup or aim
        if reached >= most * (1 - 1e-6):
            break
        aim = min(reached * asked / timing.speedup, most)
    raise BudgetError(
        f"budget {budget}: the fastest plan that was timed here is {fastest:.3f} times as fast;"
        " ask for that or less, or offer faster --candidates"
    )


def time_edited(run: Run, chosen: Chosen, timer: Timer = time_plan) -> ChosenInTime:
    """A plan that came from a file: timed where it carries a limit on speed, not solved again."""
    if "speedup" not in chosen.plan.limits:
        return ChosenInTime(chosen)
    timing = timer(run, chosen.plan)
    return ChosenInTime(chosen, timing, () if timing else (not_timed(run),))


def as_asked(chosen: Chosen, budget: Budget) -> Chosen:
    """The plans under the budget that the user gave, whatever it was tightened to."""

    def named(plan: Plan) -> Plan:
        return replace(plan, budget=str(budget), limits=limits_of(budget))

    uniform = named(chosen.uniform) if chosen.uniform else None
    measured = tuple(map(named, chosen.measured))
    return replace(chosen, plan=named(chosen.plan), uniform=uniform, measured=measured)


def with_speedup(run: Run, budget: Budget, speedup: float) -> Run:
    """The run with another limit on speed."""
    return replace(run, request=replace(run.request, budget=replace(budget, speedup=speedup)))


def timing_key(run: Run, plan: Plan, workload: Workload) -> str:
    """What a timing depends on: shapes, formats and machine, not the weights' values."""
    formats = {site: choice.candidate.partition(":")[0] for site, choice in plan.choices.items()}
    parts = [
        run.original.fingerprint,
        sorted(formats.items()),
        kept_blocks(run, plan),
        workload.to_json(),
        describe_machine(run.request.device),
    ]
    return f"timing-{digest_of(parts)}"


def measure_limits(run: Run, plan: Plan, timing: PlanTiming | None, folder: Path) -> LimitFigures:
    """Predicted and measured figures of the finished folder's limits on memory and speed;
    ``folder``: where it is before it has its name.
    """
    measured = None
    if "ram_bytes" in plan.limits and original_fits(run):
        causal = run.skeleton.task == "causal-lm"
        phase = Phase.DECODE if causal else Phase.PREFILL
        workload = Workload(phase=phase, context=workload_of(plan).context)
        with run.progress.stage("measure memory"):
            measured = time_folder(loading_of(run, folder), workload).model_bytes
    return LimitFigures(
        workload=str(workload_of(plan)),
        profile=plan.profile,
        ram_bytes_predicted=plan.ram_bytes,
        ram_bytes_measured=measured,
        latency_ms_predicted=None if plan.latency_ns is None else plan.latency_ns / 1e6,
        latency_ms_measured=timing.fitted.least_ns / 1e6 if timing else None,
        latency_ms_original=timing.original.least_ns / 1e6 if timing else None,
        speedup_predicted=plan.speedup,
        speedup_measured=timing.speedup if timing else None,
    )


def not_timed(run: Run) -> str:
    """The note of a step that memory does not allow."""
    size = run.original.checkpoint.total_file_bytes
    return (
        f"the speedup is predicted by the machine profile and was not timed: the original of"
        f" {size:.3g} bytes does not fit the {available_bytes():.3g} bytes that are free"
    )
