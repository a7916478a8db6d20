"""The method interface: which values to put into a format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from blockwright.types.fusing import FusingMethod
from blockwright.types.width import WidthMethod

if TYPE_CHECKING:
    from torch import Tensor

    from blockwright.types.format import Format
    from blockwright.types.solution import Solution
    from blockwright.types.statistics import Statistic, Statistics


class LinearMethod(ABC):
    """A method for one linear weight.  Implementations are frozen, keyword-only dataclasses.

    A method never hooks a module, loads data or moves devices.  Class variables declare what it is.
    """

    paper: ClassVar[str]
    """Authors, title, venue, year."""
    family: ClassVar[str]
    """quantize, sparsify, lowrank, width or depth."""
    version: ClassVar[int]
    """Raised whenever the result changes: part of the library's key."""
    fills: ClassVar[type[Format]]
    """The kind of format it can fill."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Statistic]:
        """Statistics it reads with these hyperparameters; it is handed no others."""

    @abstractmethod
    def solve(self, W_OI: Tensor, statistics: Statistics, format: Format) -> Solution:
        """Values for a weight.  ``W_OI`` is fp32, contiguous and must not be modified.

        Raises ``NumericalError`` with the reason when no finite solution is found.
        """

    def solve_each(
        self, W_OI: Tensor, statistics: Statistics, formats: Iterable[Format]
    ) -> Iterator[Solution]:
        """``solve`` for one format after another, bit for bit; work may be shared."""
        for format in formats:
            yield self.solve(W_OI, statistics, format)


class ScalingMethod(ABC):
    """A method for linears that read one tensor: it scales their inputs before they are filled.

    With t [I] > 0, inputs become x / t and weights W t, which changes no output.  What is in front
    of the linears takes in 1 / t, and ordinary methods fill W t.  In a candidate it stands first:
    ``int4-g64:awq>gptq``.  Implementations are frozen, keyword-only dataclasses.
    """

    paper: ClassVar[str]
    """Authors, title, venue, year."""
    family: ClassVar[str]
    """quantize, sparsify, lowrank or depth."""
    version: ClassVar[int]
    """Raised whenever the result changes: part of the library's key."""
    fills: ClassVar[type[Format]]
    """The kind of format it can scale for."""
    default_chain: ClassVar[tuple[str, tuple[tuple[str, str], ...]]]
    """Method, and its options, that fills what was scaled when the candidate names none."""

    @property
    @abstractmethod
    def needs(self) -> frozenset[Statistic]:
        """Statistics it reads with these hyperparameters; it is handed no others."""

    @abstractmethod
    def choose_scale(
        self, weights_OI: Sequence[Tensor], statistics: Statistics, format: Format
    ) -> Tensor:
        """t [I], fp32, finite and positive, for weights [O_m, I] and the input they share.

        Weights are fp32, contiguous and must not be modified.  Raises ``NumericalError`` with the
        reason when no finite scale is found.
        """


Method = LinearMethod | ScalingMethod | WidthMethod | FusingMethod
"""What a candidate's chain is made of."""
