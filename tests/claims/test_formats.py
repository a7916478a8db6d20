"""Laws of the formats: exactness and bytes, measured over every name a format offers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load, load_file, save
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.assemble import Layout, assemble
from blockwright.formats import FormatLinear
from blockwright.formats.bf import BfFormat
from blockwright.formats.int import IntFormat
from blockwright.pipeline.opening import open_original
from blockwright.types import DenseSolution, GridSolution
from tests.claims.ledger import Grade, claim
from tests.conftest import ModelFolder
from tests.layers import outlier_layer

INTS = IntFormat.every()


def filled(format: IntFormat, W_OI: Tensor) -> tuple[FormatLinear, Tensor]:
    """A packed module, and the values that were solved for it."""
    grid = format.fit_grid(W_OI)
    solution = GridSolution(codes_OI=grid.encode(W_OI, slice(None)), grid=grid)
    return format.pack(solution, None, torch.bfloat16), solution.weight()


def unused_tensors(*_: object) -> dict[str, Tensor]:
    raise AssertionError("nothing is packed in this folder")


def written(model: Path, out: Path, kept_blocks: list[int]) -> Path:
    """A model folder assembled without any packed site."""
    original = open_original(str(model), None)
    layout = Layout(original.skeleton, {}, kept_blocks)
    assemble(layout, original.parameters, original.checkpoint, unused_tensors, out)
    return out


@claim(
    method="int",
    says="b bits per weight, and 16 (asymmetric: 16 + b) bits per group",
    measures="stored bits - the formula's, [64, 1024], int2 to int8, all groups",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_int_bits_follow_the_formula() -> Iterator[float]:
    out_features, in_features = 64, 1024
    for format in INTS:
        per_group = 16 + (0 if format.symmetric else format.bits)
        groups = in_features // (format.group_size or in_features)
        bits = out_features * (in_features * format.bits + groups * per_group)
        yield 8 * format.stored_bytes((out_features, in_features)) - bits


@claim(
    method="int",
    says="declared bytes are the bytes of the stored tensors",
    measures="difference in bytes, [256, 256] and [7, 384], int2 to int8, all groups",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_int_declares_the_bytes_it_stores() -> Iterator[float]:
    W_OI = torch.randn(256, 384, generator=torch.Generator().manual_seed(0))
    for format in INTS:
        for W in (W_OI[:, :256].contiguous(), W_OI[:7].contiguous()):
            tensors = filled(format, W)[0].stored_tensors().values()
            yield sum(tensor.nbytes for tensor in tensors) - format.stored_bytes(
                (W.shape[0], W.shape[1])
            )


@claim(
    method="int",
    says="storing loses nothing: saved and loaded, it decodes to the values that were solved",
    measures="values that differ, outlier-layer, int2 to int8, all groups",
    grade=Grade.HARD,
    at_most=0,
)
def test_int_stores_exactly_what_was_solved(seed: int) -> Iterator[float]:
    W_OI = outlier_layer(seed).W_OI
    for format in INTS:
        packed, values = filled(format, W_OI)
        again = format.empty((256, 256), bias=False, dtype=torch.bfloat16)
        again.load_stored(load(save(packed.stored_tensors())))
        yield (again.dequantize() != values).sum().item()


@claim(
    method="bf",
    paper="none; the type of most checkpoints",
    says="a bfloat16 weight is stored as it is, in 16 bits",
    measures="values that differ, and bytes - 2 per weight, outlier-layer in bfloat16",
    grade=Grade.HARD,
    at_least=0,
    at_most=0,
)
def test_bf_stores_bfloat16_as_it_is(seed: int) -> Iterator[float]:
    values = outlier_layer(seed).W_OI.bfloat16()
    format = BfFormat()
    packed = format.pack(DenseSolution(values_OI=values), None, torch.bfloat16)
    again = format.empty((256, 256), bias=False, dtype=torch.bfloat16)
    again.load_stored(load(save(packed.stored_tensors())))
    yield (again.dequantize() != values.float()).sum().item()
    yield format.stored_bytes((256, 256)) - 2 * values.numel()


@claim(
    method="keep",
    paper="none; the reference of every format",
    says="nothing is lost: a folder that keeps everything has the original's tensors",
    measures="values that differ, random Llama of 3 blocks, tied and not",
    grade=Grade.HARD,
    at_most=0,
)
def test_keep_changes_no_bit(model_folder: ModelFolder, tmp_path: Path) -> Iterator[float]:
    for tied in (False, True):
        model = model_folder("llama", tie_word_embeddings=tied)
        out = written(model, tmp_path / str(tied), [0, 1, 2])
        before, after = (load_file(path / "model.safetensors") for path in (model, out))
        yield float(before.keys() != after.keys())
        for name, tensor in before.items():
            yield (tensor != after[name]).sum().item()


@claim(
    method="drop",
    paper="none; layer dropping",
    says="the folder computes what the original does when the block is passed by",
    measures="largest difference of logits, random Llama of 3 blocks, each block dropped",
    grade=Grade.HARD,
    at_most=0,
)
@torch.no_grad()
def test_drop_passes_the_block_by(model_folder: ModelFolder, tmp_path: Path) -> Iterator[float]:
    model = model_folder("llama")
    ids = torch.arange(3, 35)[None]
    for dropped in range(3):
        kept = [index for index in range(3) if index != dropped]
        out = written(model, tmp_path / str(dropped), kept)
        original = AutoModelForCausalLM.from_pretrained(model).eval()
        original.model.layers[dropped].forward = lambda hidden_states, **_: hidden_states
        fitted = AutoModelForCausalLM.from_pretrained(out).eval()
        logits = [loaded(input_ids=ids, use_cache=False).logits for loaded in (original, fitted)]
        yield (logits[0] - logits[1]).abs().max().item()
