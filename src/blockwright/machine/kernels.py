"""Times one product in every format: interleaved, on weights that are not in the cache.

In real use a model streams all its weights from memory, so that a weight is never in the cache when
its turn comes.  Calls go round over copies of all formats in turn, enough bytes that every weight
was evicted before it is used again, unless the whole model would fit the cache, too.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from blockwright.errors import FormatError
from blockwright.formats import FormatLinear
from blockwright.machine.works import LOOKUP, Work
from blockwright.types import MaskedFormat, PackedFormat

Clock = Callable[[], int]
"""Nanoseconds from any start."""
Call = Callable[[], object]

ROUNDS = 15
"""Rounds over all copies; a time is the least over rounds of the median over copies."""
MARGIN = 0.03
"""A kernel that is not faster than the dense one by this much counts as no faster."""
MOST_COPIES = 48
MOST_BYTES = 2 * 2**30
"""Of the weights that are timed against each other at once."""


@dataclass(frozen=True)
class Timed:
    """Times of a work: format name (``keep`` too) -> nanoseconds, or why there is none."""

    ns: Mapping[str, int]
    untimed: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """How works are timed."""

    dtype: torch.dtype
    device: str
    stream_bytes: int
    """Bytes of weights between two uses of one."""
    clock: Clock
    rounds: int = ROUNDS


def time_work(bench: Bench, work: Work, tokens: int, formats: Sequence[PackedFormat]) -> Timed:
    """The dense product and the packed one of every format that has a kernel here."""
    packed, untimed = _packable(bench, work, formats)
    ns: dict[str, int] = {}
    for some in _portions(bench, work, packed):
        found = _time_together(bench, work, tokens, some)
        ns |= {name: min(time, ns.get(name, time)) for name, time in found.items()}
    dense = ns["keep"]
    return Timed({name: no_faster(time, dense) for name, time in ns.items()}, untimed)


def no_faster(time: int, dense: int) -> int:
    """The time, or the dense one's where the difference is within the margin."""
    return dense if dense * (1 - MARGIN) < time < dense else time


def least_times(calls: Mapping[str, Sequence[Call]], clock: Clock, rounds: int) -> dict[str, int]:
    """Least over rounds of the median over copies, all interleaved; a first round is not counted.

    Every name has the same number of copies.
    """
    best: dict[str, int] = {}
    copies = len(next(iter(calls.values())))
    for turn in range(rounds + 1):
        spent: dict[str, list[int]] = {name: [] for name in calls}
        for copy in range(copies):
            for name, found in calls.items():
                began = clock()
                found[copy]()
                spent[name].append(clock() - began)
        if turn:
            medians = {name: int(statistics.median(times)) for name, times in spent.items()}
            best = {name: min(time, best.get(name, time)) for name, time in medians.items()}
    return best


def _packable(
    bench: Bench, work: Work, formats: Sequence[PackedFormat]
) -> tuple[list[PackedFormat], dict[str, str]]:
    """Formats with a kernel for this weight here, and why the others have none."""
    packed, untimed = [], {}
    for format in formats:
        try:
            format.check_shape((work.out_features, work.in_features), str(work))
        except FormatError as error:
            untimed[format.name] = str(error)
            continue
        if format.limits.packed_on_cpu and _multiplies(_module(bench, work, format)):
            packed.append(format)
        else:
            untimed[format.name] = f"{format.name} has no packed kernel on {bench.device} here"
    return packed, untimed


def _multiplies(module: FormatLinear) -> bool:
    """Whether no part of a module is dequantized on every call."""
    parts = [part for part in module.modules() if isinstance(part, FormatLinear)]
    return all(part.kernel != "dequantize" for part in parts)


def _portions(
    bench: Bench, work: Work, formats: Sequence[PackedFormat]
) -> Iterator[list[PackedFormat]]:
    """The formats in portions that fit memory together with the dense weight."""
    shape = (work.out_features, work.in_features)
    dense = shape[0] * shape[1] * bench.dtype.itemsize
    portion: list[PackedFormat] = []
    total = dense
    for format in formats:
        size = format.resident_bytes(shape, bench.device)
        if portion and total + size > MOST_BYTES:
            yield portion
            portion, total = [], dense
        portion.append(format)
        total += size
    yield portion


