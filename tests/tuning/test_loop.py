"""The tuner against closed forms, and the guard that keeps the best state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from blockwright.errors import NumericalError
from blockwright.tuning import Example, TrainedTensor, TuningSettings, Values, tune
from blockwright.tuning.loop import check_steps, rate_at, shuffled, split_batches

OUT, IN, BATCHES = 8, 12, 10
SETTINGS = TuningSettings(steps=300, rate=0.02)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


CODES = torch.randint(-3, 4, (OUT, IN), generator=generator(5)).float()
WEIGHT = CODES * (0.5 + torch.rand(OUT, 1, generator=generator(6))) + 0.3 * torch.randn(
    OUT, IN, generator=generator(7)
)


def rows(values: Values, inputs: Tensor, arguments: Any) -> Tensor:
    """A linear whose weight is codes times one scale per row."""
    return inputs @ (CODES * values["scale"][:, None]).T


def batches(count: int = BATCHES) -> list[Example]:
    inputs = torch.randn(count, 2, 16, IN, generator=generator(1))
    return [Example(inputs=x, target=x @ WEIGHT.T) for x in inputs]


def best_scales(examples: Sequence[Example]) -> Tensor:
    """Least squares, row by row: <y, z> / <z, z> with z the codes' outputs."""
    z = torch.cat([(e.inputs @ CODES.T).flatten(0, 1) for e in examples])
    y = torch.cat([e.target.flatten(0, 1) for e in examples])
    return (y * z).sum(0) / (z * z).sum(0)


def scales(dtype: torch.dtype = torch.float32) -> dict[str, TrainedTensor]:
    return {"scale": TrainedTensor(torch.ones(OUT), dtype=dtype)}


def test_scales_reach_the_least_squares_solution() -> None:
    examples = batches()
    training, _ = split_batches(len(examples), "here")
    found = tune(rows, scales(), examples, SETTINGS, where="here").tensors["scale"]
    expected = best_scales([examples[index] for index in training])
    assert torch.allclose(found, expected, rtol=0.02)


def test_tuned_tensors_have_the_stored_dtype_and_shape() -> None:
    found = tune(rows, scales(torch.bfloat16), batches(), SETTINGS, where="here")
    assert found.tensors["scale"].dtype == torch.bfloat16
    assert found.tensors["scale"].shape == (OUT,)
    assert found.loss < 0.5 * found.start_loss


def test_same_seed_same_bits_and_another_seed_others() -> None:
    runs = [
        tune(rows, scales(), batches(), replace(SETTINGS, steps=9, seed=seed), where="here")
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].tensors["scale"], runs[1].tensors["scale"])
    assert not torch.equal(runs[0].tensors["scale"], runs[2].tensors["scale"])


def test_what_training_makes_worse_on_held_batches_is_not_kept() -> None:
    """The batches that train ask for something else than those that judge."""
    examples = [
        example if index % 5 == 4 else replace(example, target=-example.target)
        for index, example in enumerate(batches())
    ]
    trained = {"scale": TrainedTensor(best_scales(batches()))}
    found = tune(rows, trained, examples, SETTINGS, where="here")
    assert found.step == 0
    assert found.loss == found.start_loss
    assert torch.equal(found.tensors["scale"], best_scales(batches()))


def test_the_best_moment_is_kept_and_not_the_last() -> None:
    """Training goes from 1 to 2 and passes the 1.5 that held batches ask for."""
    wanted = [1.5 if index % 5 == 4 else 2.0 for index in range(BATCHES)]
    examples = [
        replace(example, target=scale * example.inputs @ CODES.T)
        for scale, example in zip(wanted, batches(), strict=True)
    ]
    settings = TuningSettings(steps=200, rate=0.02, checks=50)
    found = tune(rows, scales(), examples, settings, where="here")
    assert 0 < found.step < 200
    assert torch.allclose(found.tensors["scale"], torch.tensor(1.5), atol=0.05)


