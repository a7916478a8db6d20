"""Formats, methods, attention policies and adapters by name: a file's name is the name.

``formats/int.py`` answers to ``int4-g64`` (the letters before the first digit or dash),
``methods/quantize/gptq.py`` to ``gptq``, ``attention/policies/moba.py`` to ``moba``,
``training/recipes/bdwp.py`` to ``bdwp``.  Files are imported only when asked for; one that fails to
import raises its own error.  Each folder is listed once in a process.
"""

from __future__ import annotations

import difflib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import blockwright.formats
import blockwright.methods
from blockwright.errors import (
    AdapterError,
    AttentionError,
    CandidateError,
    TrainingError,
    UserError,
)
from blockwright.types import (
    Candidate,
    Format,
    FuseFormat,
    FusingMethod,
    LinearMethod,
    Method,
    ScalingMethod,
    WidthFormat,
    WidthMethod,
)

if TYPE_CHECKING:
    from blockwright.attention.policy import Policy
    from blockwright.heal.adapter import Adapter
    from blockwright.training.recipe import TrainingRecipe

FAMILIES = ("quantize", "sparsify", "lowrank", "width", "depth")
Options = tuple[tuple[str, str], ...]
T = TypeVar("T")


@cache
def format_stems() -> tuple[str, ...]:
    """Names of all format files."""
    return _files(blockwright.formats)


@cache
def method_names() -> Mapping[str, str]:
    """Name -> family of all methods."""
    found: dict[str, str] = {}
    for info in pkgutil.iter_modules(blockwright.methods.__path__):
        if info.ispkg:
            family = import_module(f"blockwright.methods.{info.name}")
            found |= dict.fromkeys(_files(family), info.name)
    return MappingProxyType(dict(sorted(found.items())))


def format_class(stem: str) -> type[Format]:
    """The format class of a file."""
    if stem not in format_stems():
        raise CandidateError(f"unknown format {stem!r}{_nearest(stem, format_stems())}")
    found: type[Format] = import_module(f"blockwright.formats.{stem}").FORMAT
    return found


def format_named(name: str) -> Format:
    """The format of a name in the grammar, e.g. ``int4-g64``, ``rank-p50+int8`` or
    ``nf3-g64&rank-r16``.
    """
    first, ampersand, second = name.partition("&")
    if ampersand:
        sums = import_module("blockwright.formats.sum").FORMAT
        summed: Format = sums.of(format_named(first), format_named(second))
        return summed
    structure, plus, values = name.partition("+")
    stem = re.match(r"[a-z]+", structure)
    if stem is None:
        raise CandidateError(f"unknown format {name!r}{_nearest(name, format_stems())}")
    format = format_class(stem[0]).parse(structure)
    return format.with_values(format_named(values)) if plus else format


def method_class(name: str) -> type[Method]:
    """The method class of a file."""
    names = method_names()
    if name not in names:
        raise CandidateError(f"unknown method {name!r}{_nearest(name, names)}")
    found: type[Method] = import_module(f"blockwright.methods.{names[name]}.{name}").METHOD
    return found


def method_named(name: str, options: Options = ()) -> LinearMethod:
    """A method for one linear, its hyperparameters read from text; unknown options are errors."""
    method = _named(name, options)
    if isinstance(method, ScalingMethod):
        raise CandidateError(f"method {name} scales the inputs of groups: it fills no weight alone")
    if isinstance(method, WidthMethod):
        raise CandidateError(f"method {name} narrows parts: it fills no weight")
    if isinstance(method, FusingMethod):
        raise CandidateError(f"method {name} fuses blocks: it fills no weight")
    return method


def scaling_named(name: str, options: Options = ()) -> ScalingMethod:
    """A method that scales groups, its hyperparameters read from text."""
    method = _named(name, options)
    if not isinstance(method, ScalingMethod):
        raise CandidateError(f"method {name} scales no groups; it fills weights")
    return method


