"""Writes a plan as a model folder that transformers loads."""

from blockwright.assemble.folder import Layout, assemble, check_free, folder_config

__all__ = ["Layout", "assemble", "check_free", "folder_config"]
