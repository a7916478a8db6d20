"""A student: what is trained is what multiplies; blocks that run again give the same gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blockwright.anatomy import find_sites
from blockwright.heal import HostKind, Student
from tests.models import random_model

IDS = torch.arange(3, 35)[None]


def student(kind: str = "llama") -> tuple[PreTrainedModel, Student]:
    model = random_model(kind)
    dtypes = dict.fromkeys(dict(model.named_parameters()), torch.float32)
    return model, Student(model, find_sites(model), dtypes)


def gradients(student: Student) -> dict[str, Tensor]:
    student.place()
    student.outputs({"input_ids": IDS}).square().mean().backward()
    found = {name: item.offset.grad for name, item in student.trained.items()}
    assert all(gradient is not None for gradient in found.values())
    return {name: gradient for name, gradient in found.items() if gradient is not None}


def saved_bytes(student: Student) -> int:
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    student.place()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        student.outputs({"input_ids": IDS})
    return total


def test_a_student_computes_what_its_model_computes() -> None:
    model, healed = student()
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        healed.train_parameters(healed.stored_parameters())
        healed.place()
        assert torch.equal(healed.outputs({"input_ids": IDS}), expected)
    assert {host.kind for host in healed.hosts} == {HostKind.DENSE}
    assert len(healed.hosts) == 21


def test_trained_values_multiply_and_tied_tables_are_one() -> None:
    model, healed = student("gpt2")
    names = list(healed.stored_parameters())
    assert "transformer.wte.weight" in names
    assert "lm_head.weight" not in names
    healed.train_parameters(names)
    found = gradients(healed)
    assert found.keys() == set(names)
    item = healed.trained["transformer.wte.weight"]
    with torch.no_grad():
        before = healed.outputs({"input_ids": IDS}).clone()
        item.offset += 0.1
        healed.place()
        after = healed.outputs({"input_ids": IDS})
    assert not torch.allclose(before, after)
    assert torch.equal(model.get_output_embeddings().weight, item.value())


def test_blocks_that_run_again_give_the_same_gradients_and_save_less() -> None:
    _, plain = student()
    _, again = student()
    for each in (plain, again):
        each.train_parameters(n for n, t in each.stored_parameters().items() if t.ndim == 1)
    again.recompute(again.blocks("model.layers"))
    expected, found = gradients(plain), gradients(again)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    assert saved_bytes(again) < 0.5 * saved_bytes(plain)


def test_what_is_trained_is_told_by_block() -> None:
    _, healed = student()
    healed.train_parameters(["model.norm.weight", "model.layers.2.input_layernorm.weight"])
    blocks = healed.blocks_of_trained("model.layers")
    assert blocks == {"model.norm.weight": "", "model.layers.2.input_layernorm.weight": "2"}


def test_angles_are_between_nothing_and_a_half_turn() -> None:
    _, healed = student()
    angles = healed.angles("model.layers", {"input_ids": IDS})
    assert len(angles) == 3
    assert all(0 < angle < 1 for angle in angles)
