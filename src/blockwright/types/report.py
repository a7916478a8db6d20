"""The report: everything that the page of a fit shows, as one JSON-able value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from blockwright.types.figures import finite
from blockwright.types.measurement import Quality, Speed

REPORT_VERSION = 1
NATS_PER_TOKEN = "nats per token"
"""The one unit of predicted loss that a measured KL divergence can be compared with."""


@dataclass(frozen=True, kw_only=True)
class AskedLimit:
    """One limit of the budget, in its own unit, and what came of it."""

    name: str
    """``bits``, ``size_bytes``, ``ratio`` or another limit of a plan."""
    asked: float
    got: float | None
    """None for a limit whose outcome is no figure of the plan."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was asked, what came out, what it cost; figures on the held-out text."""

    budget: str
    """What was asked, in words."""
    limits: tuple[AskedLimit, ...]
    plan: str
    """Name of the plan that was taken."""
    bits_per_weight: float
    original_bits_per_weight: float | None
    size_bytes: int
    original_size_bytes: int
    original: Quality
    fitted: Quality
    uniform: Quality | None
    uniform_plan: str | None
    uniform_bits_per_weight: float | None
    original_speed: Speed | None
    fitted_speed: Speed | None
    verified_tensors: int | None = None
    """Tensors that are bit for bit the original's; None where bits were lost."""


@dataclass(frozen=True, kw_only=True)
class PredictedPoint:
    """A plan that was only solved for: a point of the frontier, or a uniform plan."""

    name: str
    uniform: bool
    bits_per_weight: float
    size_bytes: int
    predicted_loss: float


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """A plan whose loss was measured: KL divergence, or relative error where there is no head."""

    name: str
    taken: bool
    uniform: bool
    bits_per_weight: float
    size_bytes: int
    predicted_loss: float
    """In the report's ``loss_unit``."""
    selection_loss: float
    heldout_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class MapColumn:
    """Sites of one name, one or more in every block (experts)."""

    name: str
    """Module path inside the block."""
    sites_per_block: int


@dataclass(frozen=True, kw_only=True)
class MapCell:
    """What was chosen at one column of one block."""

    column: int
    """Index into the columns."""
    candidate: str
    """The candidate, of most sites where experts differ."""
    bits_per_weight: float
    stored_bytes: int
    predicted_loss: float
    sites: int
    others: Mapping[str, int] = field(default_factory=dict)
    """Candidate -> sites, where the sites of a cell differ."""
    dropped_with: str = ""
    """Where it is dropped, what was dropped: the part's name inside the block; empty for the whole
    block.
    """
    decided_with: tuple[str, ...] = ()
    """Columns that one decision covers together; bytes and loss are of all of them."""


@dataclass(frozen=True, kw_only=True)
class MapRow:
    """One block."""

    block: int
    dropped: bool
    bits_per_weight: float
    stored_bytes: int
    cells: tuple[MapCell, ...]


@dataclass(frozen=True, kw_only=True)
class TableChoice:
    """What was chosen for an embedding or a head."""

    site: str
    role: str
    candidate: str
    bits_per_weight: float
    stored_bytes: int
    predicted_loss: float


@dataclass(frozen=True, kw_only=True)
class PlanMap:
    """The chosen candidate of every site."""

    columns: tuple[MapColumn, ...]
    rows: tuple[MapRow, ...]
    tables: tuple[TableChoice, ...]


@dataclass(frozen=True, kw_only=True)
class BlockImportance:
    """How much of the loss a block carries."""

    block: int
    share: float
    """Of this plan's predicted loss."""
    uniform_share: float | None
    """Of the uniform plan's predicted loss: the same candidate in every block."""
    drop_loss: float | None
    """Measured KL divergence of the model without the block, nats per token."""


@dataclass(frozen=True, kw_only=True)
class UnavailableGroup:
    """Variants that could not be built, for one reason."""

    reason: str
    candidates: tuple[str, ...]
    sites: tuple[str, ...]
    """The first of them."""
    variants: int
    site_count: int


@dataclass(frozen=True, kw_only=True)
class TextUsed:
    """One of the three texts."""

    name: str
    tokens: int
    sequence_length: int
    description: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where the figures were taken."""

    system: str
    processor: str
    cores: int
    threads: int
    device: str
    memory_bytes: int | None
    versions: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What decides the bytes of the folder, and what the run took."""

    command: str
    recipe: str
    """File of the folder that holds the whole request; empty where there is none."""
    seed: int
    texts: tuple[TextUsed, ...]
    fingerprint: str
    statistics: str
    finished: str
    """Date and time, UTC."""
    seconds: float
    peak_rss_bytes: int
    library_hits: int
    library_misses: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that the page shows, in its order."""

    model: str
    model_type: str
    blocks: int
    linear_weights: int
    verdict: Verdict
    loss_unit: str
    """Unit of every predicted loss."""
    frontier: tuple[PredictedPoint, ...]
    map: PlanMap
    importance: tuple[BlockImportance, ...]
    measured: tuple[MeasuredPlan, ...]
    unavailable: tuple[UnavailableGroup, ...]
    notes: tuple[str, ...]
    machine: Machine
    provenance: Provenance
    absent: Mapping[str, str] = field(default_factory=dict)
    """Section or figure -> why it is not there."""
    version: int = REPORT_VERSION

    @property
    def measures_kl(self) -> bool:
        """Whether losses are KL divergences (else relative errors of hidden states)."""
        return self.verdict.fitted.kl_divergence is not None

    @property
    def comparable(self) -> bool:
        """Whether predicted and measured losses share a unit."""
        return self.measures_kl and self.loss_unit == NATS_PER_TOKEN

    def to_json(self) -> dict[str, Any]:
        """Plain data; figures that are not finite become null."""
        plain: dict[str, Any] = finite(asdict(self))
        return plain
