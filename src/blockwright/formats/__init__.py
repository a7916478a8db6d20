"""Formats: how weights are stored and multiplied.  A file's name is the format's name.

Imports no torch: what needs it is imported when first asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from blockwright import registry
from blockwright.errors import FormatError
from blockwright.types import Format

if TYPE_CHECKING:
    from blockwright.formats._int4 import native_kernel as native_kernel
    from blockwright.formats._linear import FormatLinear as FormatLinear
    from blockwright.formats._operand import ExpertStack as ExpertStack
    from blockwright.formats._operand import PackedOperand as PackedOperand
    from blockwright.formats._operand import install_experts as install_experts
    from blockwright.formats._operand import install_linear as install_linear
    from blockwright.formats._operand import install_operand as install_operand
    from blockwright.formats._operand import install_table as install_table

_HOMES = {
    "FormatLinear": "_linear",
    "native_kernel": "_int4",
    **dict.fromkeys(
        (
            "ExpertStack",
            "PackedOperand",
            "install_experts",
            "install_linear",
            "install_operand",
            "install_table",
        ),
        "_operand",
    ),
}

__all__ = [
    "ExpertStack",
    "FormatLinear",
    "PackedOperand",
    "format_from_spec",
    "install_experts",
    "install_linear",
    "install_operand",
    "install_table",
    "native_kernel",
]


def format_from_spec(spec: Mapping[str, Any]) -> Format:
    """The format that wrote ``spec``.

    Raises ``FormatError`` when it names no format of this version, or was written by a newer one.
    """
    stem = spec.get("format")
    if stem not in registry.format_stems():
        known = ", ".join(registry.format_stems())
        raise FormatError(
            f"format spec {dict(spec)}: unknown format {stem!r}; this Blockwright knows {known};"
            " upgrade it if the folder is newer"
        )
    return registry.format_class(stem).from_spec(spec)


def __getattr__(name: str) -> Any:
    """Public names that need torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
