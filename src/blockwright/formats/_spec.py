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
