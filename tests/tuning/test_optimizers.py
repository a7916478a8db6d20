"""Optimizers: the updates of torch's, with states in fp32 or in 8 bits."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright.errors import AdapterError
from blockwright.numerics.codebooks import dynamic_codebook
from blockwright.tuning import FreeTensor
from blockwright.tuning.optimizers import (
    OPTIMIZERS,
    Adam,
    DynamicMoment,
    HealOptimizer,
    Sgd,
    check_optimizer,
    optimizer_named,
    through_bitsandbytes,
)
from blockwright.tuning.optimizers.descent import RESELECT, BlockDescent
from blockwright.tuning.optimizers.fisher import BETA, DAMPING, Mfac
from blockwright.tuning.optimizers.moments import BLOCK


def leaf(size: int = 8192, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def gradient(step: int, size: int = 8192) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(100 + step))


def run(optimizer: HealOptimizer, item: FreeTensor, first: int = 0, steps: int = 5) -> Tensor:
    for step in range(first, first + steps):
        item.offset.grad = gradient(step, item.offset.numel())
        optimizer.step(0.01)
    return item.offset.detach().clone()


def test_adam_moves_as_torchs() -> None:
    item = FreeTensor(leaf())
    ours = run(Adam({"w": item}), item)
    theirs = leaf().requires_grad_()
    reference = torch.optim.Adam([theirs], lr=0.01, betas=Adam.betas)
    for step in range(5):
        theirs.grad = gradient(step)
        reference.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_sgd_moves_as_torchs() -> None:
    item = FreeTensor(leaf())
    ours = run(Sgd({"w": item}), item)
    theirs = leaf().requires_grad_()
    reference = torch.optim.SGD([theirs], lr=0.01, momentum=Sgd.beta)
    for step in range(5):
        theirs.grad = gradient(step)
        reference.step()
    torch.testing.assert_close(ours, theirs.detach())


def test_a_pace_multiplies_the_rate() -> None:
    slow, fast = FreeTensor(leaf()), FreeTensor(leaf(), pace=2.0)
    before = leaf()
    slow_step = run(Adam({"w": slow}), slow, steps=1) - before
    fast_step = run(Adam({"w": fast}), fast, steps=1) - before
    torch.testing.assert_close(fast_step, 2 * slow_step, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_values_of_the_codebook_come_back_exactly(signed: bool) -> None:
    values = torch.tensor(dynamic_codebook(signed=signed).values)
    moment = DynamicMoment(values, signed=signed)
    moment.store(values)
    assert len(values) == BLOCK
    assert torch.equal(moment.value(), values)


def test_an_error_is_at_most_half_a_gap_of_its_block() -> None:
    value = leaf(1000)
    value[10] = 500.0
    moment = DynamicMoment(value, signed=True)
    moment.store(value)
    rising = torch.tensor(sorted(dynamic_codebook(signed=True).values))
    gap = (rising[1:] - rising[:-1]).max()
    error = (moment.value() - value).abs()
    tops = torch.nn.functional.pad(value, (0, 24)).view(-1, BLOCK).abs().amax(1)
    for block, top in enumerate(tops.tolist()):
        inside = error[block * BLOCK : (block + 1) * BLOCK]
        assert inside.max() <= 0.51 * gap * top + (1 - 0.9922) * top
    assert error[BLOCK:].max() < 0.05


def test_a_positive_second_moment_never_becomes_zero() -> None:
    value = torch.full((BLOCK,), 1e-12)
    value[0] = 1.0
    moment = DynamicMoment(value, signed=False)
    moment.store(value)
    assert (moment.value() > 0).all()


@pytest.mark.parametrize(("name", "share"), [("adam8bit", 0.256), ("sgd8bit", 0.256)])
def test_eight_bits_take_a_quarter_of_the_state(name: str, share: float) -> None:
    item = {"w": FreeTensor(leaf(1 << 16))}
    small = optimizer_named(name, item).state_bytes()
    large = optimizer_named(name.removesuffix("8bit"), item).state_bytes()
    assert small <= share * large


def test_small_tensors_keep_fp32_states() -> None:
    item = {"w": FreeTensor(leaf(100))}
    eight, plain = (optimizer_named(name, item).state_bytes() for name in ("adam8bit", "adam"))
    assert eight == plain


class Adam8bit(torch.optim.Optimizer):
    """Stands for that of bitsandbytes: its arguments and its states, in fp32."""

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (b1, b2), (p,) = group["betas"], group["params"]
            zeros = {"state1": torch.zeros_like(p), "state2": torch.zeros_like(p)}
            state = self.state[p] = self.state.get(p) or {"step": 0, **zeros}
            state["step"] += 1
            state["state1"].mul_(b1).add_((1 - b1) * p.grad)
            state["state2"].mul_(b2).add_((1 - b2) * p.grad.square())
            size = (state["state2"] / (1 - b2 ** state["step"])).sqrt() + group["eps"]
            p.sub_(group["lr"] * state["state1"] / (1 - b1 ** state["step"]) / size)


@pytest.fixture
def bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes is there: itself where it is installed, else what stands for it."""
    if find_spec("bitsandbytes") is None:
        stand_in = ModuleType("bitsandbytes")
        vars(stand_in)["optim"] = SimpleNamespace(Adam8bit=Adam8bit)
        monkeypatch.setitem(sys.modules, "bitsandbytes", stand_in)
    import_module("bitsandbytes")


