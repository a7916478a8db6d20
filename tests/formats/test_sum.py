"""sum formats: names, bytes and products of both parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import FormatLinear, format_from_spec
from blockwright.formats.sum import GridPlusRank, MaskedPlusRank
from blockwright.methods.quantize.lqlora import Lqlora
from blockwright.registry import format_named, resolve
from blockwright.types import Candidate, Statistics


def packed(name: str, shape: tuple[int, int] = (48, 64)) -> FormatLinear:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    format = format_named(name)
    assert isinstance(format, GridPlusRank)
    solution = Lqlora(metric="weight").solve(W, Statistics(tokens=0), format)
    module = format.pack(solution, torch.ones(shape[0]), torch.bfloat16)
    assert torch.equal(module.dequantize(), solution.weight())
    return module


def test_a_candidate_names_both_and_its_method_fills_them() -> None:
    format, (method,) = resolve(Candidate.parse("int3-g32&rank-r8"))
    assert isinstance(format, GridPlusRank)
    assert (format.base.name, format.plus.name) == ("int3-g32", "rank-r8")
    assert isinstance(method, Lqlora)


@pytest.mark.parametrize("name", ["rank-r8&nf3-g64", "nf3-g64&int4-g64", "bf16&rank-r8"])
def test_what_cannot_be_summed_is_refused(name: str) -> None:
    with pytest.raises(CandidateError, match="adds a product of thin matrices to a grid format"):
        resolve(Candidate.parse(name))


def test_zeros_take_a_product_as_well() -> None:
    format = format_named("sparse50+int4&rank-r8")
    assert isinstance(format, MaskedPlusRank)
    assert (format.base.name, format.plus.name) == ("sparse50+int4", "rank-r8")
    assert format_from_spec(format.spec()) == format


def test_shapes_that_either_part_cannot_take_are_refused() -> None:
    with pytest.raises(FormatError, match="nf3-g64: site: group size 64 does not divide 96"):
        format_named("nf3-g64&rank-r8").check_shape((128, 96), "site")
    with pytest.raises(FormatError, match="rank-r64: site: rank 64 is above"):
        format_named("nf3-g64&rank-r64").check_shape((32, 64), "site")


def test_bytes_are_those_of_both() -> None:
    parts = ("nf3-g64", "rank-r16")
    alone = sum(format_named(name).stored_bytes((512, 1024)) for name in parts)
    assert format_named("&".join(parts)).stored_bytes((512, 1024)) == alone


@pytest.mark.parametrize("name", ["int4-g32&rank-r8", "nf3-g32-dq&rank-p20"])
@pytest.mark.parametrize("tokens", [1, 40])
def test_products_are_added(name: str, tokens: int) -> None:
    module = packed(name)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    expected = F.linear(x.float(), module.dequantize(), torch.ones(48))
    for y in (module(x), module.prepare()(x), module.restore()(x)):
        assert (y - expected).norm() < 1e-2 * expected.norm()


def test_factors_and_scales_are_trained() -> None:
    module = packed("int4-g32&rank-r8").restore()
    names = ("base.scale", "plus.left.weight", "plus.right.weight")
    for name in names:
        module.replace_stored(name, module.stored_tensor(name).float().requires_grad_())
    module.differentiable(torch.ones(2, 64)).square().sum().backward()
    assert all(module.stored_tensor(name).grad is not None for name in names)
