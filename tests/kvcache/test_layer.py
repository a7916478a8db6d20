"""The quantized cache layer alone: what it stores, what it reads back, what it weighs."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from blockwright.errors import CandidateError, FormatError, ModelError
from blockwright.kvcache import QuantizedLayer
from blockwright.kvcache.layer import joined
from blockwright.types import CacheFormat, KeyGroups

FORMATS = [
    "int8@page=8,window=16",
    "int4@page=8,window=5",
    "int4-g8@keys=token,page=16,window=0",
    "int3@keys=token,page=8,sort=true,window=8",
    "int2@page=32,window=8",
    "bfp4-b8@page=8,window=8",
    "bfp6-b16@page=8,sort=false,window=0",
]
ROWS, HEADS, CHANNELS = 3, 2, 16


def states(tokens: int, seed: int = 0, channels: int = CHANNELS) -> Tensor:
    """[B, H, T, D]: channels of very different size, some far from zero."""
    draw = torch.Generator().manual_seed(seed)
    size = torch.logspace(-1, 1, channels)[torch.randperm(channels, generator=draw)]
    offset = 5 * torch.randn(channels, generator=draw)
    return torch.randn(ROWS, HEADS, tokens, channels, generator=draw) * size + offset


def filled(
    text: str, tokens: int, *cuts: int, dtype: torch.dtype = torch.float32
) -> QuantizedLayer:
    """A layer that was given its tokens in parts."""
    layer = QuantizedLayer(CacheFormat.parse(text))
    keys, values = states(tokens, 1).to(dtype), states(tokens, 2).to(dtype)
    for start, stop in zip((0, *cuts), (*cuts, tokens), strict=True):
        layer.update(keys[:, :, start:stop], values[:, :, start:stop])
    return layer


def read(layer: QuantizedLayer) -> tuple[Tensor, Tensor]:
    """All keys and values as the next update would give them."""
    return joined(layer.pages["keys"], layer.keys), joined(layer.pages["values"], layer.values)


def round_plainly(page_GD: Tensor, bits: int, *, per_channel: bool, group: int) -> Tensor:
    """A page of one head, number by number."""
    tokens, channels = page_GD.shape
    found = page_GD.clone()
    columns = [[(t, d) for t in range(tokens)] for d in range(channels)]
    rows = [
        [(t, d) for d in range(start, start + group)]
        for t, start in product(range(tokens), range(0, channels, group))
    ]
    for places in columns if per_channel else rows:
        numbers = [page_GD[place] for place in places]
        low, high = min(numbers), max(numbers)
        scale = (high - low) / (2**bits - 1)
        for place, number in zip(places, numbers, strict=True):
            found[place] = low + scale * torch.round((number - low) / scale) if scale else low
    return found


@pytest.mark.parametrize(
    ("text", "bits", "per_channel", "group"),
    [
        ("int8@page=8,window=0", 8, True, 1),
        ("int4-g8@keys=token,page=8,window=0", 4, False, 8),
        ("int3-g4@keys=token,page=8,sort=true,window=0", 3, False, 4),
    ],
)
def test_pages_are_those_of_a_plain_reference(
    text: str, bits: int, per_channel: bool, group: int
) -> None:
    keys = states(16, 1)
    found, _ = read(filled(text, 16))
    order = torch.arange(CHANNELS).expand(ROWS, HEADS, CHANNELS)
    if "sort" in text:
        order = keys[:, :, :8].square().sum(-2).argsort(stable=True, dim=-1, descending=True)
    for row, head, page in product(range(ROWS), range(HEADS), range(2)):
        of_page, mine = slice(8 * page, 8 * page + 8), order[row, head]
        plain = round_plainly(
            keys[row, head, of_page][:, mine], bits, per_channel=per_channel, group=group
        )
        assert torch.allclose(found[row, head, of_page][:, mine], plain, atol=1e-5)


@pytest.mark.parametrize("text", FORMATS)
def test_what_is_stored_depends_on_the_tokens_alone(text: str) -> None:
    whole, *others = (
        filled(text, 61),
        filled(text, 61, *range(1, 61)),
        filled(text, 61, 7, 40, 41),
    )
    for other in others:
        pairs = zip(whole.held_tensors(), other.held_tensors(), strict=True)
        assert all(torch.equal(one, another) for one, another in pairs)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_bytes_are_held_bytes(text: str, dtype: torch.dtype) -> None:
    format = CacheFormat.parse(text)
    growth = format.growth(HEADS, (CHANNELS, CHANNELS), dtype.itemsize)
    for tokens in range(1, 70, 3):
        held = filled(text, tokens, dtype=dtype).held_tensors()
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
        assert sum(storages.values()) == ROWS * growth.at(tokens)


@pytest.mark.parametrize("text", FORMATS)
def test_the_newest_tokens_are_exact(text: str) -> None:
    format = CacheFormat.parse(text)
    layer = filled(text, 61)
    exact = 61 - layer.paged_tokens
    assert format.window <= exact < format.window + format.page
    for found, given in zip(read(layer), (states(61, 1), states(61, 2)), strict=True):
        assert torch.equal(found[:, :, -exact:], given[:, :, -exact:])
        assert not torch.equal(found, given)


def test_an_update_answers_with_new_tokens_as_they_are() -> None:
    layer, ordinary = QuantizedLayer(CacheFormat.parse("int2@page=8,window=0")), DynamicLayer()
    keys, values = states(40, 1), states(40, 2)
    for cache in (layer, ordinary):
        found = cache.update(keys, values)
        assert torch.equal(found[0], keys)
        assert torch.equal(found[1], values)
    assert layer.paged_tokens == 40


@pytest.mark.parametrize("text", FORMATS)
def test_more_bits_come_closer(text: str) -> None:
    name = CacheFormat.parse(text)
    start = 2 if name.kind == "bfp" else 1
    errors = []
    for bits in range(start, 9):
        better = CacheFormat.parse(text.replace(f"{name.kind}{name.bits}", f"{name.kind}{bits}", 1))
        errors.append(float((read(filled(better.name, 64))[0] - states(64, 1)).square().mean()))
    assert all(after < before for before, after in pairwise(errors))


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("removed", [1, 4, 9, 16, 17, 40, 60, 61])
def test_reading_after_a_crop_gives_what_it_gave_before(text: str, removed: int) -> None:
    layer = filled(text, 61)
    before = [found[:, :, : 61 - removed].clone() for found in read(layer)]
    layer.crop(-removed)
    assert layer.get_seq_length() == 61 - removed
    assert all(torch.equal(a, b) for a, b in zip(read(layer), before, strict=True))
    keys, _ = layer.update(states(5, 3), states(5, 4))
    assert keys.shape[2] == 66 - removed


@pytest.mark.parametrize("text", FORMATS)
def test_rows_are_picked_in_everything_that_is_stored(text: str) -> None:
    def picked(by: str) -> list[Tensor]:
        layer = filled(text, 61)
        if by == "reorder":
            layer.reorder_cache(torch.tensor([2, 0, 0]))
        elif by == "repeat":
            layer.batch_repeat_interleave(2)
        else:
            layer.batch_select_indices(torch.tensor([1]))
        return list(read(layer))

    plain = read(filled(text, 61))
    for by, rows in (("reorder", [2, 0, 0]), ("repeat", [0, 0, 1, 1, 2, 2]), ("select", [1])):
        assert all(torch.equal(a, b[rows]) for a, b in zip(picked(by), plain, strict=True))


def test_a_layer_that_was_reset_is_new() -> None:
    layer = filled("int4@page=8,window=0", 20)
    layer.reset()
    assert (layer.get_seq_length(), layer.held_tensors()) == (0, [])
    layer.update(states(8, 1), states(8, 2))
    assert layer.get_seq_length() == 8


def test_keys_and_values_of_other_widths_are_taken() -> None:
    layer = QuantizedLayer(CacheFormat.parse("int4@page=8,window=0"))
    keys, values = layer.update(states(24, 1, 12), states(24, 2, 80))
    assert (keys.shape[-1], values.shape[-1]) == (12, 80)
    growth = layer.format.growth(HEADS, (12, 80), 4)
    assert sum(t.nbytes for t in layer.held_tensors()) == ROWS * growth.at(24)
    assert layer.format.group_of(80) == 40


def test_sorting_over_a_whole_head_changes_nothing() -> None:
    texts = [f"bfp4-b16@page=8,sort={sort},window=0" for sort in ("true", "false")]
    sorted_keys, keys = (read(filled(text, 64))[0] for text in texts)
    assert torch.equal(sorted_keys, keys)


def test_constant_channels_are_exact() -> None:
    layer = QuantizedLayer(CacheFormat.parse("int1@page=8,window=0"))
    keys = torch.full((1, 1, 8, 4), 3.7)
    layer.update(keys, torch.zeros(1, 1, 8, 4))
    found, zeros = read(layer)
    assert torch.equal(found, keys)
    assert not zeros.any()


@pytest.mark.parametrize("name", ["int4@page=8,window=0", "bfp4@page=8,window=0"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_refused(name: str, value: float) -> None:
    layer = QuantizedLayer(CacheFormat.parse(name))
    keys = torch.zeros(1, 1, 8, 4)
    keys[0, 0, 3, 2] = value
    with pytest.raises(ModelError, match="not finite"):
        layer.update(keys, keys)


@pytest.mark.parametrize("text", [*FORMATS, "int4", "int8", "bfp4-b16", "int4@keys=token"])
def test_names_and_specs_are_read_back(text: str) -> None:
    format = CacheFormat.parse(text)
    assert CacheFormat.parse(format.name) == format == CacheFormat.from_spec(format.spec())
    assert format.keys in KeyGroups


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int9", "give int1 to int8 or bfp2 to bfp8"),
        ("keep", "give int1 to int8"),
        ("int4-b32", "groups as -g64"),
        ("bfp1", "bfp2 to bfp8 as -b32"),
        ("int4:gptq", "give int1 to int8"),
        ("int4@size=3", "no option 'size'"),
        ("int4@keys=page", "allowed: channel, token"),
        ("int4@window=many", "needs a number"),
        ("int4@page=12", "a multiple of 8 tokens"),
        ("bfp4@keys=channel", "exponents are shared by channels"),
    ],
)
def test_other_names_are_refused(text: str, said: str) -> None:
    with pytest.raises(CandidateError, match=said):
        CacheFormat.parse(text)


def test_a_newer_folder_is_refused() -> None:
    with pytest.raises(FormatError, match="upgrade Blockwright"):
        CacheFormat.from_spec({"format": "int4", "version": 99})
