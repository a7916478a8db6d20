"""One judge for everybody's weights: the KL of ``blockwright fit``'s own evaluation on the held-out
text, in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import log
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.peers.job import DENSE_FILE
from blockwright.checkpoint import Checkpoint
from blockwright.errors import UserError
from blockwright.evaluate import measure, run_to_file
from blockwright.pipeline.building import build_library
from blockwright.pipeline.measuring import measure_plan, original_on
from blockwright.pipeline.opening import Run
from blockwright.pipeline.posing import pose_problem
from blockwright.plan import uniform_plans
from blockwright.stream import WeightSource
from blockwright.types import Budget, Quality, Site, SiteKind


class PeerWeights:
    """The original with a peer's dense weights in it."""

    def __init__(self, original: WeightSource, dense: Checkpoint) -> None:
        self._original, self._dense = original, dense

    def load(self, parameters: Iterable[str]) -> dict[str, Tensor]:
        """Tensors by name; those of the peer are fp32."""
        tensors = self._original.load(parameters)
        for name, tensor in tensors.items():
            if name in self._dense:
                if self._dense.shape(name) != tuple(tensor.shape):
                    raise UserError(
                        f"{self._dense.folder}: {name} is {list(self._dense.shape(name))}, the"
                        f" original's is {list(tensor.shape)}; remove the folder and run it again"
                    )
                tensors[name] = self._dense.read(name)
        return tensors


def judge(run: Run, folder: Path) -> Quality:
    """A peer's dense weights on the held-out text, against the original."""
    dense = Checkpoint.open(folder)
    unknown = set(dense.names) - set(run.skeleton.parameters)
    if unknown:
        raise UserError(f"{folder / DENSE_FILE}: the model has no parameter {min(unknown)}")
    for name in dense.names:
        dense.check_finite(name)
    original = original_on(run, "heldout", run.texts.heldout)
    stream = run.stream(PeerWeights(run.original.parameters, dense))
    target = original.file.path.with_name("peer.bin")
    target.unlink(missing_ok=True)
    quality = measure(run_to_file(stream, original.inputs, target), original)
    target.unlink()
    return quality


def original_loss(run: Run) -> float:
    """Cross-entropy of the original on the held-out text, nats per token."""
    perplexity = measure(original_on(run, "heldout", run.texts.heldout)).perplexity
    if perplexity is None:
        raise UserError("peers are compared on models with a language head; give another --model")
    return log(perplexity)


def judge_uniform(run: Run, format: str) -> tuple[float, Quality]:
    """Bits per weight of our own GPTQ in one format, and its quality on the held-out text, for a
    run that offers it.
    """
    problem = pose_problem(run, build_library(run)).problem
    name = f"uniform {format}:gptq"
    plan = next(each for each in uniform_plans(problem, Budget(bits=16.0)) if each.name == name)
    text = run.texts.heldout
    original = original_on(run, "heldout", text)
    return plan.bits_per_weight, measure_plan(run, plan, original, text.digest)


def linear_sites(run: Run) -> list[Site]:
    """The linears of the blocks: what bits per weight counts."""
    return [site for site in run.skeleton.sites if site.kind is SiteKind.LINEAR]


def bits_per_weight(stored: Mapping[str, Mapping[str, int]], sites: Sequence[Site]) -> float:
    """Stored bits of the block linears over their number of weights, as a plan counts them.

    ``stored``: module -> tensor -> bytes.  A linear that the peer left alone counts 16 bits per
    weight.  Raises ``UserError`` where a peer quantized what is no linear of a block.
    """
    modules = {site.parameter.removesuffix(".weight"): site for site in sites}
    foreign = sorted(stored.keys() - modules.keys())
    if foreign:
        raise UserError(f"a peer quantized {foreign[0]}, which is no linear of a block")
    weights = {name: site.shape[0] * site.shape[1] for name, site in modules.items()}
    stored_bytes = sum(
        sum(stored[name].values()) if name in stored else 2 * count
        for name, count in weights.items()
    )
    return 8 * stored_bytes / sum(weights.values())


def write_tokens(run: Run, path: Path) -> Path:
    """The calibration tokens of a run, as runners read them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"ids": run.texts.calibration.ids.to(torch.int64).contiguous()}, path)
    return path
