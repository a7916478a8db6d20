"""The training loop: keeps the best, resumes with the same values, rolls back."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright.errors import ModelError
from blockwright.heal import Healed, HealSettings, State, Training, check_steps, rows_of_step, train
from blockwright.heal.loop import MOST_ROLLBACKS, rate_of
from blockwright.progress import SilentProgress
from blockwright.tuning import FreeTensor
from blockwright.tuning.optimizers import optimizer_named

TARGET = torch.linspace(-1, 1, 16)


class Toy:
    """Stands for a student: one vector, pulled towards a target."""

    def __init__(self) -> None:
        self.item = FreeTensor(torch.zeros(16))
        self.trained = {"w": self.item}

    def place(self) -> None:
        """The vector is its own place."""

    def loss(self) -> Tensor:
        return (self.item.value() - TARGET).square().mean()


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.told: list[str] = []

    def note(self, text: str) -> None:
        self.told.append(text)


def trained(
    folder: Path,
    steps: int = 24,
    spoil: Callable[[int], bool] = lambda step: False,
    judge: Callable[[Toy], float] | None = None,
    stage: Any = None,
) -> Healed:
    toy = Toy()

    def gradients(step: int) -> float:
        loss = toy.loss() * (math.nan if spoil(step) else 1.0)
        loss.backward()
        return loss.item()

    training = Training(
        student=toy,  # type: ignore[arg-type]
        optimizer=optimizer_named("adam", toy.trained),
        gradients=gradients,
        judge=lambda: judge(toy) if judge else toy.loss().item(),
        folder=folder,
        settings=HealSettings(steps=steps, rate=0.1, checks=4),
    )
    return train(training, stage or SilentProgress())


def test_training_lowers_the_loss_and_keeps_the_best(tmp_path: Path) -> None:
    healed = trained(tmp_path)
    assert healed.progress.best_loss < 0.1 * healed.progress.start_loss
    assert healed.best["w"].sub(TARGET).square().mean().item() == healed.progress.best_loss


def test_a_start_that_nothing_beats_is_kept(tmp_path: Path) -> None:
    healed = trained(tmp_path, judge=lambda toy: 1.0 + toy.item.value().abs().sum().item())
    assert healed.best == {}
    assert (healed.progress.best_step, healed.progress.best_loss) == (0, 1.0)


@pytest.mark.parametrize("killed_at", [1, 7, 13, 24])
def test_a_killed_run_ends_with_the_same_values(tmp_path: Path, killed_at: int) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = trained(tmp_path / "a")

    def die(step: int) -> bool:
        if step == killed_at:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "b", spoil=die)
    again = trained(tmp_path / "b")
    assert torch.equal(again.best["w"], whole.best["w"])
    assert again.progress == whole.progress


def test_a_loss_that_is_not_finite_rolls_back_and_says_so(tmp_path: Path) -> None:
    notes, spoilt = Notes(), iter([True])
    healed = trained(tmp_path, spoil=lambda step: step == 9 and next(spoilt, False), stage=notes)
    assert healed.progress.rollbacks == 1
    assert healed.progress.best_loss < 0.5 * healed.progress.start_loss
    assert notes.told == [
        "step 9: the loss is not finite; back to the state behind step 6, at half the rate"
    ]


def test_a_loss_that_stays_not_finite_ends_with_the_best_so_far(tmp_path: Path) -> None:
    notes = Notes()
    healed = trained(tmp_path, spoil=lambda step: step == 9, stage=notes)
    assert healed.progress.step == 6
    assert healed.progress.best_step == 6
    assert len(notes.told) == healed.progress.rollbacks == MOST_ROLLBACKS + 1


def test_a_state_that_judges_not_finite_is_never_gone_back_to(tmp_path: Path) -> None:
    notes, spoilt = Notes(), iter([False, False, True])
    healed = trained(
        tmp_path,
        judge=lambda toy: math.nan if next(spoilt, False) else toy.loss().item(),
        stage=notes,
    )
    assert notes.told == [
        "step 12: the loss is not finite; back to the state behind step 6, at half the rate"
    ]
    assert healed.progress.rollbacks == 1
    assert healed.progress.step == healed.progress.best_step == 24


def test_a_start_without_a_finite_loss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no finite loss"):
        trained(tmp_path, judge=lambda toy: math.nan)


def test_a_state_file_that_is_damaged_is_not_read(tmp_path: Path) -> None:
    trained(tmp_path)
    assert State.read(tmp_path) is not None
    (tmp_path / "state.safetensors").write_bytes(b"nonsense")
    assert State.read(tmp_path) is None


def test_every_row_comes_once_before_one_comes_again() -> None:
    rows = torch.cat([rows_of_step(step, 10, 4, seed=0) for step in range(1, 6)])
    assert sorted(rows[:10].tolist()) == list(range(10))
    assert sorted(rows[10:20].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:20].tolist()


def test_the_rate_rises_and_falls() -> None:
    settings = HealSettings(steps=100, rate=1.0)
    rates = [rate_of(step, settings) for step in range(1, 101)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)
    assert check_steps(HealSettings(steps=5, rate=1.0, checks=8)) == {1, 2, 3, 4, 5}