def _time_together(
    bench: Bench, work: Work, tokens: int, formats: Sequence[PackedFormat]
) -> dict[str, int]:
    shape = (work.out_features, work.in_features)
    dense = shape[0] * shape[1] * bench.dtype.itemsize
    together = dense + sum(format.resident_bytes(shape, bench.device) for format in formats)
    copies = min(MOST_COPIES, -(-bench.stream_bytes // together), max(1, MOST_BYTES // together))
    draw = torch.Generator().manual_seed(0)
    x = _inputs(bench, work, tokens, draw)
    calls: dict[str, list[Call]] = {
        "keep": [_dense_call(bench, work, x, draw) for _ in range(copies)]
    }
    kinds: dict[str, tuple[str, int]] = {}
    for format in formats:
        modules = [_filled(bench, work, format, draw) for _ in range(copies)]
        kinds[format.name] = (modules[0].kernel, modules[0].resident_bytes)
        calls[format.name] = [_packed_call(work, module, x) for module in modules]
    return _alike(least_times(calls, bench.clock, bench.rounds), kinds)


def _alike(times: Mapping[str, int], kinds: Mapping[str, tuple[str, int]]) -> dict[str, int]:
    """Formats on one kernel with equally many bytes take the least of their times."""
    least: dict[tuple[str, int], int] = {}
    for name, kind in kinds.items():
        least[kind] = min(times[name], least.get(kind, times[name]))
    return {name: least[kinds[name]] if name in kinds else time for name, time in times.items()}


def _inputs(bench: Bench, work: Work, tokens: int, draw: torch.Generator) -> Tensor:
    """x [T, I], or row numbers [T] of a lookup."""
    if work.operation == LOOKUP:
        return torch.randint(work.out_features, (tokens,), generator=draw).to(bench.device)
    x = torch.randn(tokens, work.in_features, generator=draw)
    return x.to(bench.dtype).to(bench.device)


def _dense_call(bench: Bench, work: Work, x: Tensor, draw: torch.Generator) -> Call:
    """The product as the model itself computes it."""
    rows, columns = work.out_features, work.in_features
    shape = (
        (columns, rows) if work.operation in ("conv1d", "expert-transposed") else (rows, columns)
    )
    W = torch.rand(shape, generator=draw).to(bench.dtype).to(bench.device)
    bias = W.new_zeros(rows) if work.bias else None
    if work.operation == LOOKUP:
        return lambda: F.embedding(x, W)
    if work.operation == "expert-transposed":
        return lambda: x @ W
    if work.operation == "expert":
        return lambda: F.linear(x, W)
    module: Any
    if work.operation == "conv1d":
        module = Conv1D(rows, 1)
        module.nx, module.nf = columns, rows
    else:
        module = torch.nn.Linear(1, rows, bias=work.bias)
    module.weight = torch.nn.Parameter(W, requires_grad=False)
    if bias is not None or work.operation == "conv1d":
        module.bias = torch.nn.Parameter(W.new_zeros(rows), requires_grad=False)
    module.eval()
    return lambda: module(x)


def _packed_call(work: Work, module: FormatLinear, x: Tensor) -> Call:
    """The product as a fitted folder computes it."""
    if work.operation == LOOKUP:
        return lambda: module.rows(x)
    if work.operation in ("linear", "conv1d"):
        return lambda: module(x)
    bias = module.bias
    if bias is None:
        return lambda: module.product(x)
    return lambda: module.product(x) + bias


def _module(
    bench: Bench, work: Work, format: PackedFormat, device: str | None = None
) -> FormatLinear:
    made = format.empty(
        (work.out_features, work.in_features),
        bias=work.bias,
        dtype=bench.dtype,
        device=device or bench.device,
    )
    if not isinstance(made, FormatLinear):
        raise TypeError(f"{format.name} made a {type(made).__name__}")
    return made


def _filled(bench: Bench, work: Work, format: PackedFormat, draw: torch.Generator) -> FormatLinear:
    """A packed module of random codes and small scales, in this machine's layout."""
    module = _module(bench, work, format, "cpu")
    tensors = {}
    for name, tensor in module.stored_tensors().items():
        if isinstance(format, MaskedFormat) and name == "positions":
            score_OI = torch.rand(work.out_features, work.in_features, generator=draw)
            tensors[name] = format.packed_positions(format.best_mask(score_OI))
        elif tensor.is_floating_point():
            values = 0.01 * (1 + torch.rand(tensor.shape, generator=draw))
            tensors[name] = values.to(tensor.dtype)
        else:
            most = 256 if tensor.dtype == torch.uint8 else 2
            tensors[name] = torch.randint(most, tensor.shape, generator=draw).to(tensor.dtype)
    module.load_stored(tensors)
    return module.to(bench.device).prepare()
