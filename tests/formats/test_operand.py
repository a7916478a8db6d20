"""Packed tables, tied heads and experts inside transformers' own modules, forwards untouched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GptOssConfig, MixtralConfig, Qwen3MoeConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from blockwright.errors import FormatError
from blockwright.formats import (
    ExpertStack,
    FormatLinear,
    PackedOperand,
    install_experts,
    install_linear,
    install_operand,
    install_table,
)
from blockwright.formats.int import IntFormat
from blockwright.types import GridSolution

E, HIDDEN, INNER, TOKENS, TOP = 4, 64, 32, 6, 2


def pack(W_OI: Tensor, name: str = "int4-g32") -> FormatLinear:
    format = IntFormat.parse(name)
    grid = format.fit_grid(W_OI.float())
    solution = GridSolution(codes_OI=grid.encode(W_OI, slice(None)), grid=grid)
    return format.pack(solution, None, W_OI.dtype)


def packed_linear(shape: tuple[int, int] = (48, 64), name: str = "int4-g32") -> FormatLinear:
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return pack(W.bfloat16(), name)


# -- the operand


def test_an_operand_describes_itself_as_the_parameter_did() -> None:
    operand = PackedOperand(packed_linear())
    assert operand.shape == operand.size() == (48, 64)
    assert operand.t().shape == operand.T.shape == (64, 48)
    assert (operand.size(0), operand.size(-1)) == (48, 64)
    assert (operand.ndim, operand.dim(), operand.numel()) == (2, 2, 48 * 64)
    assert operand.dtype == torch.bfloat16
    assert operand.device.type == "cpu"
    assert torch.equal(operand.t().dequantize(), operand.dequantize().t())
    assert "int4-g32" in repr(operand)


def test_every_way_to_multiply_gives_the_packed_product() -> None:
    packed = packed_linear()
    operand: Any = PackedOperand(packed)
    x = torch.randn(2, 3, 64).bfloat16()
    bias = torch.randn(48).bfloat16()
    expected = packed(x)
    assert torch.equal(F.linear(x, operand), expected)
    assert torch.equal(F.linear(x, weight=operand, bias=bias), expected + bias)
    assert torch.equal(x @ operand.t(), expected)
    assert torch.equal(torch.matmul(x, operand.T), expected)
    assert torch.equal(x.matmul(operand.T), expected)
    assert torch.equal(torch.mm(x[0], operand.T), expected[0])


def test_looking_up_gives_the_dequantized_rows() -> None:
    packed = packed_linear()
    ids = torch.tensor([[1, 47, 0], [1, 1, 2]])
    operand: Any = PackedOperand(packed)
    rows = F.embedding(ids, operand, padding_idx=0)
    assert torch.equal(rows, packed.dequantize()[ids].bfloat16())


def test_a_compiled_look_up_is_one_graph() -> None:
    embedding = nn.Embedding(96, 64)
    packed = packed_linear((96, 64))
    install_table(embedding, packed)
    index = torch.tensor([[3, 0], [95, 3]])
    compiled = torch.compile(embedding, backend="eager", fullgraph=True)
    assert torch.equal(compiled(index), embedding(index))


def test_what_a_packed_weight_cannot_do_is_refused_by_name() -> None:
    operand: Any = PackedOperand(packed_linear())
    x = torch.randn(3, 64).bfloat16()
    with pytest.raises(TypeError, match="add of a packed weight is not defined"):
        torch.add(x, operand)
    with pytest.raises(TypeError, match=r"packed weight \[in, out\] on its right side"):
        torch.matmul(x, operand)
    with pytest.raises(TypeError, match="for @"):
        x @ operand
    with pytest.raises(TypeError, match="this one is transposed"):
        F.linear(x, operand.t())
    with pytest.raises(TypeError, match="no max_norm"):
        F.embedding(torch.tensor([1]), operand, max_norm=1.0)


# -- linears and tables


def test_a_linear_is_replaced_by_path_or_by_name() -> None:
    inner = nn.Sequential(nn.Linear(64, 48), nn.ReLU())
    model = nn.ModuleDict({"inner": inner})
    packed = packed_linear()
    install_linear(model, "inner.0", packed)
    assert inner[0] is packed
    install_linear(inner, "1", packed)
    assert inner[1] is packed


def test_a_scaled_embedding_keeps_its_class_and_its_scale() -> None:
    table = Gemma3TextScaledWordEmbedding(48, 64, padding_idx=0, embed_scale=8.0).bfloat16()
    ids = torch.tensor([[5, 0, 47]])
    packed = pack(table.weight.detach(), "int8")
    nn.init.zeros_(table.weight)
    with torch.no_grad():
        table.weight.copy_(packed.dequantize())
        expected = table(ids)
    install_table(table, packed)
    assert torch.equal(table(ids), expected)
    assert type(table) is Gemma3TextScaledWordEmbedding
    assert not list(table.parameters())
    assert list(table.state_dict()) == ["packed.weight", "packed.scale"]


def test_a_tied_head_multiplies_with_the_table_and_stores_nothing() -> None:
    table, head = nn.Embedding(48, 64), nn.Linear(64, 48, bias=False)
    packed = packed_linear()
    install_table(table, packed)
    install_operand(head, "weight", packed)
    x = torch.randn(2, 64).bfloat16()
    assert torch.equal(head(x), packed(x))
    assert not head.state_dict()
    model = nn.ModuleList([table, head])
    assert list(model.state_dict()) == [f"0.packed.{name}" for name in packed.stored_names]
    copied: Any = copy.deepcopy(model)
    assert copied[1].weight.packed is copied[0].packed
    assert copied[1].weight.packed is not packed


def test_a_head_keeps_its_bias() -> None:
    head = nn.Linear(64, 48).bfloat16()
    packed = packed_linear()
    install_table(head, packed)
    x = torch.randn(2, 64).bfloat16()
    assert torch.equal(head(x), packed(x) + head.bias)


def test_a_weight_of_another_shape_is_refused() -> None:
    with pytest.raises(FormatError, match=r"\(48, 64\) does not fit weight of \(48, 32\)"):
        install_table(nn.Embedding(48, 32), packed_linear())


# -- experts


def experts_module(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "qwen3_moe":
        config = Qwen3MoeConfig(num_experts=E, hidden_size=HIDDEN, moe_intermediate_size=INNER)
        module: nn.Module = Qwen3MoeExperts(config)
    elif kind == "mixtral":
        module = MixtralExperts(
            MixtralConfig(num_local_experts=E, hidden_size=HIDDEN, intermediate_size=INNER)
        )
    else:
        module = GptOssExperts(
            GptOssConfig(num_local_experts=E, hidden_size=HIDDEN, intermediate_size=INNER)
        )
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    module.config = type("Config", (), {"_experts_implementation": "eager"})()
    return module.bfloat16().eval()


def routed() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(TOKENS, HIDDEN, generator=generator).bfloat16()
    chosen = torch.stack([torch.randperm(E, generator=generator)[:TOP] for _ in range(TOKENS)])
    return x, chosen, torch.rand(TOKENS, TOP, generator=generator).bfloat16()


def stack_of(parameter: nn.Parameter, transposed: bool, kept: int) -> ExpertStack:
    """All experts packed but one; the parameter itself is set to the packed values."""
    members: list[FormatLinear | Tensor] = []
    for expert, slice_ in enumerate(parameter.detach()):
        if expert == kept:
            members.append(slice_.clone())
            continue
        packed = pack(slice_.t() if transposed else slice_, "int4-g32" if expert else "int8")
        values = packed.dequantize()
        slice_.copy_(values.t() if transposed else values)
        members.append(packed)
    return ExpertStack(members, parameter.shape, parameter.dtype, transposed=transposed)


@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "gpt_oss"])
def test_experts_run_their_own_loop_on_packed_weights(kind: str) -> None:
    module, transposed = experts_module(kind), kind == "gpt_oss"
    stacks = {
        name: stack_of(getattr(module, name), transposed, kept=2)
        for name in ("gate_up_proj", "down_proj")
    }
    with torch.no_grad():
        expected = module(*routed())
        others = {name for name in module.state_dict() if name not in stacks}
        for name, stack in stacks.items():
            install_experts(module, name, stack)
        found = module(*routed())
    assert (found - expected).float().norm() < 2e-2 * expected.float().norm()
    names = {
        f"{parameter}_packed.{expert}.{name}"
        for parameter, stack in stacks.items()
        for expert, member in stack.named_children()
        for name in member.state_dict()
    }
    assert set(module.state_dict()) == others | names
    assert "down_proj_packed.2.weight" in names
    assert "down_proj_packed.1.zero_point" in names
    copied = copy.deepcopy(module)
    assert copied.down_proj is copied.down_proj_packed
    with torch.no_grad():
        assert torch.equal(copied(*routed()), found)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_stack_describes_itself_as_the_parameter_did(transposed: bool) -> None:
    shape = (2, 64, 48) if transposed else (2, 48, 64)
    stack = ExpertStack([packed_linear(), None], shape, torch.bfloat16, transposed=transposed)
    assert stack.shape == stack.size() == shape
    assert (stack.ndim, stack.dim(), len(stack), stack.size(0)) == (3, 3, 2, 2)
    assert stack.dtype == torch.bfloat16
    assert stack.device.type == "cpu"
    operand, kept = stack[torch.tensor(0)], stack[1]
    assert isinstance(operand, PackedOperand)
    assert isinstance(kept, nn.Parameter)
    assert operand.shape == kept.shape == shape[1:]
    assert (kept.dtype, kept.device.type) == (torch.bfloat16, "meta")


def test_stacks_refuse_what_does_not_fit() -> None:
    packed = packed_linear()
    with pytest.raises(FormatError, match="1 experts do not fill"):
        ExpertStack([packed], (2, 48, 64), torch.bfloat16)
    with pytest.raises(FormatError, match=r"expert 1 of \(48, 64\) does not fit"):
        ExpertStack([None, packed], (2, 64, 48), torch.bfloat16)
    with pytest.raises(TypeError, match="expert 0 is a Linear"):
        ExpertStack([nn.Linear(64, 48)], (1, 48, 64), torch.bfloat16)
    module = experts_module("mixtral")
    with pytest.raises(FormatError, match="does not fit down_proj"):
        install_experts(module, "down_proj", ExpertStack([packed], (1, 48, 64), torch.bfloat16))


def test_gathering_several_experts_at_once_names_the_remedy() -> None:
    stack = ExpertStack([packed_linear()], (1, 48, 64), torch.bfloat16)
    with pytest.raises(FormatError, match="experts_implementation='eager'"):
        stack[torch.tensor([0, 0])]
