"""``blockwright kernels``: what multiplies every format here, and the native kernel's build."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from blockwright.cli import options
from blockwright.cli.output import (
    make_table,
    print_json,
    print_line,
    print_table,
    stdout_kept_clean,
)

SHAPE = (512, 512)
"""A weight that every group size divides."""


def kernels(
    *,
    build: Annotated[
        bool, typer.Option("--build", help="Compile the native int4 kernel for this machine.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """List what multiplies each format on this machine; --build compiles a faster int4 kernel.

    The native kernel is optional, needs a C++ compiler once, and is used from then on.
    BLOCKWRIGHT_NATIVE=0 switches it off.
    """
    with stdout_kept_clean():
        from blockwright.numerics.int4_native import build_native_int4

        if build:
            build_native_int4()
        state, found = native_state(), formats_on_kernels()
    if as_json:
        print_json({"native": state, "kernels": found})
        return
    rows = [(family, kernel, ", ".join(names)) for family, kernel, names in _told(found)]
    print_table(make_table(("format", "kernel", "such as"), rows, left=3))
    print_line(
        f"native int4 kernel: {state['state']}" + (f", {state['why']}" if state["why"] else "")
    )
    print_line(f"its place: {state['path']}")


def native_state() -> dict[str, str]:
    """``used``, ``off``, ``refused``, ``not trusted`` or ``not built``, and why."""
    from blockwright.numerics import native
    from blockwright.numerics.int4_library import SOURCE, native_int4

    path, refusal = native.library_path(SOURCE), native.missing(SOURCE)
    state, why = "not built", "`blockwright kernels --build` compiles it"
    if refusal:
        state, why = "refused", refusal
    elif path.parent.exists():
        wrong = native.distrust(path)
        if wrong:
            state, why = "not trusted", f"{wrong}; `blockwright kernels --build` makes it again"
        elif native.is_switched_off():
            state, why = "off", f"{native.SWITCH}=0"
        elif native_int4():
            state, why = "used", ""
    return {"state": state, "why": why, "path": str(path)}


def formats_on_kernels() -> list[dict[str, Any]]:
    """A row per example of every format that packs linears."""
    import torch

    from blockwright import registry
    from blockwright.formats import FormatLinear
    from blockwright.types import PackedFormat, SiteKind

    found = []
    for stem in registry.format_stems():
        for name in registry.format_class(stem).examples():
            format = registry.format_named(name)
            if not isinstance(format, PackedFormat) or SiteKind.LINEAR not in format.kinds:
                continue
            module = format.empty(SHAPE, bias=False, dtype=torch.bfloat16, device="cpu")
            if isinstance(module, FormatLinear):
                found.append({"family": stem, "format": name, "kernel": module.kernel})
    return found


def _told(found: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """A line per family and kernel."""
    lines: dict[tuple[str, str], list[str]] = {}
    for each in found:
        lines.setdefault((each["family"], each["kernel"]), []).append(each["format"])
    return [(*key, names) for key, names in lines.items()]
