"""Builds the model on ``meta`` and splits it into stem, blocks, head and sites."""

from blockwright.anatomy.absent import Absent, install_absent, sentinel_of
from blockwright.anatomy.narrowed import (
    Slice,
    head_shapes,
    install_narrow,
    narrow_shapes,
    shapes_within,
    slices_of,
    slices_within,
)
from blockwright.anatomy.parts import FoundPart, find_parts
from blockwright.anatomy.placed import install_placed
from blockwright.anatomy.pruned import pruned_config
from blockwright.anatomy.sites import find_sites
from blockwright.anatomy.skeleton import Skeleton, build_skeleton, skeleton_of_config

__all__ = [
    "Absent",
    "FoundPart",
    "Skeleton",
    "Slice",
    "build_skeleton",
    "find_parts",
    "find_sites",
    "head_shapes",
    "install_absent",
    "install_narrow",
    "install_placed",
    "narrow_shapes",
    "pruned_config",
    "sentinel_of",
    "shapes_within",
    "skeleton_of_config",
    "slices_of",
    "slices_within",
]