def test_bitsandbytes_moves_every_tensor_at_its_pace_and_goes_on(bits: None) -> None:
    name = through_bitsandbytes.NAME
    slow, fast = FreeTensor(leaf()), FreeTensor(leaf(), pace=2.0)
    steps = [run(optimizer_named(name, {"w": i}), i, steps=1) - leaf() for i in (slow, fast)]
    torch.testing.assert_close(steps[1], 2 * steps[0], rtol=1e-3, atol=1e-6)
    check_states(name)


def test_bitsandbytes_that_cannot_step_is_refused_in_one_line(
    bits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise NotImplementedError("no kernel\nof that name")

    monkeypatch.setattr(sys.modules["bitsandbytes"].optim.Adam8bit, "step", fail)
    with pytest.raises(AdapterError, match=r"cannot step on cpu \(no kernel\); use adam8bit"):
        check_optimizer(through_bitsandbytes.NAME, "cpu")


def test_bitsandbytes_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(AdapterError, match="which is not installed"):
        check_optimizer(through_bitsandbytes.NAME, "cpu")


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {through_bitsandbytes.NAME}))
def test_states_that_are_loaded_go_on_as_if_nothing_had_happened(name: str) -> None:
    check_states(name)


def check_states(name: str) -> None:
    """Three steps, states stored and loaded, three more: as six."""
    whole = FreeTensor(leaf())
    wanted = run(optimizer_named(name, {"w": whole}), whole, steps=6)
    first = FreeTensor(leaf())
    before = optimizer_named(name, {"w": first})
    run(before, first, steps=3)
    second = FreeTensor(first.stored())
    after = optimizer_named(name, {"w": second})
    after.load({key: tensor.clone() for key, tensor in before.tensors().items()})
    assert torch.equal(run(after, second, first=3, steps=3), wanted)


def test_a_natural_step_is_that_of_the_formed_matrix() -> None:
    item = FreeTensor(leaf(50))
    seen = torch.stack([gradient(step, 50) for step in range(3)])
    optimizer, momentum = Mfac({"w": item}, gradients=8), torch.zeros(50)
    for step in range(3):
        before = item.stored()
        item.offset.grad = gradient(step, 50)
        optimizer.step(0.01)
        G = seen[: step + 1].double()
        ridge = DAMPING * G.square().mean()
        F = ridge * torch.eye(50) + G.T @ G / len(G)
        momentum = BETA * momentum + (1 - BETA) * torch.linalg.solve(F, G[-1]).float()
        expected = before - 0.01 * momentum / momentum.square().mean().sqrt()
        torch.testing.assert_close(item.stored(), expected, rtol=1e-4, atol=1e-5)


def stiff(count: int) -> tuple[dict[str, FreeTensor], dict[str, float]]:
    """Blocks of quadratics 1/2 L |w|^2."""
    items = {f"b{index}": FreeTensor(leaf(16, index)) for index in range(count)}
    return items, {name: 10.0**index for index, name in enumerate(items)}


def test_block_descent_moves_some_blocks_and_learns_their_curvature() -> None:
    items, curvature = stiff(4)
    optimizer = BlockDescent(items, {name: name for name in items})
    for step in range(4 * RESELECT):
        before = {name: item.stored() for name, item in items.items()}
        for name, item in items.items():
            item.offset.grad = curvature[name] * item.offset.detach()
        optimizer.step(0.001)
        moved = [name for name, item in items.items() if not torch.equal(item.offset, before[name])]
        assert moved == [f"b{3 - step // RESELECT}"]
    known = optimizer.tensors()["curvature"]
    torch.testing.assert_close(known, torch.tensor(list(curvature.values())), rtol=1e-3, atol=1e-3)
    for name, item in items.items():
        item.offset.grad = torch.ones(16) * (2.0 if name == "b3" else 1.0)
    assert optimizer.chosen() == [0]
