"""panel formats: names, bytes by formula, masks that fit, the kernel, errors."""

from __future__ import annotations

import pytest
import torch

from blockwright.errors import CandidateError, FormatError
from blockwright.formats import format_from_spec
from blockwright.formats.panel import PanelFormat, PanelLinear
from blockwright.numerics.panels import CHUNK_TOKENS
from blockwright.registry import format_named
from blockwright.types import MaskedSolution

NAMES = ("panel32-80", "panel16-50", "panel4-90", "panel16x16-50", "panel8x2-20")


def panel_format(name: str) -> PanelFormat:
    format = format_named(name)
    assert isinstance(format, PanelFormat)
    return format


def packed(name: str, shape: tuple[int, int] = (40, 128)) -> tuple[PanelLinear, torch.Tensor]:
    """A module and its weight; some kept values are zero."""
    format = panel_format(name)
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    mask = format.best_mask(W.abs())
    W[::3, ::2] = -0.0
    values = format.values.nearest(W[mask].view(shape[0], -1))
    solution = MaskedSolution(mask_OI=mask, values=values)
    return format.pack(solution, None, torch.bfloat16), solution.weight()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [40, 3, 128])
def test_masks_and_values_come_back_bit_for_bit(name: str, rows: int) -> None:
    module, W = packed(name, (rows, 128))
    assert torch.equal(module.dequantize(), W)
    before = module.stored_tensors()
    assert torch.equal(module.prepare().dequantize(), W)
    after = module.restore().stored_tensors()
    for key, tensor in before.items():
        assert torch.equal(after[key].view(torch.uint8), tensor.view(torch.uint8)), key


@pytest.mark.parametrize("name", [*NAMES, "panel32-80+int8"])
@pytest.mark.parametrize("tokens", [1, 5, CHUNK_TOKENS])
def test_the_kernel_multiplies_as_the_dense_weight_does(name: str, tokens: int) -> None:
    module, _ = packed(name)
    x = torch.randn(2, tokens, 128, generator=torch.Generator().manual_seed(1))
    fine = 1e-2 if "+" in name else 1e-5  # other values are laid out in the module's bfloat16
    for dtype, tolerance in ((torch.float32, fine), (torch.bfloat16, 1e-2)):
        exact = module.reference(x.to(dtype)).float()
        y = module.prepare()(x.to(dtype))
        assert y.shape == (2, tokens, 40)
        assert y.dtype == dtype
        assert (y.float() - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize(
    ("name", "bits_per_weight"),
    [
        ("panel32-80", 3.2 + 1 / 32),
        ("panel4-90", 1.6 + 1 / 4),
        ("panel32x32-50", 8 + 1 / 8 / 128),
        ("panel32-80+int8", 1.6 + 16 / 640 + 1 / 32),
    ],
)
def test_bytes_are_those_of_the_formula(name: str, bits_per_weight: float) -> None:
    shape = (64, 640)
    stored = panel_format(name).stored_bytes(shape)
    padding = 3 / 640 * 8 / 32 if "x32" in name else 0
    assert stored * 8 / (64 * 640) == pytest.approx(bits_per_weight, abs=padding + 1e-9)


def test_a_mask_that_breaks_the_units_is_refused() -> None:
    format = panel_format("panel4-50")
    values = format.values.nearest(torch.ones(4, 4))
    for mask in (
        torch.eye(8, dtype=torch.bool)[:4] | torch.tensor([True, True, True, False] + 4 * [False]),
        torch.ones(4, 8, dtype=torch.bool),
    ):
        with pytest.raises(ValueError, match="keep 4 whole units per panel"):
            format.pack(MaskedSolution(mask_OI=mask, values=values), None, torch.bfloat16)


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("panel32x16-50", (64, 90), "90 inputs are not whole units of 16; use panel32x2-50"),
        ("panel4x2-50", (64, 91), "use panel4-50"),
        ("panel4-90", (8, 4), "nothing of 4 inputs would stay"),
    ],
)
def test_shapes_it_cannot_take_say_what_fits(
    name: str, shape: tuple[int, int], reason: str
) -> None:
    with pytest.raises(FormatError, match=f"model.layers.0.q.*{reason}"):
        panel_format(name).check_shape(shape, "model.layers.0.q_proj")


@pytest.mark.parametrize("name", ["panel", "panel32", "panel3-80", "panel32-85", "panel32x1-80"])
def test_unknown_names_say_what_is_allowed(name: str) -> None:
    with pytest.raises(CandidateError, match=r"did you mean 'panel32-80'.*4, 8, 16, 32, 64, 128"):
        format_named(name)


def test_grouped_values_and_damaged_specs_are_refused() -> None:
    with pytest.raises(CandidateError, match=r"one scale per row, e\.g\. \+int4"):
        format_named("panel32-80+int4-g64")
    spec = panel_format("panel32-80").spec()
    with pytest.raises(FormatError, match="lacks 'rows'"):
        format_from_spec({key: value for key, value in spec.items() if key != "rows"})
    with pytest.raises(FormatError, match="rows are 4, 8"):
        format_from_spec({**spec, "rows": 5})
