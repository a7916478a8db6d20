"""Claims about adapters and the optimizers that train them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from benchmarks.optimizers import state_share
from torch import Tensor, nn

from blockwright.heal import Attachment, HostKind
from blockwright.heal.adapter import Setting
from blockwright.heal.adapters.cfsp import block_ranks
from blockwright.heal.adapters.loldu import unit_factors
from blockwright.heal.adapters.s2ft import Slice
from blockwright.registry import adapter_named
from tests.claims.ledger import Grade, claim
from tests.heal.hosts import IN, OUT, inputs, model_with


def attached(name: str, kind: HostKind = HostKind.DENSE) -> tuple[nn.Module, Attachment]:
    model, host = model_with(kind)
    adapter = adapter_named(name)
    (found,) = adapter.attach(model, [host], Setting(seed=1, angles=lambda: [0.3]))
    return model, found


@torch.no_grad()
def moved(attachment: Attachment, size: float = 0.01) -> Attachment:
    draw = torch.Generator().manual_seed(7)
    for item in attachment.trained.values():
        item.offset += size * item.pace * torch.randn(item.offset.shape, generator=draw)
    return attachment


def numbers(attachment: Attachment) -> int:
    return sum(item.offset.numel() for item in attachment.trained.values())


@claim(
    method="lora",
    says="it trains R (I + O) numbers, and merging is exact",
    measures="P over the formula; largest change of outputs by merging, fp32, rank 8",
    grade=Grade.HARD,
    at_least=0.0,
    at_most=1.0,
)
def test_lora_counts_and_merges() -> Iterator[float]:
    model, attachment = attached("lora@rank=8")
    yield numbers(attachment) / (8 * (IN + OUT))
    moved(attachment)
    y = model.get_submodule("block.linear")(inputs())
    yield (attachment.merged()(inputs()) - y).abs().max().item() / 1e-4


@claim(
    method="miss",
    says="it is LoRA with identities for the fixed factor",
    measures="relative difference of the weight's change from D^T [I I ...], 64 inputs by 12",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_miss_is_lora_with_identities() -> Iterator[float]:
    _, attachment = attached("miss@rank=12")
    moved(attachment)
    change = attachment.effective() - attachment.host.weight()
    (shared,) = (item.value().detach() for item in attachment.trained.values())
    expected = shared.T @ torch.eye(12).repeat(1, 6)[:, :IN]
    yield ((change - expected).norm() / attachment.host.weight().norm()).item()


@claim(
    method="bone",
    says="its change is W B + B tile by tile",
    measures="largest difference from the formula, 4 tiles a row, tiles of 16",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_bone_is_its_formula() -> Iterator[float]:
    _, attachment = attached("bone@rank=16")
    moved(attachment)
    W_OI = attachment.host.weight()
    (B_GRR,) = (item.value().detach() for item in attachment.trained.values())
    tiles = W_OI.view(OUT // 16, 16, IN // 16, 16).transpose(1, 2)
    changed = tiles + tiles @ B_GRR[:, None] + B_GRR[:, None]
    expected = changed.transpose(1, 2).reshape(OUT, IN)
    yield (attachment.effective() - expected).abs().max().item()


@claim(
    method="dora",
    says="rows of the merged weight are as long as the trained lengths say",
    measures="largest relative difference of a row's length",
    grade=Grade.HARD,
    at_most=1e-5,
)
def test_dora_rows_have_the_trained_lengths() -> Iterator[float]:
    _, attachment = attached("dora@rank=4")
    moved(attachment)
    lengths = next(i.value() for n, i in attachment.trained.items() if "magnitude" in n)
    rows = attachment.effective().norm(dim=1)
    yield ((rows - lengths.detach()).abs() / rows).max().item()


@claim(
    method="blocklora",
    says="it trains R I / n + R O numbers; blocks of the rank are one LoRA of rank R / n",
    measures="P over the formula less 1; difference of mode=rank from the summed LoRA",
    grade=Grade.HARD,
    at_most=1e-6,
)
def test_blocklora_counts_and_is_a_summed_lora() -> Iterator[float]:
    _, attachment = attached("blocklora@rank=8,blocks=4")
    yield abs(numbers(attachment) / (8 * IN / 4 + 8 * OUT) - 1)
    _, other = attached("blocklora@rank=8,blocks=4,mode=rank")
    moved(other)
    values = {name: item.value().detach() for name, item in other.trained.items()}
    expected = 2.0 * values["up"].sum(0) @ values["down"]
    yield (other.effective() - other.host.weight() - expected).abs().max().item()


@claim(
    method="loldu",
    says="L, D and U give the weight back, and R numbers are trained",
    measures="relative error of P L D U; P over R less 1",
    grade=Grade.HARD,
    at_most=1e-4,
)
def test_loldu_is_a_decomposition() -> Iterator[float]:
    _, attachment = attached("loldu@rank=8")
    W_OI = attachment.host.weight()
    left, pivots, right = unit_factors(W_OI)
    yield ((left * pivots @ right - W_OI).norm() / W_OI.norm()).item()
    yield abs(numbers(attachment) / 8 - 1)


@claim(
    method="s2ft",
    says="nothing but the chosen channels changes, and only they are saved for the backward",
    measures="largest change elsewhere; saved floats of inputs / (1.1 x the chosen share)",
    grade=Grade.HARD,
    at_most=1.0,
)
def test_s2ft_changes_and_saves_its_slice_alone() -> Iterator[float]:
    _, attachment = attached("s2ft@share=0.125")
    moved(attachment)
    extra = next(m for m in attachment.module().modules() if isinstance(m, Slice))
    change = attachment.effective() - attachment.host.weight()
    change[:, extra.channels] = 0
    yield change.abs().max().item()
    x, saved = inputs(), list[Tensor]()

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attachment.module()(x)
    rows = len(x)
    floats = sum(t.numel() for t in saved if t.is_floating_point() and t.shape[0] == rows)
    yield floats / rows / (1.1 * len(extra.channels))


@claim(
    method="e2eqp",
    says="gradients of steps are those of the loss",
    measures="largest relative difference from central differences, int3-g32, fp32 steps",
    grade=Grade.HARD,
    at_most=1e-3,
)
def test_gradients_of_steps_match_differences() -> Iterator[float]:
    _, host = model_with(HostKind.QUANTIZED)
    packed = host.packed
    assert packed is not None
    packed.restore()
    scale = packed.stored_tensor("scale").float()

    def loss(values: Tensor) -> Tensor:
        packed.replace_stored("scale", values)
        return (inputs().double() @ packed.differentiable_weight().double().T).square().mean()

    leaf = scale.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    for row in range(4):
        step = torch.zeros_like(scale)
        step[row, 0] = 1e-3 * scale[row, 0]
        with torch.no_grad():
            slope = (loss(scale + step) - loss(scale - step)) / (2 * step[row, 0])
        yield abs(slope.item() / leaf.grad[row, 0].item() - 1)


@claim(
    method="cfsp",
    says="ranks keep their sum and follow the order of the angles",
    measures="sum over the budget less 1, and inversions, 4 draws of 12 blocks",
    grade=Grade.HARD,
    at_most=0.0,
)
def test_ranks_follow_importance() -> Iterator[float]:
    for seed in range(4):
        angles = torch.rand(12, generator=torch.Generator().manual_seed(seed)).tolist()
        ranks = block_ranks(angles, 8)
        yield abs(sum(ranks) / 96 - 1)
        ordered = [rank for _, rank in sorted(zip(angles, ranks, strict=True))]
        yield float(sum(a > b for a, b in pairwise(ordered)))


@claim(
    method="adam8bit",
    family="optimizers",
    paper="Dettmers et al., 8-bit Optimizers via Block-wise Quantization, ICLR 2022",
    says="states of 8 bits take about a quarter of fp32's",
    measures="bytes of Adam's and SGD's states / fp32's, tensors of 4,096 elements or more of the"
    " bundled model",
    grade=Grade.HARD,
    at_most=0.256,
)
def test_states_take_a_quarter() -> Iterator[float]:
    yield from (state_share(name) for name in ("adam", "sgd"))
