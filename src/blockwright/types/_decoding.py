"""Values read from JSON or TOML, checked against the annotations of the dataclass they make."""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any, Union, cast, get_args, get_origin, get_type_hints

from blockwright.errors import UserError

TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return get_type_hints(cls)


def _as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class Decoder:
    """Raises ``error`` naming the key for anything that does not fit; unknown keys are errors."""

    error: type[UserError]
    least: Mapping[str, int] = field(default_factory=dict)
    """Key -> smallest value."""
    text: Callable[[str], str] = _as_it_is
    """What a text stands for."""
    table: str = "an object"
    """What the file's language calls a mapping."""

    def fields(
        self, cls: type[Any], table: Any, where: str, left_out: Collection[str] = ()
    ) -> dict[str, Any]:
        """Values of a dataclass's fields, for its constructor."""
        hints = _hints(cast("Hashable", cls))
        known = {item.name: item for item in fields(cls) if item.name not in left_out}
        self.check_keys(self._mapping(table, where), known, where)
        for name, item in known.items():
            optional = type(None) in get_args(hints[name]) or item.default is not MISSING
            if name not in table and not optional and item.default_factory is MISSING:
                raise self.error(f"{where}: the key {name!r} is missing")
        return {
            name: self.value(hints[name], value, f"{where}: {name}")
            for name, value in table.items()
        }

    def check_keys(self, table: Mapping[str, Any], known: Collection[str], where: str) -> None:
        """Name the nearest to the first unknown key."""
        for key in table:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
                nearest = f"; did you mean {close[0]!r}?" if close else ""
                allowed = ", ".join(known)
                raise self.error(f"{where}: unknown key {key!r}{nearest} (known: {allowed})")

    def value(self, expected: Any, value: Any, where: str) -> Any:
        """A value of the expected type."""
        if expected is Any:
            return value
        origin, inner = get_origin(expected), get_args(expected)
        if origin in (Union, types.UnionType):
            return self._one_of(inner, value, where)
        if origin is tuple:
            if not isinstance(value, list):
                raise self.error(f"{where}: got {value!r}, needs a list")
            return tuple(self.value(inner[0], item, where) for item in value)
        if isinstance(origin, type) and issubclass(origin, Mapping):
            table = self._mapping(value, where)
            return {name: self.value(inner[1], v, f"{where}.{name}") for name, v in table.items()}
        return self._of_class(expected, value, where)

    def _of_class(self, expected: type[Any], value: Any, where: str) -> Any:
        if is_dataclass(expected):
            return expected(**self.fields(expected, value, where))
        if issubclass(expected, StrEnum):
            if value not in list(expected):
                raise self.error(f"{where}: got {value!r}, allowed: {', '.join(expected)}")
            return expected(value)
        return self._simple(expected, value, where)

    def _one_of(self, expected: tuple[Any, ...], value: Any, where: str) -> Any:
        if value is None and type(None) in expected:
            return None
        others = [each for each in expected if each is not type(None)]
        for each in others[:-1]:
            if each in TYPE_NAMES and type(value) is each:
                return self.value(each, value, where)
        return self.value(others[-1], value, where)

    def _mapping(self, value: Any, where: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.error(f"{where}: got {value!r}, needs {self.table}")
        return value

    def _simple(self, expected: type, value: Any, where: str) -> Any:
        kind = str if expected is Path else expected
        fits = isinstance(value, int | float if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise self.error(f"{where}: got {value!r}, needs {TYPE_NAMES[kind]}")
        if isinstance(value, int | float) and not -LARGEST <= value <= LARGEST:
            raise self.error(f"{where}: got {value!r}, needs a finite number")
        least = self.least.get(where.rpartition(" ")[2])
        if least is not None and value < least:
            raise self.error(f"{where}: got {value!r}, at least {least} is allowed")
        return expected(self.text(value) if isinstance(value, str) else value)


LARGEST = math.ldexp(1 - 2**-53, 1024)
"""The largest double: no integer above it is of use to anyone."""
