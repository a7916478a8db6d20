"""Plans: the chosen candidate of each site, as small, versioned, readable, editable JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blockwright.errors import PlanError
from blockwright.types._decoding import Decoder
from blockwright.types.candidate import Candidate
from blockwright.types.memory import Memory
from blockwright.types.workload import Workload

PLAN_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Option:
    """One column of the plan's program: a candidate at a site, with what it costs."""

    site: str
    candidate: str
    weights: int
    """Weights that count for bits per weight (0 for tables)."""
    stored_bytes: int
    loss: float
    """Predicted loss, in the unit the plan minimises."""
    key: str = ""
    """Library key; empty for keep and drop."""
    contains: tuple[str, ...] = ()
    """Sites that are gone or decided when this is chosen (a dropped block holds its linears, one
    decision holds q, k and v).  All such options of a site contain the same, and containment nests.
    """
    tie: str = ""
    """Sites with one tie take the same candidate."""
    cache: str = ""
    """Block whose KV cache goes away with a dropped part."""
    other_bytes: int = 0
    """Change of the file size beside ``stored_bytes``, not in bits per weight: names in the header;
    negative for what goes away as well (a dropped block's norms)."""
    resident_bytes: int | None = None
    """Bytes in memory once loaded; negative for what goes away.  None: not known."""
    work: tuple[str, ...] = ()
    """What a machine profile times it by."""
    latency_ns: int | None = None
    """Time in one forward; negative for what goes away.  None: its kernel was not timed."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two choices that together cost more or less than each by itself (neighbouring blocks that
    are both dropped).
    """

    sites: tuple[str, str]
    candidates: tuple[str, str]
    loss: float
    """Added to the predicted loss of a plan with both."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A machine profile, as far as a problem needs it."""

    profile: str
    """Its digest."""
    workload: Workload
    fixed_ns: int
    """Everything that is no site, of all blocks."""
    original_ns: int
    """One forward of the original, predicted like any plan's."""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Timing:
        """Inverse of ``dataclasses.asdict``."""
        return cls(**{**data, "workload": Workload.from_json(data["workload"])})


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything a plan is solved from; kept in the library, so that no model is needed."""

    model: str
    """Where the model was, for messages."""
    fingerprint: str
    """Digest of the original's tensors and config."""
    statistics: str
    """Digest of the calibration."""
    options: tuple[Option, ...]
    linear_weights: int
    """Weights of all linear sites of the original (the denominator of bits per weight)."""
    fixed_bytes: int
    """Bytes of everything that is no site: norms, biases kept, headers."""
    original_bytes: int
    loss_unit: str = "squared output error"
    pairs: tuple[Pair, ...] = ()
    blocks: tuple[str, ...] = ()
    """All blocks, in order, of which one stays at least."""
    one_run: bool = False
    """Whether those that are dropped are one run of neighbours."""
    memory: Memory | None = None
    """What the loaded model holds beside its sites; None: not known, see ``memory_unknown``."""
    memory_unknown: str = ""
    """Why, if so."""
    timing: Timing | None = None
    """Where ``latency_ns`` comes from; None before a profile was applied."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a plan puts at one site."""

    candidate: str
    stored_bytes: int
    loss: float
    key: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One candidate per site.  ``choices`` may be edited by hand: change ``candidate``."""

    fingerprint: str
    statistics: str
    budget: str
    bits_per_weight: float
    size_bytes: int
    """Predicted size of the safetensors files."""
    loss: float
    choices: Mapping[str, Choice]
    name: str = "plan"
    """``plan``, or ``uniform int4-g64:gptq``."""
    version: int = PLAN_VERSION
    measured: Mapping[str, float] = field(default_factory=dict)
    """Figures measured on the selection text, if any."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """The budget in figures: ``bits``, ``size_bytes``, ``ratio``, ``ram_bytes`` with ``context``,
    ``speedup``.  An edited plan keeps them."""
    ram_bytes: int | None = None
    """Predicted memory of the loaded model at the limit's context; None without such a limit."""
    latency_ns: int | None = None
    """Predicted time of one forward of ``workload``; None without a profile."""
    speedup: float | None = None
    """Predicted, against the original under the same profile."""
    workload: Mapping[str, Any] | None = None
    """Phase, batch and context that latency and memory are counted at."""
    profile: str = ""
    """Digest of the machine profile that was used."""
    healed: Mapping[str, str] = field(default_factory=dict)
    """Block -> library key of its healed tensors, which stand in place of the choices' own.  Found
    anew when a plan file is built, as the choices' keys are.
    """

    def to_json(self) -> dict[str, Any]:
        """Without ``healed`` when no block is."""
        data = asdict(self)
        return data if self.healed else {k: v for k, v in data.items() if k != "healed"}

    def to_text(self) -> str:
        """As it stands in a file: keys in a fixed order."""
        return json.dumps(self.to_json(), indent=1) + "\n"

    def write(self, path: Path) -> None:
        """Write atomically."""
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.to_text(), encoding="utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read and check a plan file; raises ``PlanError`` naming the field that is wrong."""
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise PlanError(f"plan {path} does not exist") from None
        except (OSError, ValueError, RecursionError) as error:
            raise PlanError(f"plan {path} is no readable JSON: {error}") from None
        return cls.from_json(data, where=str(path))

    @classmethod
    def from_json(cls, data: Any, where: str) -> Plan:
        """Checked against the fields of the dataclasses; unknown keys are errors."""
        if not isinstance(data, dict):
            raise PlanError(f"{where}: a plan is a JSON object, got {type(data).__name__}")
        version = data.get("version")
        if version != PLAN_VERSION:
            raise PlanError(f"{where}: plan version {version}, this tool reads {PLAN_VERSION}")
        choices = data.get("choices")
        if not isinstance(choices, dict) or not choices:
            raise PlanError(f"{where}: 'choices' must map every site to its candidate")
        plan = cls(**DECODER.fields(cls, data, where))
        for choice in plan.choices.values():
            Candidate.parse(choice.candidate)
        return plan


DECODER = Decoder(PlanError)
