"""Runs a model block by block from disk."""

from blockwright.stream.activations import ActivationFile, ActivationWriter
from blockwright.stream.backward import Loss, block_gradients, head_gradients
from blockwright.stream.caches import fill_cache
from blockwright.stream.calls import BlockCall
from blockwright.stream.executor import BATCH_TOKENS, Around, Inputs, Stem, Stream
from blockwright.stream.sources import (
    DenseWeight,
    FittedFolder,
    Substituted,
    WeightSource,
    WithZeros,
    part_of,
    weight_of,
    with_weights,
)
from blockwright.stream.tap import LinearTap, Observer

__all__ = [
    "BATCH_TOKENS",
    "ActivationFile",
    "ActivationWriter",
    "Around",
    "BlockCall",
    "DenseWeight",
    "FittedFolder",
    "Inputs",
    "LinearTap",
    "Loss",
    "Observer",
    "Stem",
    "Stream",
    "Substituted",
    "WeightSource",
    "WithZeros",
    "block_gradients",
    "fill_cache",
    "head_gradients",
    "part_of",
    "weight_of",
    "with_weights",
]
