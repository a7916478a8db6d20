"""The report of a fit: its parts from plans and sites, and the page.  Imports no torch."""

from blockwright.report.importance import weigh_blocks
from blockwright.report.measured import measured_plans
from blockwright.report.page import render
from blockwright.report.plan_map import map_plan
from blockwright.report.reasons import group_reasons

__all__ = [
    "group_reasons",
    "map_plan",
    "measured_plans",
    "render",
    "weigh_blocks",
]
