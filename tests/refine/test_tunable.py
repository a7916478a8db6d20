"""A tunable block: the same function as the block, of every architecture, with gradients to its
scales, norms and biases alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blockwright.formats import FormatLinear
from blockwright.refine import TunableBlock
from blockwright.registry import format_named, method_named
from blockwright.stream import Inputs, Stem, Stream, weight_of, with_weights
from blockwright.tuning import TrainedTensor, depended_on
from blockwright.types import GridFormat, PackedFormat, PackedLinear, Site, Statistics
from tests.conftest import ModelFolder
from tests.models import KINDS
from tests.stream.test_equals_own_forward import model_inputs, open_stream

FORMAT = "int3-g32"


def packed(site: Site, W_OI: Tensor, name: str = FORMAT) -> FormatLinear:
    """A weight rounded to nearest."""
    format = format_named(name)
    assert isinstance(format, GridFormat)
    solution = method_named("rtn").solve(W_OI, Statistics(tokens=1), format)
    module = format.pack(solution, None, torch.float32)
    assert isinstance(module, FormatLinear)
    return module


class Case:
    """Block 1 of a tiny model, rounded, as a plain block and as a tunable one."""

    def __init__(self, folder: Path, work: Path, skipped: str = "") -> None:
        self.stream: Stream = open_stream(folder)
        self.inputs: Inputs = model_inputs(self.stream.skeleton.task)
        self.stem: Stem = self.stream.run_stem(self.inputs, work / "0.bin")
        first = self.stream.file(work / "0.bin", self.stem).batches(2, 2)
        self.hidden = next(first)
        self.block: nn.Module = self.stream.block(1)
        parameters = self.stream.parameters(1, self.block)
        self.modules: dict[Site, PackedLinear] = {}
        for site in self.stream.skeleton.block_sites(1):
            if site.parameter and site.id != skipped:
                parameter = parameters[site.parameter]
                module = packed(site, weight_of(site, parameter))
                with_weights(parameter, {site: module.dequantize()})
                self.modules[site] = module

    def plain(self) -> Tensor:
        with torch.no_grad():
            return self.stem.calls[0][1].run(self.block, self.hidden)

    def tunable(self) -> TunableBlock:
        return TunableBlock(self.stream, 1, self.stream.block(1), self.modules)


def start_values(block: TunableBlock) -> dict[str, Tensor]:
    return {name: trained.value() for name, trained in block.trained.items()}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest, model_folder: ModelFolder, tmp_path: Path) -> Case:
    kind: str = request.param
    options = {"moe_intermediate_size": 64} if kind == "qwen3_moe" else {}
    return Case(model_folder(kind, **options), tmp_path)


def test_it_starts_as_the_block_it_is(case: Case) -> None:
    block = case.tunable()
    output = block.forward(start_values(block), case.hidden, case.stem.calls[0][1])
    torch.testing.assert_close(output.detach(), case.plain(), rtol=1e-5, atol=1e-5)


def test_scales_norms_and_biases_are_trained_and_nothing_else(case: Case) -> None:
    trained = set(case.tunable().trained)
    sites = {f"packed/{site.id}/scale" for site in case.modules}
    weights = {site.parameter for site in case.modules}
    vectors = {
        f"parameter/{name}"
        for name, value in case.stream.parameters(1, case.block).items()
        if value.ndim == 1 and name not in weights
    }
    assert trained == sites | vectors
    assert vectors


def test_every_tensor_that_the_batch_reaches_gets_a_gradient(case: Case) -> None:
    """Experts that no token is routed to get zeros."""
    block = case.tunable()
    output = block.forward(start_values(block), case.hidden, case.stem.calls[0][1])
    output.square().sum().backward()
    for name, trained in block.trained.items():
        assert trained.offset.grad is not None, name
        assert torch.isfinite(trained.offset.grad).all(), name
        # A bias shared by all keys cancels in the softmax.
        reached = "[" in name or "k_proj.bias" in name or "key.bias" in name
        assert reached or trained.offset.grad.any(), name


def test_gradients_are_those_of_finite_differences(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    case = Case(model_folder("llama"), tmp_path)
    block = case.tunable()
    values = start_values(block)
    output = block.forward(values, case.hidden, case.stem.calls[0][1])
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(3))
    (output * weights).sum().backward()
    for name in ("packed/model.layers.1.mlp.down_proj/scale", next(reversed(block.trained))):
        trained = block.trained[name]
        gradient = trained.offset.grad
        assert gradient is not None
        assert isinstance(trained, TrainedTensor)
        found = []
        for step in (1e-2, -1e-2):
            moved = {n: v.detach().clone() for n, v in values.items()}
            moved[name] += step * trained.unit * gradient.sign()
            with torch.no_grad():
                result = block.forward(moved, case.hidden, case.stem.calls[0][1])
            found.append((result.double() * weights).sum().item())
        expected = gradient.abs().sum().item()
        assert (found[0] - found[1]) / 2e-2 == pytest.approx(expected, rel=0.02)


def test_kept_experts_stay_in_their_stack(model_folder: ModelFolder, tmp_path: Path) -> None:
    folder = model_folder("qwen3_moe", moe_intermediate_size=64)
    kept = "model.layers.1.mlp.experts.down_proj[2]"
    case = Case(folder, tmp_path, skipped=kept)
    block = case.tunable()
    output = block.forward(start_values(block), case.hidden, case.stem.calls[0][1])
    torch.testing.assert_close(output.detach(), case.plain(), rtol=1e-5, atol=1e-5)
    assert not any(kept in name for name in block.trained)


@pytest.mark.parametrize("name", ["int2-g32", "int4-g64-sym", "int8", "int3-row"])
def test_a_weight_depends_on_its_scales(name: str) -> None:
    site = Site(id="here", kind="linear", shape=(16, 64))  # type: ignore[arg-type]
    W_OI = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    module = packed(site, W_OI, name)
    before = {n: t.clone() for n, t in module.stored_tensors().items()}
    assert depended_on(module) == ["scale"]
    after = module.stored_tensors()
    assert all(
        torch.equal(after[n], before[n]) and after[n].dtype == before[n].dtype for n in after
    )


@pytest.mark.parametrize(
    ("name", "tunable"),
    [
        ("rank-p50", ["left.weight", "right.weight"]),
        ("rank-r32+int4-g32", ["left.scale", "right.scale"]),
        ("sparse2of4", ["values.weight"]),
        ("sparse2of4+int4-g32", ["values.scale"]),
    ],
)
def test_of_parts_the_floating_point_tensors_can_be_tuned(name: str, tunable: list[str]) -> None:
    format = format_named(name)
    assert isinstance(format, PackedFormat)
    statistics = Statistics(tokens=9, input_gram=torch.eye(128))
    method = method_named(format.default_method or "")
    W = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    module = format.pack(method.solve(W, statistics, format), None, torch.float32)
    before = module.dequantize()
    assert depended_on(module) == tunable
    assert torch.equal(module.dequantize(), before)
