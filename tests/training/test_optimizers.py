"""AdamW with moments in 8 bits: the updates of torch's, less memory, resumable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from blockwright.errors import TrainingError
from blockwright.training import loop
from blockwright.training.optimizers import new_optimizer
from tests.training.cases import settings, trained


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 64)


def stepped(eight_bit: bool, steps: int) -> nn.Linear:
    module = linear()
    optimizer = new_optimizer(module, settings(eight_bit=eight_bit, weight_decay=0.1))
    draw = torch.Generator().manual_seed(1)
    for step in range(steps):
        for parameter in module.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()
        optimizer.zero_grad()
    return module


def test_the_first_step_is_that_of_torchs_adamw() -> None:
    for ours, theirs in zip(
        stepped(True, 1).parameters(), stepped(False, 1).parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_later_steps_are_near_it() -> None:
    modules = (linear(), stepped(True, 8), stepped(False, 8))
    start, ours, theirs = (module.weight.detach() for module in modules)
    assert (ours - theirs).norm() < 0.03 * (theirs - start).norm()
    assert not torch.equal(ours, theirs)


def test_a_training_of_8_bits_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = trained(None, eight_bit=True)
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(KeyboardInterrupt):
        killed_at(6, checkpoint, monkeypatch)
    again, _ = trained(None, eight_bit=True, checkpoint=checkpoint)
    for name, parameter in whole.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name


def killed_at(step: int, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = loop._Run.advance

    def until(run: loop._Run) -> float:
        if run.step == step:
            raise KeyboardInterrupt
        return advance(run)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "advance", until)
        trained(None, eight_bit=True, checkpoint=checkpoint)


def test_recipes_are_refused() -> None:
    with pytest.raises(TrainingError, match="leave eight_bit out"):
        trained("srste", eight_bit=True)
