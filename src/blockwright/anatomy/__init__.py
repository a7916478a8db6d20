"""Builds the model on ``meta`` and splits it into stem, blocks, head and sites."""

from blockwright.anatomy.absent import Absent, install_absent, sentinel_of
from blockwright.anatomy.narrowed import Slice, install_narrow, narrow_shapes, slices_of
from blockwright.anatomy.parts import FoundPart, find_parts
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
    "install_absent",
    "install_narrow",
    "narrow_shapes",
    "pruned_config",
    "sentinel_of",
    "skeleton_of_config",
    "slices_of",
]
