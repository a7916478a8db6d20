"""Frozen values that pass between stages.  Imports no torch."""

from blockwright.types.budget import Budget, parse_size
from blockwright.types.cache import CacheFormat, KeyGroups, cache_block, cache_site
from blockwright.types.candidate import DROP, DROP_RUN, KEEP, Candidate
from blockwright.types.composite import (
    CompositeFormat,
    FactoredFormat,
    MaskedFormat,
    PermutedFormat,
    SumFormat,
)
from blockwright.types.fit import FitRequest, FitResult, Preset, Price
from blockwright.types.format import (
    Format,
    Grid,
    GridFormat,
    LosslessFormat,
    MixedRowsFormat,
    OffsetFormat,
    OutlierFormat,
    PackedFormat,
    PackedLinear,
    StoredCodes,
    ValueFormat,
    ZeroPointFormat,
)
from blockwright.types.group import Group, group_site
from blockwright.types.limits import FormatLimits
from blockwright.types.measurement import LimitFigures, Quality, Speed
from blockwright.types.memory import CacheGrowth, Memory
from blockwright.types.method import LinearMethod, Method, ScalingMethod
from blockwright.types.part import (
    AbsentModule,
    NarrowedPart,
    Part,
    PartRole,
    absent_from_json,
    absent_to_json,
    part_site,
)
from blockwright.types.plan import PLAN_VERSION, Choice, Option, Pair, Plan, Problem, Timing
from blockwright.types.profile import PROFILE_VERSION, Profile
from blockwright.types.recipe import Recipe
from blockwright.types.site import Site, SiteKind, TableRole
from blockwright.types.solution import (
    DenseSolution,
    FactoredSolution,
    GridSolution,
    MaskedSolution,
    MixedRowsSolution,
    OutlierSolution,
    PermutedSolution,
    Solution,
    SumSolution,
)
from blockwright.types.statistics import Statistic, Statistics
from blockwright.types.variant import VariantRecord, packed_name, parameter_name
from blockwright.types.width import Channels, WidthFormat, WidthMethod
from blockwright.types.workload import DEFAULT_CONTEXT, Phase, Workload

__all__ = [
    "DEFAULT_CONTEXT",
    "DROP",
    "DROP_RUN",
    "KEEP",
    "PLAN_VERSION",
    "PROFILE_VERSION",
    "AbsentModule",
    "Budget",
    "CacheFormat",
    "CacheGrowth",
    "Candidate",
    "Channels",
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
    "Group",
    "KeyGroups",
    "LimitFigures",
    "LinearMethod",
    "LosslessFormat",
    "MaskedFormat",
    "MaskedSolution",
    "Memory",
    "Method",
    "MixedRowsFormat",
    "MixedRowsSolution",
    "NarrowedPart",
    "OffsetFormat",
    "Option",
    "OutlierFormat",
    "OutlierSolution",
    "PackedFormat",
    "PackedLinear",
    "Pair",
    "Part",
    "PartRole",
    "PermutedFormat",
    "PermutedSolution",
    "Phase",
    "Plan",
    "Preset",
    "Price",
    "Problem",
    "Profile",
    "Quality",
    "Recipe",
    "ScalingMethod",
    "Site",
    "SiteKind",
    "Solution",
    "Speed",
    "Statistic",
    "Statistics",
    "StoredCodes",
    "SumFormat",
    "SumSolution",
    "TableRole",
    "Timing",
    "ValueFormat",
    "VariantRecord",
    "WidthFormat",
    "WidthMethod",
    "Workload",
    "ZeroPointFormat",
    "absent_from_json",
    "absent_to_json",
    "cache_block",
    "cache_site",
    "group_site",
    "packed_name",
    "parameter_name",
    "parse_size",
    "part_site",
]
