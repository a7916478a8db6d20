"""Frozen values that pass between stages.  Imports no torch."""

from blockwright.types.budget import Budget, parse_size
from blockwright.types.candidate import DROP, KEEP, Candidate
from blockwright.types.composite import CompositeFormat, FactoredFormat, MaskedFormat
from blockwright.types.fit import FitRequest, FitResult, Preset, Price
from blockwright.types.format import (
    Format,
    Grid,
    GridFormat,
    PackedFormat,
    PackedLinear,
    ValueFormat,
)
from blockwright.types.limits import FormatLimits
from blockwright.types.measurement import Quality, Speed
from blockwright.types.method import LinearMethod
from blockwright.types.plan import PLAN_VERSION, Choice, Option, Plan, Problem
from blockwright.types.recipe import Recipe
from blockwright.types.site import Site, SiteKind, TableRole
from blockwright.types.solution import (
    DenseSolution,
    FactoredSolution,
    GridSolution,
    MaskedSolution,
    Solution,
)
from blockwright.types.statistics import Statistic, Statistics
from blockwright.types.variant import VariantRecord

__all__ = [
    "DROP",
    "KEEP",
    "PLAN_VERSION",
    "Budget",
    "Candidate",
    "Choice",
    "CompositeFormat",
    "DenseSolution",
    "FactoredFormat",
    "FactoredSolution",
    "FitRequest",
    "FitResult",
    "Format",
    "FormatLimits",
    "Grid",
    "GridFormat",
    "GridSolution",
    "LinearMethod",
    "MaskedFormat",
    "MaskedSolution",
    "Option",
    "PackedFormat",
    "PackedLinear",
    "Plan",
    "Preset",
    "Price",
    "Problem",
    "Quality",
    "Recipe",
    "Site",
    "SiteKind",
    "Solution",
    "Speed",
    "Statistic",
    "Statistics",
    "TableRole",
    "ValueFormat",
    "VariantRecord",
    "parse_size",
]
