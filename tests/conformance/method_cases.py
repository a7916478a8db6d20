"""What every method is tried with: formats, settings that nest, hyperparameters."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from _pytest.mark.structures import ParameterSet

from blockwright.registry import (
    format_named,
    fusing_named,
    method_class,
    method_named,
    method_names,
    scaling_named,
    width_named,
)
from blockwright.types import FusingMethod, LinearMethod, Method, ScalingMethod, WidthMethod

GRIDS = (
    *("int2-g32", "int3-g64-sym", "int4-g128", "int4-row", "int6-g32-sym", "int8"),
    *("nf4-g64", "nf3-g32-dq", "affine1-row", "affine3-g64", "fp-e2m1-g64", "dyn8-g128"),
    "bfp4-b32",
)
"""Every kind of grid: few and many bits, symmetric or not, groups or rows, uniform or not."""
STRUCTURES = (
    *("bf16", "df11", "rank-p50", "rank-p75+int8", "rank-r32+int4-g32"),
    *("sparse2of4", "sparse3of8", "sparse50", "sparse2of4+int4-g32", "sparse50+int4"),
    *("llmint8-p0", "llmint8-p2", "mix-p10-g64", "nf3-g32&rank-r8", "sparse50&rank-r8"),
    *("bin-p20", "vq16-d2-g64", "vq256-d4-row", "dyadic8", "dyadic4"),
    *("panel32x4-50", "panel16-80+int4"),
    *("ksort+bfp8-b32", "armor-b8", "armor-b16+int4-g32"),
    *("id-p50", "id-p75+int8", "id-r32+int4-g32"),
    *("kron2-p50", "kron4-p25", "kron8x16-p50", "kron2-p50+int8", "kron2-r32+int4-g32"),
    *("ranks-t500", "ranks-t1", "ranks-t500+int8"),
)
IDEMPOTENT = tuple(name for name in STRUCTURES if not name.startswith("ranks"))
"""A weight of the structure is solved to itself; a spectrum that was cut counts other ranks."""
FORMATS = (*GRIDS, *STRUCTURES)
LADDERS = {
    steps[0]: steps
    for steps in (
        *([f"int{bits}-{kind}" for bits in range(2, 9)] for kind in ("g32", "g64-sym", "row")),
        [f"affine{bits}-g64" for bits in range(1, 9)],
        [f"nf{bits}-g64" for bits in (2, 3, 4)],
        [f"fp-e2m{bits}-g64" for bits in range(6)],
        [f"llmint8-p{percent}" for percent in range(10)],
        [f"mix-p{percent}-g64" for percent in (5, 10, 20, 50, 90)],
        [f"bfp{bits}-b64" for bits in range(4, 9)],
        [f"rank-p{percent}" for percent in range(10, 100, 10)],
        [f"rank-r{rank}" for rank in (4, 16, 32, 48)],
        [f"rank-p50+int{bits}" for bits in range(3, 9)],
        [f"id-p{percent}" for percent in range(10, 100, 10)],
        [f"kron2-p{percent}" for percent in range(10, 100, 20)],
        [f"id-r{rank}" for rank in (4, 16, 32, 47)],
        [f"id-p50+int{bits}" for bits in range(3, 9)],
        [f"ranks-t{threshold}" for threshold in (900, 700, 500, 300, 100)],
        [f"sparse{percent}" for percent in range(90, 0, -10)],
        [f"sparse{n}of8" for n in range(1, 8)],
        [f"panel16-{percent}" for percent in range(90, 0, -20)],
        [f"sparse2of4+int{bits}-g32" for bits in range(2, 9)],
    )
}
"""Settings that nest, by the tightest."""
OPTIONS: dict[str, tuple[tuple[tuple[str, str], ...], ...]] = {
    "rtn": ((), (("search", "mse"),), (("search", "gram"),)),
    "gptq": ((), (("act_order", "false"), ("search", "mse")), (("damping", "0.1"),)),
    "hqq": ((), (("search", "none"),), (("relative", "false"), ("p", "1.0"))),
    "lqlora": (
        (),
        (("metric", "fisher"), ("iterations", "3")),
        (("metric", "weight"), ("iterations", "2")),
    ),
    "mixllm": ((), (("compensate", "false"), ("search", "mse"))),
    "svd": ((), (("metric", "diagonal"),), (("metric", "weight"),)),
    "lord": ((), (("fisher", "true"),), (("damping", "0.0"),)),
    "welore": ((), (("metric", "weight"), ("quantile", "0.9"))),
    "cur": ((), (("metric", "weight"),)),
    "kron": ((), (("metric", "weight"),), (("rounds", "2"),)),
    "doped": ((("rounds", "2"),), (("fisher", "true"), ("rounds", "2"))),
    "magnitude": ((), (("refit", "true"),)),
    "wanda": ((), (("refit", "false"),)),
    "sparsegpt": ((), (("refit", "false"),), (("damping", "0.1"),)),
    "ptq161": ((), (("rounds", "0"), ("passes", "0"), ("unbiased", "false"))),
    "simvq": ((), (("start", "simvq"), ("fit", "map"), ("steps", "20"), ("passes", "1"))),
    "hawq": ((), (("compensate", "false"),)),
    "armor": ((("iterations", "5"),), (("iterations", "2"), ("refit", "false"))),
    "admm": ((("iterations", "12"),),),
    "mfac": ((("rounds", "2"),),),
    "icbs": ((("passes", "5"),), (("passes", "2"), ("refit", "false"))),
    "sbl": ((("rounds", "3"),), (("rounds", "3"), ("rule", "alternating"))),
    "quantease": ((), (("rounds", "1"), ("passes", "1"), ("unbiased", "false"))),
    "flexround": ((("steps", "4"),), (("steps", "4"), ("rate", "0.1"))),
    **dict.fromkeys(("lrq", "adaround", "efficientqat", "discquant"), ((("steps", "4"),),)),
    "cbq": ((("steps", "4"),),),
}
"""Hyperparameters to try; a method that is not here is tried with its defaults."""
ROUNDING = ("rtn", "hqq")
"""Methods that round every element by itself."""
Options = tuple[tuple[str, str], ...]
LINEAR = [name for name in method_names() if issubclass(method_class(name), LinearMethod)]
SCALING = [name for name in method_names() if issubclass(method_class(name), ScalingMethod)]
WIDTH = [name for name in method_names() if issubclass(method_class(name), WidthMethod)]
FUSING = [name for name in method_names() if issubclass(method_class(name), FusingMethod)]
METHODS = [
    pytest.param(name, options, id=f"{name}{''.join(f'@{k}={v}' for k, v in options)}")
    for name in LINEAR
    for options in OPTIONS.get(name, ((),))
]


def any_method(name: str) -> Method:
    if name in WIDTH:
        return width_named(name)
    if name in FUSING:
        return fusing_named(name)
    return scaling_named(name) if name in SCALING else method_named(name)


def fillings(formats: Iterable[str]) -> list[ParameterSet]:
    """Every method, with all its options to try, and every one of these formats that it fills."""
    return [
        pytest.param(*method.values, name, id=f"{method.id}-{name}")
        for method in METHODS
        for name in formats
        if isinstance(format_named(name), method_class(str(method.values[0])).fills)
    ]
