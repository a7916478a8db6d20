"""What one trained tensor is rounded to, and how far a step moves it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blockwright.tuning import TrainedTensor


@pytest.fixture
def start() -> Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def test_the_start_is_given_back_bit_for_bit(start: Tensor) -> None:
    trained = TrainedTensor(start)
    assert torch.equal(trained.stored(), start)
    assert torch.equal(trained.value(), start.float())


def test_the_start_is_not_modified(start: Tensor) -> None:
    before = start.clone()
    trained = TrainedTensor(start)
    with torch.no_grad():
        trained.offset.add_(0.5)
    assert torch.equal(start, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_value_is_always_one_that_can_be_stored(start: Tensor, dtype: torch.dtype) -> None:
    trained = TrainedTensor(start, dtype=dtype)
    with torch.no_grad():
        trained.offset.uniform_(-0.3, 0.3, generator=torch.Generator().manual_seed(1))
    assert trained.stored().dtype == dtype
    assert torch.equal(trained.value(), trained.stored().float())


def test_rounding_passes_gradients_through(start: Tensor) -> None:
    trained = TrainedTensor(start)
    weights = torch.arange(30.0).view(6, 5)
    (trained.value() * weights).sum().backward()
    assert trained.offset.grad is not None
    assert torch.equal(trained.offset.grad, weights * trained.unit)


def test_steps_are_relative_to_the_tensors_size(start: Tensor) -> None:
    exact = start.float()
    trained, larger = TrainedTensor(exact), TrainedTensor(8 * exact)
    with torch.no_grad():
        trained.offset.fill_(0.25)
        larger.offset.fill_(0.25)
    assert torch.equal(8 * trained.stored(), larger.stored())


def test_small_elements_move_relative_to_the_whole_tensor_and_zeros_stay() -> None:
    trained = TrainedTensor(torch.tensor([0.0, 1.0, -1.0]))
    assert 0 < trained.unit[0] < 0.1
    assert trained.unit[1:].tolist() == [1.0, 1.0]
    assert TrainedTensor(torch.zeros(3)).unit.tolist() == [0.0, 0.0, 0.0]
