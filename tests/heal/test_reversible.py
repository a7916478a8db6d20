"""Reversible layers: gradients of plain autograd, memory that does not grow with depth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blockwright.heal.reversible import Coupling, Retrofit, Reversible, run_reversible

WIDTH = 16


def layers(kind: str, depth: int, dtype: torch.dtype) -> list[Reversible]:
    torch.manual_seed(0)

    def function() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU())

    made: list[Reversible] = [
        Coupling(function(), function()) if kind == "coupling" else Retrofit(function(), 0.6)
        for _ in range(depth)
    ]
    return [layer.to(dtype) for layer in made]


def streams(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    x1, x2 = (torch.randn(4, WIDTH, generator=draw, dtype=dtype) for _ in range(2))
    return x1.requires_grad_(), x2.requires_grad_()


def gradients(chain: list[Reversible], dtype: torch.dtype, *, plain: bool) -> list[Tensor]:
    x1, x2 = streams(dtype)
    y1, y2 = x1, x2
    if plain:
        for layer in chain:
            y1, y2 = layer(y1, y2)
    else:
        y1, y2 = run_reversible(chain, x1, x2)
    parameters = [p for layer in chain for p in layer.parameters()]
    found = torch.autograd.grad((y1.sin() + y2.cos()).sum(), [x1, x2, *parameters])
    return list(found)


@pytest.mark.parametrize("kind", ["coupling", "retrofit"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_gradients_are_those_of_plain_autograd(
    kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    chain = layers(kind, 6, dtype)
    expected, found = (gradients(chain, dtype, plain=plain) for plain in (True, False))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm().clamp(min=1e-6)


@pytest.mark.parametrize("kind", ["coupling", "retrofit"])
def test_the_inverse_gives_the_inputs_back(kind: str) -> None:
    (layer,) = layers(kind, 1, torch.float64)
    x1, x2 = streams(torch.float64)
    back = layer.inverse(*layer(x1, x2))
    torch.testing.assert_close(back, (x1, x2))


def saved(depth: int, *, plain: bool) -> int:
    total, chain = 0, layers("coupling", depth, torch.float32)

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        total += 0 if isinstance(tensor, nn.Parameter) else tensor.numel()
        return tensor

    x1, x2 = streams(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if plain:
            for layer in chain:
                x1, x2 = layer(x1, x2)
        else:
            run_reversible(chain, x1, x2)
    return total


def test_what_is_saved_does_not_grow_with_depth() -> None:
    assert saved(12, plain=False) <= 1.2 * saved(4, plain=False)
    assert saved(12, plain=True) > 2.5 * saved(4, plain=True)


def test_a_layer_that_is_used_twice_gets_both_gradients() -> None:
    (layer,) = layers("coupling", 1, torch.float64)
    chain = [layer, layer]
    x1, x2 = streams(torch.float64)
    y1, y2 = run_reversible(chain, x1, x2)
    weight = next(layer.parameters())
    (found,) = torch.autograd.grad((y1 * y2).sum(), [weight])
    y1, y2 = layer(*layer(x1, x2))
    (expected,) = torch.autograd.grad((y1 * y2).sum(), [weight])
    torch.testing.assert_close(found, expected)
