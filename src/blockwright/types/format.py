"""The format interface: how weights are stored and multiplied.

A ``Format`` is the small frozen description (``int4-g64``): it knows names, shapes and bytes and
imports no torch.  The ``nn.Module`` that holds the packed tensors and multiplies stands in the
same file and is made by ``empty`` (for loading) or ``pack`` (from a method's solution).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

from blockwright.errors import CandidateError
from blockwright.types.solution import GridSolution

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from blockwright.types.limits import FormatLimits
    from blockwright.types.site import SiteKind
    from blockwright.types.solution import Solution


class Format(ABC):
    """Description of one way to store a weight.  Implementations are frozen dataclasses."""

    version: ClassVar[int]
    """Raised when the stored layout changes; older folders stay readable."""
    kinds: ClassVar[frozenset[SiteKind]]
    """Kinds of site it can stand at."""
    default_method: ClassVar[str | None]
    """Method used when a candidate names none; None for formats that nothing fills (keep, drop)."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Canonical name in the candidate grammar."""

    @classmethod
    @abstractmethod
    def parse(cls, name: str) -> Self:
        """Read a name; raises ``CandidateError`` saying what is allowed."""

    def with_values(self, values: Format) -> Format:
        """``SELF+VALUES`` of the grammar; raises ``CandidateError`` where there is nothing to
        store otherwise.
        """
        raise CandidateError(
            f"{self.name}+{values.name}: {self.name} has no values to store as {values.name};"
            " '+' follows formats made of parts, e.g. rank-p50+int8 or sparse2of4+int4-g64"
        )

    @classmethod
    def examples(cls) -> tuple[str, ...]:
        """Names that the conformance suite tests."""
        return ()

    @property
    @abstractmethod
    def limits(self) -> FormatLimits:
        """Shapes it can take, and who else reads it."""

    @abstractmethod
    def check_shape(self, shape: tuple[int, int], where: str) -> None:
        """Raise ``FormatError`` (naming ``where`` and what would fit) if ``(out, in)`` cannot be
        stored.
        """

    @abstractmethod
    def stored_bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of all tensors stored for a weight of ``(out, in)``, bias left out."""

    def least_bytes(self, shape: tuple[int, int]) -> int:
        """Fewest bytes that it can take; less than ``stored_bytes`` where values decide."""
        return self.stored_bytes(shape)

    def resident_bytes(self, shape: tuple[int, int], device: str = "cpu") -> int:
        """Bytes of the weight's tensors once a folder is loaded on this machine, bias left out.

        Formats that change to a kernel's own layout count that.
        """
        return self.stored_bytes(shape)

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able description with the format version; ``from_spec`` inverts it."""

    @classmethod
    @abstractmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Self:
        """Inverse of ``spec``; raises ``FormatError`` for a newer version."""


class PackedFormat(Format):
    """A format with a packed module that multiplies."""

    @abstractmethod
    def empty(
        self, shape: tuple[int, int], *, bias: bool, dtype: torch.dtype, device: str = "meta"
    ) -> PackedLinear:
        """A module of ``(out, in)`` with unfilled tensors, ready to be loaded into."""

    @abstractmethod
    def pack(self, solution: Solution, bias_O: Tensor | None, dtype: torch.dtype) -> PackedLinear:
        """The packed module of a solution; ``dtype`` = activations.

        Raises ``TypeError`` for a solution of another kind of format.
        """


class LosslessFormat(PackedFormat):
    """A packed format that gives bfloat16 weights back bit for bit.

    Its bytes depend on the values: a named format says the most (``stored_bytes``) and the least
    (``least_bytes``), the format of a packed module and its spec say what that one takes.
    """


