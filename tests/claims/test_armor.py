"""Claims about ARMOR, on layers and inside a block of the bundled model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from blockwright.cli.demo import bundled_model
from blockwright.methods.sparsify.armor import Armor
from blockwright.methods.sparsify.sparsegpt import Sparsegpt
from blockwright.methods.sparsify.wanda import Wanda
from blockwright.registry import format_named
from blockwright.texts import bundled_documents
from blockwright.types import LinearMethod, Statistics, WrappedFormat
from tests.claims.ledger import Grade, claim
from tests.layers import Layer, gram, outlier_layer, synth_layer

LAYERS: tuple[Callable[[int], Layer], ...] = (synth_layer, outlier_layer)
Solve = Callable[[Tensor, Statistics], Tensor]
"""(W, statistics) -> W_hat."""


def fill(method: LinearMethod, format: str, W_OI: Tensor, statistics: Statistics) -> Tensor:
    return method.solve(W_OI, statistics, format_named(format)).weight()


@cache
def error(method: LinearMethod, format: str, layer_of: Callable[[int], Layer], seed: int) -> float:
    layer = layer_of(seed)
    return layer.heldout_error(fill(method, format, layer.W_OI, layer.statistics))


def proxies(seed: int, layer_of: Callable[[int], Layer], block: int) -> list[float]:
    """The proxy loss before every iteration; the first is that of plain 2:4."""
    layer, format = layer_of(seed), format_named(f"armor-b{block}")
    assert isinstance(format, WrappedFormat)
    search = Armor().search(layer.W_OI, gram(layer.X_TI).diagonal(), format)
    search.run(Armor().iterations)
    return search.proxies


@pytest.mark.slow
@claim(
    method="armor",
    says="the search never ends above the plain 2:4 it starts from, by a wide margin",
    measures="proxy loss / that of its start, both layers, blocks of 8 and 16",
    grade=Grade.FIRM,
    at_most=0.7,
)
def test_armor_lowers_its_proxy(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        for block in (8, 16):
            found = proxies(seed, layer_of, block)
            yield min(found) / found[0]


@claim(
    method="armor",
    says="9 bits and the wrappers per weight; packed, the weight is the product of its parts",
    measures="|bits - 9 - 16 b (1/O + 1/I)|, plus values that differ, outlier-layer, b = 8, 32",
    grade=Grade.HARD,
    at_most=0,
)
def test_armor_bytes_and_values(seed: int) -> Iterator[float]:
    layer = outlier_layer(seed)
    for block in (8, 32):
        format = format_named(f"armor-b{block}")
        assert isinstance(format, WrappedFormat)
        found = Armor(iterations=2).solve(layer.W_OI, layer.statistics, format)
        packed = format.pack(found, None, torch.bfloat16)
        changed = (packed.dequantize() != found.weight()).sum().item()
        yield abs(packed.stored_bytes * 8 / 256**2 - 9 - 16 * block * 2 / 256) + changed


@pytest.mark.slow
@claim(
    method="armor",
    says="refitted, it beats the refitted sweep, with wrappers of 6% of the dense bytes",
    measures="error / that of sparsegpt, sparse2of4, both layers, armor-b8 (10 bits, 9 bits)",
    grade=Grade.FIRM,
    at_most=0.75,
)
def test_armor_beats_the_refitted_sweep(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        mine = error(Armor(), "armor-b8", layer_of, seed)
        yield mine / error(Sparsegpt(), "sparse2of4", layer_of, seed)


@pytest.mark.slow
@claim(
    method="armor",
    says="and Wanda's refitted mask",
    measures="error / that of wanda, sparse2of4, both layers, armor-b8",
    grade=Grade.FIRM,
    at_most=0.8,
)
def test_armor_beats_wanda(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        mine = error(Armor(), "armor-b8", layer_of, seed)
        yield mine / error(Wanda(), "sparse2of4", layer_of, seed)


@pytest.mark.slow
@claim(
    method="armor",
    says="where bytes alone count, zeros without a pattern beat it: it is for what multiplies 2:4",
    measures="its error at 10.0 bits / that of sparsegpt, sparse50, at 9.0 bits, both layers",
    grade=Grade.FIRM,
    at_least=1.0,
)
def test_zeros_without_a_pattern_beat_armor(seed: int) -> Iterator[float]:
    for layer_of in LAYERS:
        mine = error(Armor(), "armor-b8", layer_of, seed)
        yield mine / error(Sparsegpt(), "sparse50", layer_of, seed)


# -- a block of the bundled model

BLOCKS = (0, 3, 7)


@cache
def bundled() -> nn.Module:
    model: nn.Module = AutoModelForCausalLM.from_pretrained(bundled_model(), dtype=torch.float32)
    return model.eval()


@cache
def token_ids(split: str, rows: int) -> Tensor:
    tokenizer = AutoTokenizer.from_pretrained(bundled_model())
    ids: list[int] = []
    for text in bundled_documents(split):
        ids += tokenizer(text[: 4 * rows * 256], verbose=False)["input_ids"]
        if len(ids) >= rows * 256:
            break
    return torch.tensor(ids[: rows * 256]).view(rows, 256)


def block_of(index: int) -> nn.Module:
    return bundled().get_submodule(f"model.layers.{index}")


def block_output(index: int, ids: Tensor) -> Tensor:
    """What the block adds to its input, [T, D]."""
    seen: list[Tensor] = []

    def record(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((output - given[0]).flatten(0, 1))

    handle = block_of(index).register_forward_hook(record)
    try:
        with torch.no_grad():
            bundled()(ids)
    finally:
        handle.remove()
    return seen[0]


@cache
def grams(index: int) -> dict[str, Tensor]:
    """The Gram of every linear's inputs on the calibration text."""
    inputs: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs[name] = given[0].flatten(0, 1)

    linears = [(n, m) for n, m in block_of(index).named_modules() if isinstance(m, nn.Linear)]
    handles = [m.register_forward_hook(partial(record, n)) for n, m in linears]
    try:
        with torch.no_grad():
            bundled()(token_ids("calibration", 64))
    finally:
        for handle in handles:
            handle.remove()
    return {name: gram(X) for name, X in inputs.items()}


def block_error(index: int, solve: Solve) -> float:
    """|change of the block's output|^2 / |output|^2 on held-out text, all linears replaced."""
    held_out = token_ids("heldout", 16)
    exact = block_output(index, held_out)
    originals = {}
    for name, H in grams(index).items():
        weight = block_of(index).get_submodule(name).get_parameter("weight")
        originals[name] = weight.data
        weight.data = solve(weight.data, Statistics(tokens=16384, input_gram=H))
    try:
        changed = block_output(index, held_out) - exact
    finally:
        for name, W in originals.items():
            block_of(index).get_submodule(name).get_parameter("weight").data = W
    return float(changed.square().sum() / exact.square().sum())


@pytest.mark.slow
@claim(
    method="armor",
    says="inside a block of a trained model, too",
    measures="squared error of the block's output / that of sparsegpt, sparse2of4,"
    " bundled model, blocks 0, 3 and 7, armor-b16, 16k calibration and 4k held-out tokens",
    grade=Grade.FIRM,
    at_most=0.75,
)
def test_armor_beats_the_sweep_in_a_block() -> Iterator[float]:
    for index in BLOCKS:
        rival = block_error(index, partial(fill, Sparsegpt(), "sparse2of4"))
        yield block_error(index, partial(fill, Armor(), "armor-b16")) / rival
