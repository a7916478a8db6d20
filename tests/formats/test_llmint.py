"""llmint formats: names, bytes, and products of rounded inputs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import llmint
from blockwright.formats.llmint import LlmIntFormat, LlmIntLinear
from blockwright.methods.quantize.llmint import Llmint
from blockwright.numerics.int8_product import MOST_INPUTS, multiplies_integers
from blockwright.types import Statistics

needs_kernel = pytest.mark.skipif(
    not multiplies_integers(), reason="no int8 product on this machine"
)


def packed(percent: int, shape: tuple[int, int] = (24, 120)) -> LlmIntLinear:
    """The last columns have the largest inputs."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    seen = Statistics(tokens=1, input_absmax=torch.arange(shape[1]).float())
    format = LlmIntFormat(percent)
    return format.pack(Llmint().solve(W, seen, format), None, torch.bfloat16)


def inputs(tokens: int, features: int = 120) -> Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(1))


def by_hand(module: LlmIntLinear, x: Tensor) -> Tensor:
    """Round each token without its kept inputs, in fp32; multiply the kept ones as they are."""
    W, x = module.dequantize(), x.float()
    columns = module.columns.long()
    rest = x.index_fill(1, columns, 0.0)
    scale = rest.abs().amax(1, keepdim=True) / 127
    rounded = (rest / scale).round() * scale
    return F.linear(rounded.index_copy(1, columns, x[:, columns]), W)


@pytest.mark.parametrize("name", ["llmint8", "llmint4-p1", "llmint8-p10", "llmint8-g64"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'llmint8-p1'\?"):
        LlmIntFormat.parse(name)


def test_settings_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="10% of the inputs kept: allowed are 0 to 9"):
        LlmIntFormat(10)
    with pytest.raises(FormatError, match="can pass 32 bits"):
        LlmIntFormat(1).check_shape((8, MOST_INPUTS + 1), "site")
    with pytest.raises(FormatError, match="is empty"):
        LlmIntFormat(1).check_shape((0, 8), "site")


def test_bits_per_weight_follow_the_formula() -> None:
    O, I = 512, 1000  # noqa: E741
    for percent, kept in ((0, 0), (1, 10), (5, 50)):
        bits = O * (8 * I + 16 + 16 * kept) + 32 * kept
        assert LlmIntFormat(percent).stored_bytes((O, I)) * 8 == bits


def test_kept_columns_are_those_of_the_largest_inputs_in_bfloat16() -> None:
    module = packed(5)
    assert module.columns.tolist() == list(range(114, 120))
    W = torch.randn((24, 120), generator=torch.Generator().manual_seed(0)) * 0.02
    assert torch.equal(module.dequantize()[:, 114:], W[:, 114:].bfloat16().float())
    assert (module.weight.view(24, 120)[:, 114:] == 0).all()


@needs_kernel
@pytest.mark.parametrize("percent", [0, 5])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_products_are_those_of_rounded_inputs(percent: int, tokens: int) -> None:
    module, x = packed(percent), inputs(tokens).bfloat16()
    x[:, 117] *= 100
    assert module.kernel == "int8 x int8"
    expected = by_hand(module, x)
    assert (module(x) - expected).norm() < 4e-3 * expected.norm()  # bfloat16 outputs


def test_zero_inputs_no_tokens_and_other_dtypes() -> None:
    module = packed(1)
    assert torch.equal(module(torch.zeros(2, 120).bfloat16()), torch.zeros(2, 24).bfloat16())
    assert module(torch.zeros(0, 120).bfloat16()).shape == (0, 24)
    x = inputs(3)
    torch.testing.assert_close(module(x), F.linear(x, module.dequantize()), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="64 inputs given, 120 needed"):
        module(torch.ones(1, 64))


def test_without_an_integer_product_it_dequantizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llmint, "multiplies_integers", lambda _device="cpu": False)
    module, x = packed(1), inputs(3).bfloat16()
    assert module.kernel == "dequantize"
    assert not module.format.limits.packed_on_cpu
    expected = F.linear(x.float(), module.dequantize())
    assert (module(x) - expected).norm() < 1e-2 * expected.norm()


def test_scales_and_kept_columns_are_trained() -> None:
    module = packed(5)
    for name in ("scale", "outliers"):
        module.replace_stored(name, module.stored_tensor(name).float().requires_grad_())
    x = inputs(4)
    module(x).sum().backward()
    kept = module.stored_tensor("outliers").grad
    assert kept is not None
    torch.testing.assert_close(kept.view(24, 6), x.sum(0)[114:].expand(24, 6))
    assert module.stored_tensor("scale").grad is not None
