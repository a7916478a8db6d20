"""Reads tensors by name from safetensors, never the whole model; writes them atomically."""

from blockwright.checkpoint.atomic import write_bytes_atomic, write_json_atomic
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
    "resolve_model",
    "write_bytes_atomic",
    "write_json_atomic",
]
