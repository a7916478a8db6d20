"""What the specs of all formats share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockwright.errors import FormatError
from blockwright.types import Format


def check_version(format: type[Format], spec: Mapping[str, Any]) -> None:
    """Raise ``FormatError`` unless this Blockwright reads the version of ``spec``."""
    version = spec.get("version")
    if not isinstance(version, int) or version < 1:
        raise FormatError(f"format spec {dict(spec)}: 'version' must be a number from 1")
    if version > format.version:
        raise FormatError(
            f"format {spec.get('format')!r} was stored as version {version}, this Blockwright reads"
            f" up to version {format.version}; upgrade Blockwright"
        )


def spec_field(spec: Mapping[str, Any], name: str) -> Any:
    """A value of a format's spec; ``FormatError`` where it is missing."""
    if name not in spec:
        raise FormatError(f"format spec {dict(spec)} lacks {name!r}")
    return spec[name]


def check_not_empty(format: Format, shape: tuple[int, int], where: str) -> None:
    """Raise ``FormatError`` for a weight without outputs or inputs."""
    if min(shape) < 1:
        raise FormatError(f"{format.name}: {where}: a weight of {shape[0]} x {shape[1]} is empty")
