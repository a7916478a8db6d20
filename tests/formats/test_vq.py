"""vq formats: names, shapes, bytes, kernels, and groups of zeros."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from blockwright.errors import CandidateError, FormatError
from blockwright.formats.vq import VqFormat, VqLinear
from blockwright.numerics.int4_cpu import tile_layout
from blockwright.types import VectorSolution


def solution(format: VqFormat, shape: tuple[int, int] = (40, 128)) -> VectorSolution:
    random = torch.Generator().manual_seed(0)
    vectors, groups = shape[1] // format.dim, format.groups(shape[1])
    scale = torch.rand(shape[0], groups, generator=random).mul(0.01).bfloat16().float()
    scale[3] = 0
    codes = torch.randint(0, format.entries, (shape[0], vectors), generator=random)
    book = torch.randint(-127, 128, (format.entries, format.dim), generator=random)
    return VectorSolution(
        codes_OV=codes.to(torch.uint8), codebook_KD=book.to(torch.int8), scale_OG=scale
    )


def packed(name: str, shape: tuple[int, int] = (40, 128)) -> VqLinear:
    format = VqFormat.parse(name)
    bias = torch.linspace(-1, 1, shape[0])
    return format.pack(solution(format, shape), bias, torch.bfloat16)


@pytest.mark.parametrize("name", ["vq256", "vq8-d2-row", "vq256-d3-row", "vq512-d8-row", "vq16-d2"])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'vq256-d4-row'\?"):
        VqFormat.parse(name)


def test_settings_and_shapes_that_cannot_be_are_refused() -> None:
    with pytest.raises(FormatError, match="100 entries for 4 inputs"):
        VqFormat(100, 4, 0)
    with pytest.raises(FormatError, match="4 does not divide 6 inputs; use vq256-d2-row"):
        VqFormat(256, 4, 0).check_shape((8, 6), "site")
    with pytest.raises(FormatError, match="64 does not divide 96 inputs; use vq256-d4-row"):
        VqFormat(256, 4, 64).check_shape((8, 96), "site")
    with pytest.raises(FormatError, match="2 does not divide 7 inputs; use int2-row"):
        VqFormat(256, 2, 0).check_shape((8, 7), "site")
    with pytest.raises(FormatError, match="is empty"):
        VqFormat(256, 2, 0).check_shape((0, 8), "site")


def test_bits_per_weight_follow_the_formula() -> None:
    O, I = 512, 1024  # noqa: E741
    for entries, dim, group, bits in ((256, 4, 0, 8), (16, 2, 64, 4), (64, 8, 32, 6)):
        groups = I // group if group else 1
        wanted = O * (bits * I // dim + 16 * groups) + 8 * entries * dim
        assert VqFormat(entries, dim, group).stored_bytes((O, I)) * 8 == wanted


@pytest.mark.parametrize("name", ["vq256-d4-row", "vq16-d2-g64", "vq32-d8-g32", "vq128-d4-row"])
@pytest.mark.parametrize("tokens", [1, 3, 100])
def test_products_are_those_of_the_looked_up_weight(name: str, tokens: int) -> None:
    module = packed(name)
    found = solution(module.format)
    by_hand = torch.empty(40, 128)
    size = module.format.group_size or 128
    for o in range(40):
        for v, code in enumerate(found.codes_OV[o].tolist()):
            first = v * module.format.dim
            here = slice(first, first + module.format.dim)
            by_hand[o, here] = found.codebook_KD[code].float() * found.scale_OG[o, first // size]
    assert torch.equal(module.dequantize(), by_hand)
    assert (by_hand[3] == 0).all()
    x = torch.randn(tokens, 128, generator=torch.Generator().manual_seed(1))
    expected = F.linear(x, by_hand, torch.linspace(-1, 1, 40))
    for y in (module(x.bfloat16()), module.prepare()(x.bfloat16()), module(x)):
        assert (y - expected).norm() < 1e-2 * expected.norm()
        assert torch.isfinite(y).all()


@pytest.mark.skipif(tile_layout() is None, reason="no int4 kernel on this machine")
def test_it_multiplies_on_the_kernels_of_8_bits_and_says_what_is_resident() -> None:
    assert packed("vq256-d4-row").kernel == "int8"
    assert packed("vq256-d4-g64").kernel == "int4 x 2"
    format = VqFormat(256, 4, 0)
    assert format.limits.packed_on_cpu
    assert format.limits.resident_bits == 10


def test_a_codebook_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a codebook of \(16, 2\), \(256, 4\) needed"):
        VqFormat(256, 4, 0).pack(solution(VqFormat(16, 2, 0)), None, torch.bfloat16)


def test_scales_are_trained() -> None:
    module = packed("vq256-d4-g64").prepare()
    module.replace_stored("scale", module.stored_tensor("scale").float().requires_grad_())
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
    module(x).sum().backward()
    found = module.stored_tensor("scale").grad
    assert found is not None
    entries = module._entries(slice(None)).float()
    torch.testing.assert_close(found, (entries * x.sum(0)).view(40, 2, 64).sum(2))