def broken_after(calls: int) -> Any:
    """A forward whose outputs are NaN from a training call on."""
    seen = [0]

    def forward(values: Values, inputs: Tensor, arguments: Any) -> Tensor:
        seen[0] += torch.is_grad_enabled()
        output = rows(values, inputs, arguments)
        return output * math.nan if seen[0] > calls else output

    return forward


def test_a_loss_that_is_not_finite_falls_back_to_the_last_good_state() -> None:
    settings = TuningSettings(steps=20, rate=0.02, checks=20)
    found = tune(broken_after(7), scales(), batches(), settings, where="here")
    assert found.step == 7
    assert torch.isfinite(found.tensors["scale"]).all()


def test_a_start_that_is_not_finite_names_the_block() -> None:
    with pytest.raises(NumericalError, match="block 3"):
        tune(broken_after(-1), scales(), batches(), SETTINGS, where="block 3")


def test_one_batch_is_too_few() -> None:
    with pytest.raises(NumericalError, match=r"block 3.*two batches"):
        tune(rows, scales(), batches(1), SETTINGS, where="block 3")


def test_no_batch_both_trains_and_judges() -> None:
    for count in range(2, 40):
        training, held = split_batches(count, "here")
        assert sorted([*training, *held]) == list(range(count))
        assert 1 <= len(held) <= max(1, count // 5)


def test_every_batch_comes_once_before_one_comes_again() -> None:
    order = list(shuffled([3, 5, 8], replace(SETTINGS, steps=8), generator()))
    assert len(order) == 8
    assert sorted(order[:3]) == sorted(order[3:6]) == [3, 5, 8]


def test_the_rate_falls_to_a_twentieth() -> None:
    rates = [rate_at(step, SETTINGS) for step in range(1, SETTINGS.steps + 1)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == SETTINGS.rate
    assert rates[-1] == pytest.approx(SETTINGS.rate / 20)


@pytest.mark.parametrize(("steps", "checks"), [(1, 4), (7, 3), (64, 4), (5, 0)])
def test_the_last_step_is_checked(steps: int, checks: int) -> None:
    assert max(check_steps(TuningSettings(steps=steps, rate=1.0, checks=checks))) == steps


def test_input_mix_takes_elements_of_both_inputs() -> None:
    """With probability 1 training sees the original's inputs alone."""
    shifted = [
        replace(example, inputs=torch.zeros_like(example.inputs), original_inputs=example.inputs)
        if index % 5 != 4
        else example
        for index, example in enumerate(batches())
    ]
    found = tune(rows, scales(), shifted, replace(SETTINGS, input_mix=1.0), where="here")
    plain = tune(rows, scales(), batches(), SETTINGS, where="here")
    assert found.loss == pytest.approx(plain.loss, rel=0.05)
    assert tune(rows, scales(), shifted, SETTINGS, where="here").step == 0


def test_the_second_target_takes_its_share() -> None:
    examples = [
        example
        if index % 5 == 4
        else replace(example, target=-example.target, second_target=example.target)
        for index, example in enumerate(batches())
    ]
    second = replace(SETTINGS, second_target_share=1.0)
    plain = tune(rows, scales(), batches(), SETTINGS, where="here")
    found = tune(rows, scales(), examples, second, where="here")
    assert found.loss == pytest.approx(plain.loss)
    assert tune(rows, scales(), examples, SETTINGS, where="here").step == 0


def test_an_extra_term_is_trained_on_and_does_not_judge() -> None:
    seen: list[float] = []

    def pull(values: Values, progress: float) -> Tensor:
        seen.append(progress)
        return 1e3 * (values["scale"] - 7).square().mean()

    settings = replace(SETTINGS, steps=10)
    found = tune(rows, scales(), batches(), settings, where="here", extra_loss=pull)
    assert seen == [step / 10 for step in range(1, 11)]
    plain = tune(rows, scales(), batches(), settings, where="here")
    assert found.start_loss == plain.start_loss
    assert found.tensors["scale"].mean() > plain.tensors["scale"].mean()
