"""Builds the model on ``meta`` and splits it into stem, blocks, head and sites."""

from blockwright.anatomy.pruned import pruned_config
from blockwright.anatomy.sites import find_sites
from blockwright.anatomy.skeleton import Skeleton, build_skeleton, skeleton_of_config

__all__ = ["Skeleton", "build_skeleton", "find_sites", "pruned_config", "skeleton_of_config"]
