"""Recipes: one fit written down as TOML, so that it can be run again.

    version = 1
    model = "owner/name"          # or a folder; bundled:model ships with Blockwright
    preset = "balanced"
    seed = 0

    [budget]
    bits = 4.3

    [digests]                     # of what was read; checked when it is run again
    [made_with]                   # versions; a difference is said, and no error

The keys are the fields of ``FitRequest``.  Not in a recipe: where results go (``out``,
``library``), minutes (of healing), which are written as the steps they became, and leave to run a
model folder's code, which only the user at hand can give.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import Any

from blockwright.errors import RecipeError
from blockwright.types._decoding import Decoder
from blockwright.types.candidate import Candidate
from blockwright.types.fit import FitRequest

RECIPE_VERSION = 1
NOT_IN_RECIPES = {"out", "library", "recipe", "trust_remote_code", "heal"}
TOP_LEVEL = ("version", "digests", "made_with")
"""Keys beside the request's."""
DIGESTS = ("model", "calibration", "selection", "heldout")
MADE_WITH = ("blockwright", "python", "torch", "transformers", "cpu")
LEAST = {
    "threads": 1,
    "calibration_tokens": 2,
    "sequence_length": 2,
    "eval_tokens": 2,
    "heal_steps": 1,
}
"""Smallest values, as on the command line."""
BESIDE = {"plan", "profile"}
"""Files of the recipe's own folder."""
BUNDLED = "bundled:"
"""Stands for the folder of what ships with the package."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A request without its places, and what it was made from."""

    values: Mapping[str, Any]
    """Fields of ``FitRequest`` by name; a missing one has its default."""
    digests: Mapping[str, str] = field(default_factory=dict)
    made_with: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        request: FitRequest,
        digests: Mapping[str, str] | None = None,
        made_with: Mapping[str, str] | None = None,
    ) -> Recipe:
        """The recipe of a request; ``request`` inverts it."""
        values = {name: getattr(request, name) for name in _names()}
        given = {name: value for name, value in values.items() if value not in (None, ())}
        return cls(values=given, digests=digests or {}, made_with=made_with or {})

    def request(
        self,
        *,
        out: Path,
        library: Path | None = None,
        recipe: Path | None = None,
        trust_remote_code: bool = False,
    ) -> FitRequest:
        """The request; ``recipe`` is the file it came from, if its digests are to be checked.

        A plan file and a machine profile stand beside the recipe.
        """
        values = {"budget": None, **self.values}
        if recipe is not None:
            beside = BESIDE & values.keys()
            values |= {name: recipe.parent / values[name] for name in beside}
        return FitRequest(
            **values,
            out=out,
            library=library,
            recipe=recipe,
            trust_remote_code=trust_remote_code,
        )

    def to_toml(self, notes: Collection[str] = ()) -> str:
        """The file's text; ``notes`` become comments at its head."""
        simple = {k: _encode(v) for k, v in self.values.items() if not is_dataclass(v)}
        tables = {k: _encode(v) for k, v in self.values.items() if is_dataclass(v)}
        tables |= {"digests": self.digests, "made_with": self.made_with}
        lines = [f"# {' '.join(note.split())}" for note in notes]
        lines += _pairs({"version": RECIPE_VERSION, **simple})
        for name, table in tables.items():
            lines += ["", f"[{name}]", *_pairs(table)] if table else []
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, path: Path) -> Recipe:
        """Read and check a recipe; raises ``RecipeError`` naming the key that is wrong."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise RecipeError(f"recipe {path} does not exist") from None
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {path} cannot be read: {error}") from None
        return cls.parse(text, where=f"recipe {path}")

    @classmethod
    def parse(cls, text: str, where: str) -> Recipe:
        """``read`` of a text; ``where`` opens the message of every error."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{where} is no TOML: {error}") from None
        version = data.pop("version", None)
        if version != RECIPE_VERSION:
            raise RecipeError(f"{where}: version {version}, this tool reads {RECIPE_VERSION}")
        digests = _texts(data.pop("digests", {}), DIGESTS, f"{where}: digests")
        made_with = _texts(data.pop("made_with", {}), MADE_WITH, f"{where}: made_with")
        DECODER.check_keys(data, [*_names(), *TOP_LEVEL], where)
        values = DECODER.fields(FitRequest, data, where, NOT_IN_RECIPES)
        for candidate in values.get("candidates", ()):
            Candidate.parse(candidate)
        if not any(values.get(name) for name in ("budget", "plan", "lossless")):
            raise RecipeError(f"{where}: no budget; give a table [budget] with bits = 4.3, say")
        return cls(values=values, digests=digests, made_with=made_with)


def _names() -> list[str]:
    return [item.name for item in fields(FitRequest) if item.name not in NOT_IN_RECIPES]


def _encode(value: Any) -> Any:
    """A value as TOML has it."""
    if is_dataclass(value):
        named = {item.name: getattr(value, item.name) for item in fields(value)}
        return {name: _encode(inner) for name, inner in named.items() if inner is not None}
    if isinstance(value, tuple):
        return [_encode(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, Path | str):
        return portable(value)
    return value


def portable(value: Path | str) -> str:
    """What ships with the package by its name, not by a path of this machine."""
    home = Path(str(files("blockwright"))) / "bundled"
    path = Path(value)
    inside = path.is_absolute() and path.is_relative_to(home)
    return BUNDLED + path.relative_to(home).as_posix() if inside else str(value)


def _located(text: str) -> str:
    """Inverse of ``portable``."""
    if not text.startswith(BUNDLED):
        return text
    return str(Path(str(files("blockwright"))) / "bundled" / text.removeprefix(BUNDLED))


def _pairs(table: Mapping[str, Any]) -> list[str]:
    return [f"{name} = {_toml(value)}" for name, value in table.items()]


def _toml(value: Any) -> str:
    if isinstance(value, list):
        one_line = "[" + ", ".join(map(_toml, value)) + "]"
        many = "[\n" + "".join(f"    {_toml(item)},\n" for item in value) + "]"
        return one_line if len(one_line) <= 80 else many
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value)


def _texts(table: Any, known: Collection[str], where: str) -> dict[str, str]:
    """A table of texts under known keys."""
    texts: dict[str, str] = DECODER.value(Mapping[str, str], table, where)
    DECODER.check_keys(texts, known, where)
    return texts


DECODER = Decoder(RecipeError, LEAST, _located, "a table")
