"""Strategies that damage what was valid: bytes of a file, values of a JSON tree."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import strategies as st

HOSTILE: tuple[Any, ...] = (
    None,
    True,
    "",
    "x" * 5000,
    "../../etc/passwd",
    "/etc/passwd",
    "\x00",
    "line\nbreak",
    "\ud800",
    "NaN",
    0,
    -1,
    2**31,
    2**63,
    10**40,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    [],
    [[]],
    {},
    {"": ""},
)
"""What may stand where something else is expected; JSON holds all of it, the last floats too."""
EDITS = 3
"""Largest number of values that are changed at once."""


@st.composite
def damaged_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Bits flipped, pieces cut out, doubled or overwritten, the end cut off or grown."""
    damaged = bytearray(data)
    for _ in range(draw(st.integers(1, EDITS))):
        start = draw(st.integers(0, len(damaged)))
        stop = min(len(damaged), start + draw(st.integers(0, 64)))
        piece = draw(
            st.one_of(
                st.binary(max_size=16), st.just(bytes(damaged[start:stop]) * 2), st.just(b"\0" * 8)
            )
        )
        damaged[start:stop] = piece
        if draw(st.integers(0, 9)) == 0:
            del damaged[start:]
    return bytes(damaged)


@st.composite
def damaged_json(draw: st.DrawFn, tree: Any) -> Any:
    """Some values replaced by hostile ones or by each other, some entries removed or added."""
    damaged = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, EDITS))):
        places = list(_places(damaged))
        if not places:
            return damaged
        holder, key = draw(st.sampled_from(places))
        draw(st.sampled_from((_replace, _replace, _remove, _add, _swap)))(draw, holder, key, places)
    return damaged


def spelled(tree: Any) -> bytes:
    """As JSON, surrogates and infinities included."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


Place = tuple[Any, Any]
"""A dict or list, and a key or index of it."""
Edit = Callable[[st.DrawFn, Any, Any, list[Place]], None]


def _places(tree: Any) -> Iterator[Place]:
    keys = tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def _hostile(draw: st.DrawFn) -> Any:
    return copy.deepcopy(draw(st.sampled_from(HOSTILE)))


def _replace(draw: st.DrawFn, holder: Any, key: Any, places: list[Place]) -> None:
    holder[key] = _hostile(draw)


def _remove(draw: st.DrawFn, holder: Any, key: Any, places: list[Place]) -> None:
    del holder[key]


def _add(draw: st.DrawFn, holder: Any, key: Any, places: list[Place]) -> None:
    if isinstance(holder, dict):
        holder[draw(st.sampled_from(("", "../x", "unknown", str(key) + " ")))] = _hostile(draw)
    else:
        holder.insert(key, _hostile(draw))


def _swap(draw: st.DrawFn, holder: Any, key: Any, places: list[Place]) -> None:
    other, place = draw(st.sampled_from(places))
    holder[key] = copy.deepcopy(other[place])