class PackedLinear(Protocol):
    """What every packed module offers, a drop-in for ``nn.Linear``: ``formats.FormatLinear``."""

    @property
    def format(self) -> PackedFormat:
        """What it is stored as."""

    in_features: int
    out_features: int

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out] on the packed kernel."""

    def differentiable(self, x: Tensor) -> Tensor:
        """The same product with gradients to x and to the floating-point tensors (scales ...)."""

    def differentiable_weight(self) -> Tensor:
        """The weight [out, in] with gradients to the floating-point tensors, in portable state."""

    def dequantize(self) -> Tensor:
        """The weight [out, in], fp32."""

    def rows(self, index: Tensor) -> Tensor:
        """Dequantized rows [len(index), in], for embeddings."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of ``stored_tensors``."""

    @property
    def stored_names(self) -> tuple[str, ...]:
        """Names of the stored tensors, bias included where there is one."""

    def stored_tensor(self, name: str) -> Tensor:
        """One of the stored tensors, of the portable module."""

    def replace_stored(self, name: str, tensor: Tensor) -> None:
        """Put another tensor in its place, of any dtype and with gradients, for tuning."""

    def load_stored(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the stored tensors; the inverse of ``stored_tensors``."""

    def stored_tensors(self) -> dict[str, Tensor]:
        """The tensors as stored on disk, machine-independent, bias included."""


@runtime_checkable
class Grid(Protocol):
    """Representable values of a scalar-quantized weight [out, in], a set for every element."""

    def encode(self, W_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Codes uint8 [O, J] of the nearest representable values of these columns."""

    def decode(self, codes_OJ: Tensor, columns: slice | Tensor) -> Tensor:
        """Values fp32 [O, J] of codes of these columns."""

    def replaced(self, columns: slice, other: Grid) -> Grid:
        """This grid with the groups of ``columns`` (whole groups) taken from ``other`` [O, len]."""


class ValueFormat(PackedFormat):
    """A packed format that stores every element by itself, so that it can store parts of others."""

    @abstractmethod
    def nearest(self, W_OI: Tensor) -> Solution:
        """Every element rounded to the nearest value that can be stored."""


class GridFormat(ValueFormat):
    """A packed format whose elements each take a value of a ``Grid`` (int, bfp, nf, fp4 ...)."""

    group_size: int
    """Consecutive inputs that share a scale; 0 = the whole row."""

    @abstractmethod
    def fit_grid(
        self, W_OI: Tensor, *, search: bool = False, importance_I: Tensor | None = None
    ) -> Grid:
        """Choose scales for a weight or a slice of whole groups.

        ``search`` tries shrunken ranges and keeps, per group, the one of least squared error
        weighted by ``importance_I`` (1 if None).  Scales are already rounded to their stored dtype.
        """

    def nearest(self, W_OI: Tensor) -> GridSolution:
        """Nearest codes, ranges searched."""
        grid = self.fit_grid(W_OI, search=True)
        return GridSolution(codes_OI=grid.encode(W_OI, slice(None)), grid=grid)


class OffsetFormat(GridFormat):
    """A grid format of uniform levels that begin at any real number in each group: what it fits is
    an ``OffsetGrid``, a scale and an offset per group.
    """


class OutlierFormat(PackedFormat):
    """Rows on a symmetric grid, but for some whole input columns, kept in 16 bits."""

    @property
    @abstractmethod
    def rest(self) -> GridFormat:
        """The format of what is not kept, [O, I] with zeros in the kept columns."""

    @abstractmethod
    def kept(self, in_features: int) -> int:
        """Columns kept of so many inputs, K."""


class SalientFormat(PackedFormat):
    """Some whole input columns on a finer grid than the others, which have a factor each."""

    @property
    @abstractmethod
    def salient(self) -> GridFormat:
        """The format of the finer columns, [O, K]."""

    @property
    @abstractmethod
    def rest(self) -> GridFormat:
        """The format of the others over their factors, [O, I - K]."""

    @abstractmethod
    def kept(self, in_features: int) -> int:
        """Finer columns of so many inputs, K."""

    @abstractmethod
    def stored_factor(self, factor_J: Tensor) -> Tensor:
        """Factors as they will be stored, fp32."""


class VectorFormat(PackedFormat):
    """Codes of vectors of consecutive inputs, in a codebook of the weight's own; implementations
    are frozen dataclasses with these fields.
    """

    entries: int
    """Vectors of the codebook, K."""
    dim: int
    """Inputs that share a code, D."""
    group_size: int
    """Consecutive inputs that share a scale; 0 = the whole row."""


class DyadicFormat(PackedFormat):
    """Integer rows, inputs and outputs, joined by dyadic numbers."""

    input_top: ClassVar[int]
    """Largest integer of an input."""
    output_top: ClassVar[int]
    """Largest integer of an output."""

    @property
    @abstractmethod
    def rows(self) -> GridFormat:
        """The symmetric format of the rows, [O, I]."""


class MixedRowsFormat(PackedFormat):
    """Some whole rows on a finer grid than the others."""

    @property
    @abstractmethod
    def narrow(self) -> GridFormat:
        """The format of most rows."""

    @property
    @abstractmethod
    def wide(self) -> GridFormat:
        """The format of the finer rows."""

    @abstractmethod
    def wide_rows(self, out_features: int) -> int:
        """How many rows of so many are wide."""


class ZeroPointFormat(GridFormat):
    """A grid format of uniform grids, W_hat = scale (code - zero_point): ``fit_grid`` gives a
    ``numerics.grids.AffineGrid``.
    """
