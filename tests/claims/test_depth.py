"""Claims of methods that make a model shallower."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from blockwright.cli.demo import bundled_model
from blockwright.pipeline.building import build_library
from blockwright.pipeline.dropping import droppable, loss_without
from blockwright.pipeline.fusing import build_fused, wanted_fused_variants
from blockwright.pipeline.measuring import (
    loss_of,
    measure_plan,
    original_of_calibration,
    original_on,
)
from blockwright.pipeline.opening import Run, open_run
from blockwright.progress import SilentProgress
from blockwright.types import (
    DROP,
    Budget,
    Choice,
    FitRequest,
    Plan,
    Preset,
    VariantRecord,
    parameter_name,
)
from tests.claims.ledger import Grade, claim
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer

FUSE, NEXT = "fuse:fusegpt", "fuse-next:fusegpt"
ALONE, NEXT_ALONE = f"{FUSE}@inject=false", f"{NEXT}@inject=false"
START, NEXT_START = f"{FUSE}@steps=0", f"{NEXT}@steps=0"
MEASURED_TOKENS = 2_048


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One library for all claims."""
    return tmp_path_factory.mktemp("depth")


@functools.cache
def run_of(folder: Path, seed: int) -> Run:
    """The bundled model, opened; 16k calibration and 8k held-out tokens."""
    asked = FitRequest(
        model=str(bundled_model()),
        out=folder / "out",
        budget=Budget(bits=14.0),
        candidates=(FUSE, NEXT, ALONE, NEXT_ALONE, START, NEXT_START),
        library=folder / "library",
        threads=1,
        calibration_tokens=16_384,
        sequence_length=512,
        eval_tokens=8_192,
        preset=Preset.FAST,
        seed=seed,
        speed=False,
    )
    return open_run(asked, SilentProgress())


@functools.cache
def removed(folder: Path, seed: int) -> int:
    """The block whose absence costs least on calibration text."""
    run = run_of(folder, seed)
    original = original_of_calibration(run, run.calibration_inputs.first(MEASURED_TOKENS))
    losses = {s.block or 0: loss_without(run, [s.id], original) for s in droppable(run).blocks}
    return min(losses, key=losses.__getitem__)


@functools.cache
def fused(folder: Path, seed: int, candidate: str) -> VariantRecord | None:
    """A neighbour that takes the removed block over; None where there is no such neighbour."""
    run, lost = run_of(folder, seed), removed(folder, seed)
    path = f"{run.skeleton.block_path}.{lost - 1 if candidate.startswith(NEXT) else lost + 1}"
    site = next((site for site in run.skeleton.sites if site.id == path), None)
    if site is None:
        return None
    wanted = [w for w in wanted_fused_variants(run, site) if str(w.candidate) == candidate]
    if run.library.lookup(wanted[0].key) is None:
        build_fused(run, site, wanted)
    return run.library.lookup(wanted[0].key)


def heldout_kl(folder: Path, seed: int, record: VariantRecord | None) -> float:
    """KL without the removed block, in nats per token; ``record``: what takes it over."""
    run = run_of(folder, seed)
    gone = f"{run.skeleton.block_path}.{removed(folder, seed)}"
    choices = {gone: Choice(candidate=str(DROP), stored_bytes=0, loss=0.0)}
    if record is not None:
        choices[record.site] = Choice(
            candidate=record.candidate, stored_bytes=0, loss=0.0, key=record.key
        )
    plan = Plan(
        fingerprint=run.original.fingerprint,
        statistics=run.statistics_digest,
        budget="",
        bits_per_weight=0.0,
        size_bytes=0,
        loss=0.0,
        choices=choices,
    )
    text = run.texts.heldout
    return loss_of(measure_plan(run, plan, original_on(run, "heldout", text), text.digest))


def best(folder: Path, seed: int, *candidates: str) -> VariantRecord:
    """The direction of least loss on the calibration text that was held back."""
    found = [fused(folder, seed, candidate) for candidate in candidates]
    return min((r for r in found if r is not None), key=lambda record: record.relative_error)


@claim(
    method="fusegpt",
    says="untrained it is plain removal",
    measures="largest change of a tensor of the block that stays, random llama",
    grade=Grade.HARD,
    at_most=0.0,
)
def test_untrained_it_is_plain_removal(
    model_folder: ModelFolder, tmp_path: Path
) -> Iterator[float]:
    original, stored = untrained(model_folder, tmp_path)
    for name, tensor in original.items():
        yield float((stored[parameter_name(name)].float() - tensor.float()).abs().max())


@claim(
    method="fuse",
    paper="Pei et al., FuseGPT, 2024",
    says="two blocks fused are stored as one",
    measures="|bytes of the fused block / the block's own - 1|, random llama",
    grade=Grade.HARD,
    at_most=0.0,
)
def test_two_blocks_are_stored_as_one(model_folder: ModelFolder, tmp_path: Path) -> float:
    blocks = untrained(model_folder, tmp_path)
    own, fused = (sum(t.numel() * t.element_size() for t in each.values()) for each in blocks)
    return abs(fused / own - 1)


def untrained(folder: ModelFolder, work: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A block's tensors, and those of the block that took its neighbour over without steps."""
    model = with_tokenizer(folder("llama"), work)
    asked = request(model, work, candidates=("fuse:fusegpt@steps=0",), preset=Preset.FAST)
    run = open_run(asked, SilentProgress())
    record = build_library(run).records["model.layers.1", "fuse:fusegpt@steps=0"]
    original = run.original.parameters.load(run.skeleton.parameters_of_block(1))
    return dict(original), dict(run.library.tensors(record.key))


@pytest.mark.slow
@claim(
    method="fusegpt",
    says="a neighbour that is tuned to do both's work gives more of what both gave",
    measures="squared error of hidden states on held-back calibration text / that of removal,"
    " bundled model, one of 8 blocks",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_the_fused_block_gives_what_both_gave(work: Path, seed: int) -> float:
    tuned, start = best(work, seed, FUSE, NEXT), best(work, seed, START, NEXT_START)
    return tuned.relative_error / start.relative_error


@pytest.mark.slow
@claim(
    method="fusegpt",
    says="fusing the block that matters least costs much less than dropping it",
    measures="held-out KL / that of dropping it, bundled model, one of 8 blocks, 8k tokens",
    grade=Grade.SOFT,
    at_most=0.7,
)
def test_fusing_costs_less_than_dropping(work: Path, seed: int) -> float:
    return heldout_kl(work, seed, best(work, seed, FUSE, NEXT)) / heldout_kl(work, seed, None)


@pytest.mark.slow
@claim(
    method="fusegpt",
    says="the other block's weights help beyond tuning the neighbour's own",
    measures="held-out KL / with inject=false, bundled model, one of 8 blocks, 8k tokens",
    grade=Grade.SOFT,
    at_most=1.0,
)
def test_the_other_blocks_weights_help(work: Path, seed: int) -> float:
    fused_kl = heldout_kl(work, seed, best(work, seed, FUSE, NEXT))
    return fused_kl / heldout_kl(work, seed, best(work, seed, ALONE, NEXT_ALONE))
