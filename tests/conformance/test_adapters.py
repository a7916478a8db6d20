"""The laws of adapters, over everything registered."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from blockwright.formats import FormatLinear
from blockwright.heal import Adapter, Attachment, Family, Host, HostKind
from blockwright.heal.adapter import Setting
from blockwright.registry import adapter_class, adapter_named, adapter_names
from tests.heal.hosts import PATH, inputs, model_with

CASES = [
    (name, kind)
    for name in adapter_names()
    for kind in sorted(adapter_class(name).hosts - {HostKind.TABLE})
]
SETTING = Setting(seed=3, angles=lambda: [0.3])


def attached(name: str, kind: HostKind) -> tuple[nn.Module, Host, Attachment, Tensor]:
    """A model with an adapter, and what it gave before."""
    model, host = model_with(kind)
    before = outputs(model).clone()
    adapter = adapter_named(f"{name}@rank=4" if hasattr(adapter_class(name), "rank") else name)
    assert adapter.refusal(host) == ""
    (found,) = adapter.attach(model, [host], SETTING)
    return model, host, found, before


@torch.no_grad()
def outputs(model: nn.Module) -> Tensor:
    y: Tensor = model.get_submodule(PATH)(inputs())
    return y


@torch.no_grad()
def moved(attachment: Attachment) -> None:
    """Random updates of everything that is trained, in place."""
    draw = torch.Generator().manual_seed(7)
    for name, item in attachment.trained.items():
        size = 0.03 if name in attachment.placed else 0.001
        item.offset += size * item.pace * torch.randn(item.offset.shape, generator=draw)
        if name in attachment.placed:
            owner, leaf = attachment.placed[name]
            setattr(owner, leaf, item.value())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_attaching_changes_nothing(name: str, kind: HostKind) -> None:
    model, _, _, before = attached(name, kind)
    assert (outputs(model) - before).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_merged_and_unmerged_outputs_agree(name: str, kind: HostKind) -> None:
    model, _, attachment, before = attached(name, kind)
    moved(attachment)
    unmerged = outputs(model)
    assert (unmerged - before).abs().max() > 1e-5
    model.set_submodule(PATH, attachment.merged())
    assert (outputs(model) - unmerged).abs().max() <= 1e-4


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_effective_weight_is_what_multiplies(name: str, kind: HostKind) -> None:
    model, host, attachment, _ = attached(name, kind)
    moved(attachment)
    y = outputs(model)
    bias = host.module.bias
    assert isinstance(bias, Tensor)
    assert (inputs() @ attachment.effective().T + bias - y).abs().max() <= 1e-4


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_unmerging_brings_the_old_weight_back(name: str, kind: HostKind) -> None:
    """The host's own weight is not touched by merging, so that taking updates back gives it."""
    model, _, attachment, before = attached(name, kind)
    start = {name: item.offset.detach().clone() for name, item in attachment.trained.items()}
    moved(attachment)
    attachment.merged()
    attachment.effective()
    put(attachment, start)
    assert (outputs(model) - before).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_what_is_trained_can_be_saved_and_loaded(name: str, kind: HostKind) -> None:
    model, _, attachment, _ = attached(name, kind)
    moved(attachment)
    saved = {name: item.offset.detach().clone() for name, item in attachment.trained.items()}
    wanted = outputs(model)
    other, _, again, _ = attached(name, kind)
    assert again.trained.keys() == saved.keys()
    put(again, saved)
    assert torch.equal(outputs(other), wanted)


@torch.no_grad()
def put(attachment: Attachment, saved: dict[str, Tensor]) -> None:
    for name, item in attachment.trained.items():
        item.offset.copy_(saved[name])
        if name in attachment.placed:
            owner, leaf = attachment.placed[name]
            setattr(owner, leaf, item.value())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_only_what_is_trained_asks_for_gradients(name: str, kind: HostKind) -> None:
    model, _, attachment, _ = attached(name, kind)
    trained = {id(item.offset) for item in attachment.trained.values()}
    asking = {id(p) for p in model.parameters() if p.requires_grad}
    assert asking <= trained
    assert all(item.offset.requires_grad for item in attachment.trained.values())


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_gradients_reach_all_that_is_trained_and_the_inputs(name: str, kind: HostKind) -> None:
    model, _, attachment, _ = attached(name, kind)
    with torch.no_grad():
        moved(attachment)
    for key, (owner, leaf) in attachment.placed.items():
        setattr(owner, leaf, attachment.trained[key].value())
    x = inputs().requires_grad_()
    model.get_submodule(PATH)(x).square().sum().backward()
    assert x.grad is not None
    for item in attachment.trained.values():
        assert item.offset.grad is not None
        assert item.offset.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_folder_stores_what_was_merged(name: str, kind: HostKind) -> None:
    _, host, attachment, _ = attached(name, kind)
    moved(attachment)
    merged, found = attachment.merged(), attachment.replacement(torch.float32)
    if isinstance(merged, FormatLinear):
        stored = merged.stored_weight()
        for tensor_name, tensor in found.tensors.items():
            assert torch.equal(stored[tensor_name].to(tensor.dtype), tensor)
        changed = merged.format != (host.packed.format if host.packed else None)
        assert (found.spec == merged.format.spec()) if changed else found.spec is None
    else:
        assert torch.equal(found.tensors["weight"], merged.get_parameter("weight"))


@pytest.mark.parametrize("name", adapter_names())
def test_an_adapter_has_one_family_and_a_paper(name: str) -> None:
    cls: type[Adapter] = adapter_class(name)
    assert cls.family in Family
    assert cls.paper
    assert cls.hosts
