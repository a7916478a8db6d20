"""A linear with a mask that a sparse format can store, and the option that names the format.

Masks are those of the formats that ``fit`` offers (``sparse2of4``, ``sparse70``,
``panel32x4-50``), so what a recipe leaves is stored without loss by the format it was trained for.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from blockwright.errors import CandidateError, TrainingError
from blockwright.registry import format_named
from blockwright.training.recipe import Place, TrainedMatrix
from blockwright.types import MaskedFormat


def masked_format(recipe: str, name: str) -> MaskedFormat:
    """The sparse format that an option names; raises ``TrainingError``."""
    try:
        format = format_named(name)
    except CandidateError as error:
        raise TrainingError(f"recipe {recipe}@format: {error}") from None
    if not isinstance(format, MaskedFormat) or format.name != format.structure:
        raise TrainingError(
            f"recipe {recipe}@format: got {name!r}, allowed: formats with zeros and plain values,"
            " e.g. sparse2of4, sparse70 or panel32x4-50; other values are what fit chooses later"
        )
    return format


def pattern_of(recipe: str, format: MaskedFormat) -> tuple[int, int]:
    """N and M of an N:M format; raises ``TrainingError`` for any other."""
    m = format.pattern_size
    if not m or format.unit != (1, 1):
        raise TrainingError(
            f"recipe {recipe}@format: got {format.name!r}, allowed: N of M, e.g. sparse2of4 or"
            " sparse1of8"
        )
    return format.kept(m), m


class MaskedMatrix(TrainedMatrix):
    """A linear that ends with the zeros of a mask, chosen by the weight's magnitude."""

    mask_OI: Tensor  # noqa: N815 - shape suffix
    """bool [O, I], True = kept"""

    def __init__(self, linear: nn.Linear, place: Place, format: MaskedFormat) -> None:
        super().__init__(linear, place)
        format.check_structure((linear.out_features, linear.in_features), place.name)
        self.format = format
        self.register_buffer("mask_OI", torch.ones_like(self.weight, dtype=torch.bool))

    def choose_mask(self) -> None:
        """Keep what is largest."""
        self.mask_OI.copy_(self.format.best_mask(self.weight.detach().abs()))

    def apply_mask(self) -> None:
        """Make the others zero."""
        self.weight.mul_(self.mask_OI)

    def mask_gradient(self) -> None:
        """The others get no gradient."""
        if self.weight.grad is not None:
            self.weight.grad.mul_(self.mask_OI)

    def finish(self) -> None:
        self.apply_mask()
