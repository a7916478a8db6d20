"""Writes a plan as a model folder that transformers loads."""

from blockwright.assemble.folder import (
    Layout,
    Specs,
    StoredTensors,
    assemble,
    check_free,
    folder_config,
    unfinished_folder,
    write_model,
)
from blockwright.assemble.rewriting import rewrite_folder

__all__ = [
    "Layout",
    "Specs",
    "StoredTensors",
    "assemble",
    "check_free",
    "folder_config",
    "rewrite_folder",
    "unfinished_folder",
    "write_model",
]
