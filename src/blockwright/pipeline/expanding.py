"""Predictions near a measured plan, from the gradient of what it loses.

Idea:    What a choice costs in the original says little of what it costs among the others: errors
         of structures add up or cancel from site to site.  At a measured plan one backward pass
         gives the gradient of the loss by every weight, and that knows what all other sites do.

Equations -> code     e_s = W_hat_s - W_s at the plan, d = W_hat' - W_hat_s of another choice
    L' ~ L + sum_s <g_s, d> + 1/2 sum_o G_o E[(d x)_o^2]      option_losses
    sum_s 1/2 <g_s, e_s> ~ L                                  the plan's own choices share L
Shapes:  O out features, I in features, N sampled rows.
Units:   losses as everywhere; G is the original's, x what the plan's sites really see.
Cost:    a forward and a backward pass over the selection text, and two products with the sampled
         rows for every option.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture.slopes import Slope, weight_slopes
from blockwright.evaluate import loss_against
from blockwright.pipeline.curvature import output_moments
from blockwright.pipeline.measuring import original_on, plan_stream
from blockwright.pipeline.opening import Run, by_id, digest_of
from blockwright.pipeline.placing import dense_weight
from blockwright.stream import weight_of
from blockwright.types import KEEP, Option, Plan, Problem, Site, SiteKind

VERSION = 1
"""Raised whenever the losses change: part of the key of what is remembered."""


def expanded(run: Run, problem: Problem, plan: Plan) -> Problem:
    """The problem with every option of a linear that the plan decides by itself at the loss that
    it would have there; all other losses stay.
    """
    offered = options_by_site(run, problem, plan)
    inside = sorted(name_of(option) for options in offered.values() for option in options)
    chosen = sorted((site, choice.candidate, choice.key) for site, choice in plan.choices.items())
    text = run.texts.selection.digest
    key = digest_of(["expanded", VERSION, chosen, inside, text, run.surroundings])
    losses = run.library.result(key)
    if losses is None:
        folder = run.library.work_folder(f"slopes-{key}")
        losses = losses_at(run, plan, offered, folder)
        shutil.rmtree(folder)
        run.library.store_result(key, losses)
    options = (replace(o, loss=losses.get(name_of(o), o.loss)) for o in problem.options)
    return replace(problem, options=tuple(options))


def name_of(option: Option) -> str:
    """``site candidate``"""
    return f"{option.site} {option.candidate}"


def options_by_site(run: Run, problem: Problem, plan: Plan) -> dict[str, list[Option]]:
    """What is on offer at the linears that the plan decides one by one."""
    linears = {site.id for site in run.skeleton.sites if site.kind is SiteKind.LINEAR}
    found: dict[str, list[Option]] = defaultdict(list)
    for option in problem.options:
        if option.site in linears and option.site in plan.choices:
            found[option.site].append(option)
    return dict(found)


def losses_at(
    run: Run, plan: Plan, offered: Mapping[str, Sequence[Option]], folder: Path
) -> dict[str, float]:
    """``site candidate`` -> loss, around a plan; ``folder`` is for working files."""
    original = original_on(run, "selection", run.texts.selection)
    moments, sites = output_moments(run), by_id(run.skeleton)
    stream = plan_stream(run, plan)
    found: dict[str, float] = {}
    with run.progress.stage(f"expand {plan.name}", len(stream.blocks), "blocks") as stage:
        loss = loss_against(original)
        for block in weight_slopes(stream, original.inputs, folder, loss):
            for name in sorted(offered.keys() & block.slopes.keys()):
                slope, W_hat_OI = block.slopes[name], block.weights[name]
                losses = option_losses(
                    run, sites[name], offered[name], slope, W_hat_OI, moments.get(name)
                )
                found |= {name_of(o): x for o, x in zip(offered[name], losses, strict=True)}
            stage.advance()
    return found


@torch.no_grad()
def option_losses(
    run: Run,
    site: Site,
    options: Sequence[Option],
    slope: Slope,
    W_hat_OI: Tensor,
    G_O: Tensor | None,
) -> list[float]:
    """What each option would lose, the share of the present choice among them."""
    loaded = run.original.parameters.load([site.parameter])
    W_OI = weight_of(site, loaded[site.parameter])
    share = 0.5 * float((slope.gradient_OI * (W_hat_OI - W_OI)).sum(dtype=torch.float64))
    losses = []
    for option in options:
        kept = option.candidate == str(KEEP)
        D_OI = (W_OI if kept else dense_weight(run, site, option.key)) - W_hat_OI
        first = float((slope.gradient_OI * D_OI).sum(dtype=torch.float64))
        losses.append(share + first + second_order(D_OI, slope.inputs_NI, G_O))
    return losses


def second_order(D_OI: Tensor, x_NI: Tensor, G_O: Tensor | None) -> float:
    """1/2 sum_o G_o E[(D x)_o^2]"""
    if G_O is None:
        return 0.0
    moment_O = (x_NI @ D_OI.T).square().mean(0)
    return 0.5 * float(G_O.double() @ moment_O.double())