def width_named(name: str, options: Options = ()) -> WidthMethod:
    """A method that narrows parts, its hyperparameters read from text."""
    method = _named(name, options)
    if not isinstance(method, WidthMethod):
        raise CandidateError(f"method {name} narrows no parts; it fills weights")
    return method


def fusing_named(name: str, options: Options = ()) -> FusingMethod:
    """A method that fuses blocks, its hyperparameters read from text."""
    method = _named(name, options)
    if not isinstance(method, FusingMethod):
        raise CandidateError(f"method {name} fuses no blocks; it fills weights")
    return method


def _named(name: str, options: Options) -> Method:
    found: Method = _build(method_class(name), f"method {name}", name, options)
    return found


@dataclass(frozen=True)
class Catalogue(Generic[T]):
    """Classes by the names of their files, and objects of them by text."""

    package: str
    attribute: str
    """What the class is called in every file."""
    what: str
    error: type[UserError]
    also: tuple[str, ...] = ()
    """Names that stand for a choice among the files'."""

    @cache  # noqa: B019 - there are three, for the life of the process
    def names(self) -> tuple[str, ...]:
        """Names of all files."""
        return _files(import_module(self.package))

    def class_of(self, name: str) -> type[T]:
        """The class of a file."""
        if name not in self.names():
            known = (*self.also, *self.names())
            raise self.error(f"unknown {self.what} {name!r}{_nearest(name, known)}")
        found: type[T] = getattr(import_module(f"{self.package}.{name}"), self.attribute)
        return found

    def named(self, text: str) -> T:
        """An object by name, with hyperparameters: ``moba`` or ``moba@block=64,keep=3``."""
        name, _, rest = text.partition("@")
        pairs = [item.partition("=") for item in rest.split(",") if rest]
        options = tuple((option, value) for option, _, value in pairs)
        found: T = _build(self.class_of(name), f"{self.what} {name}", name, options)
        return found


_POLICIES: Catalogue[Policy] = Catalogue(
    "blockwright.attention.policies", "POLICY", "policy", AttentionError
)
policy_names, policy_class, policy_named = _POLICIES.names, _POLICIES.class_of, _POLICIES.named

_RECIPES: Catalogue[TrainingRecipe] = Catalogue(
    "blockwright.training.recipes", "RECIPE", "recipe", TrainingError
)
recipe_names, recipe_class, recipe_named = _RECIPES.names, _RECIPES.class_of, _RECIPES.named

_ADAPTERS: Catalogue[Adapter] = Catalogue(
    "blockwright.heal.adapters", "ADAPTER", "adapter", AdapterError, ("auto",)
)
adapter_names, adapter_class, adapter_named = _ADAPTERS.names, _ADAPTERS.class_of, _ADAPTERS.named


def resolve(candidate: Candidate) -> tuple[Format, tuple[Method, ...]]:
    """Format and methods of a candidate; the format's default method where none is named, and a
    scaling method's own where nothing behind it fills.
    """
    name = candidate.format + (f"+{candidate.values}" if candidate.values else "")
    name += f"&{candidate.plus}" if candidate.plus else ""
    format = format_named(name)
    names = candidate.methods or ((format.default_method,) if format.default_method else ())
    if isinstance(format, WidthFormat | FuseFormat) and len(names) == 1 and format.values:
        names = (*names, format.values.default_method or "")
    methods = _chain(names, candidate.options)
    if isinstance(format, WidthFormat | FuseFormat):
        _check_structure(candidate, format, methods)
        return format, methods
    if candidate.methods and format.default_method is None:
        raise CandidateError(f"candidate {candidate}: nothing fills the format {format.name}")
    for method in methods:
        if not isinstance(format, method.fills):
            raise CandidateError(
                f"candidate {candidate}: {_name_of(method)} cannot fill {format.name}; what can:"
                f" {', '.join(_fillers(format)) or 'nothing'}"
            )
    for method in methods[1:]:
        if isinstance(method, ScalingMethod):
            raise CandidateError(
                f"candidate {candidate}: {_name_of(method)} scales inputs and stands first in a"
                f" chain, e.g. {candidate.format}:{_name_of(method)}>{names[0]}"
            )
    return format, methods


