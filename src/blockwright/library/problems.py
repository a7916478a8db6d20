"""Problems as documents: options as rows under their field names, for there can be many."""

from __future__ import annotations

from dataclasses import asdict, astuple, fields
from typing import Any

from blockwright.errors import LibraryError
from blockwright.types import Memory, Option, Pair, Problem, Timing

PROBLEM_VERSION = 1


def problem_to_json(problem: Problem) -> dict[str, Any]:
    data = {item.name: getattr(problem, item.name) for item in fields(Problem)}
    names = [item.name for item in fields(Option)]
    rows = [astuple(option) for option in problem.options]
    data["pairs"] = [asdict(pair) for pair in problem.pairs]
    for name in ("memory", "timing"):
        value = data[name]
        data[name] = None if value is None else asdict(value)
    return {**data, "version": PROBLEM_VERSION, "option_fields": names, "options": rows}


def problem_from_json(data: dict[str, Any], where: str) -> Problem:
    """Inverse of ``problem_to_json``; ``LibraryError`` for one of another version."""
    version = data.get("version")
    if version != PROBLEM_VERSION:
        raise LibraryError(
            f"{where} has problem version {version}, this Blockwright reads {PROBLEM_VERSION};"
            " run `fit` again"
        )
    try:
        names = data["option_fields"]
        options = tuple(_option(dict(zip(names, row, strict=True))) for row in data["options"])
        known = {item.name: data[item.name] for item in fields(Problem) if item.name in data}
        if known.get("memory") is not None:
            known["memory"] = Memory.from_json(known["memory"])
        if known.get("timing") is not None:
            known["timing"] = Timing.from_json(known["timing"])
        known["blocks"] = tuple(data.get("blocks", ()))
        known["pairs"] = tuple(map(_pair, data.get("pairs", ())))
        return Problem(**{**known, "options": options})
    except (KeyError, TypeError, ValueError) as error:
        raise LibraryError(f"{where} is of another version ({error}); run `fit` again") from None


def _pair(values: dict[str, Any]) -> Pair:
    sites, candidates = tuple(values["sites"]), tuple(values["candidates"])
    return Pair(sites=sites, candidates=candidates, loss=values["loss"])


def _option(values: dict[str, Any]) -> Option:
    listed: dict[str, Any] = {
        name: tuple(values[name]) for name in ("contains", "work") if name in values
    }
    return Option(**{**values, **listed})
