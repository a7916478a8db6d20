"""Reads tensors by name from safetensors, never the whole model; writes them atomically."""

from blockwright.checkpoint.atomic import (
    partial_path,
    sync_folder,
    write_bytes_atomic,
    write_json_atomic,
)
from blockwright.checkpoint.materialize import materialize
from blockwright.checkpoint.parameters import ParameterSource
from blockwright.checkpoint.reader import Checkpoint, check_finite
from blockwright.checkpoint.source import ModelSource, resolve_model
from blockwright.checkpoint.writer import ShardWriter

__all__ = [
    "Checkpoint",
    "ModelSource",
    "ParameterSource",
    "ShardWriter",
    "check_finite",
    "materialize",
    "partial_path",
    "resolve_model",
    "sync_folder",
    "write_bytes_atomic",
    "write_json_atomic",
]