def _check_structure(
    candidate: Candidate, format: WidthFormat | FuseFormat, methods: Sequence[Method]
) -> None:
    """Raise ``CandidateError`` unless the first method narrows or fuses, and a second one fills the
    values where there are any.
    """
    wanted = 1 if format.values is None else 2
    narrows = isinstance(format, WidthFormat)
    first = WidthMethod if narrows else FusingMethod
    fits = len(methods) == wanted and isinstance(methods[0], first)
    values = format.values
    if values is not None and fits:
        filling = methods[1]
        fits = isinstance(filling, LinearMethod) and isinstance(values, filling.fills)
    if not fits:
        named = ">".join(map(_name_of, methods))
        raise CandidateError(
            f"candidate {candidate}: {named} cannot fill {format.name}; it takes a method that"
            f" {'narrows' if narrows else 'fuses'} ({', '.join(_fillers(format))})"
            + (f", then one that fills {values.name}" if values is not None else "")
        )


def is_scaled(candidate: Candidate) -> bool:
    """Whether a candidate's chain begins with a scaling method: it stands at groups only."""
    return bool(candidate.methods) and issubclass(method_class(candidate.methods[0]), ScalingMethod)


def _chain(names: Sequence[str], options: Options) -> tuple[Method, ...]:
    """The methods of a chain; each takes the options that it has, the last one the unknown."""
    known = [_defaults(method_class(name)) for name in names]
    methods: list[Method] = []
    for place, name in enumerate(names):
        last = place == len(names) - 1
        taken = tuple(
            (option, text)
            for option, text in options
            if option in known[place] or (last and not any(option in other for other in known))
        )
        methods.append(_named(name, taken))
    if len(methods) == 1 and isinstance(methods[0], ScalingMethod):
        methods.append(method_named(*methods[0].default_chain))
    return tuple(methods)


def _defaults(cls: Any) -> dict[str, Any]:
    return {item.name: item.default for item in fields(cls)}


def _name_of(method: Method) -> str:
    return type(method).__module__.rpartition(".")[2]


def _fillers(format: Format) -> list[str]:
    """Methods that can fill a format."""
    classes = {name: method_class(name) for name in method_names()}
    return [
        name
        for name, cls in classes.items()
        if issubclass(cls, LinearMethod | WidthMethod | FusingMethod)
        and isinstance(format, cls.fills)
    ]


def _build(cls: Any, what: str, name: str, options: Options) -> Any:
    """An object of a dataclass with hyperparameters read from text."""
    defaults = _defaults(cls)
    values: dict[str, Any] = {}
    for option, text in options:
        if option not in defaults:
            raise CandidateError(f"{what} has no option {option!r}{_nearest(option, defaults)}")
        values[option] = _parse_option(f"{name}@{option}", text, defaults[option])
    return cls(**values)


def _files(package: Any) -> tuple[str, ...]:
    infos = pkgutil.iter_modules(package.__path__)
    return tuple(sorted(i.name for i in infos if not i.ispkg and not i.name.startswith("_")))


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return (f"; did you mean {close[0]!r}?" if close else "") + f" (known: {', '.join(known)})"


def _parse_option(where: str, text: str, default: Any) -> Any:
    if isinstance(default, bool):
        if text in ("true", "false"):
            return text == "true"
        raise CandidateError(f"option {where}: got {text!r}, allowed: true, false")
    try:
        return type(default)(text)
    except (TypeError, ValueError):
        raise CandidateError(
            f"option {where}: got {text!r}, needs a {type(default).__name__}"
        ) from None
