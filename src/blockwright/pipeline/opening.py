"""Opens everything a run needs: the model, the texts, the library, the candidates on offer."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.assemble import check_free
from blockwright.checkpoint import Checkpoint, ModelSource, ParameterSource, resolve_model
from blockwright.errors import (
    AttentionError,
    BudgetError,
    CandidateError,
    FormatError,
    ModelError,
)
from blockwright.library import Library
from blockwright.pipeline.presets import candidates_of
from blockwright.pipeline.texts import Texts, open_texts
from blockwright.progress import Progress, SilentProgress
from blockwright.registry import is_scaled, policy_named, resolve
from blockwright.stream import BATCH_TOKENS, Around, Inputs, Stream, WeightSource
from blockwright.types import (
    DROP,
    DROP_RUN,
    KEEP,
    CacheFormat,
    Candidate,
    FitRequest,
    Format,
    FuseFormat,
    PackedFormat,
    Phase,
    Plan,
    Site,
    SiteKind,
    WidthFormat,
)


@dataclass(frozen=True)
class Original:
    """A model as it was given."""

    source: ModelSource
    checkpoint: Checkpoint
    skeleton: Skeleton
    parameters: ParameterSource
    progress: Progress

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of every checkpoint tensor; reads them all once and refuses NaN and infinity."""
        found, megabytes = {}, self.checkpoint.total_file_bytes / 1e6
        with self.progress.stage("read the weights", megabytes, "MB") as stage:
            for name in self.checkpoint.names:
                found[name] = self.checkpoint.finite_digest(name)
                stage.advance(self.checkpoint.nbytes(name) / 1e6)
        return found

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the config and all tensors."""
        config = (self.source.path / "config.json").read_bytes()
        return digest_of([hashlib.sha256(config).hexdigest(), sorted(self.digests.items())])

    def weight_digest(self, site: Site) -> str:
        """Digest of what a site's weight is made from."""
        names = self.parameters.sources(site.parameter)
        return digest_of([site.expert, [self.digests[name] for name in names]])


@dataclass(frozen=True)
class Opened:
    """One fit's model and library: what it needs even where nothing is calibrated."""

    request: FitRequest
    progress: Progress
    original: Original
    library: Library

    @property
    def skeleton(self) -> Skeleton:
        return self.original.skeleton

    def stream(
        self,
        weights: WeightSource | None = None,
        dtype: torch.dtype = torch.float32,
        blocks: list[int] | None = None,
        around: Around | None = None,
        skeleton: Skeleton | None = None,
    ) -> Stream:
        """The original block by block, or with other weights, or attending otherwise."""
        return Stream(
            skeleton or self.skeleton,
            weights or self.original.parameters,
            dtype=dtype,
            device=self.request.device,
            blocks=blocks,
            around=around,
        )


@dataclass(frozen=True)
class Run(Opened):
    """One fit, opened: what its stages share."""

    texts: Texts
    candidates: tuple[Candidate, ...]
    edited: Plan | None = None
    """A plan given by the user: only what it names is built."""

    @property
    def capture_dtype(self) -> torch.dtype:
        """Calibration runs in the dtype the weights are stored in."""
        return next(iter(self.skeleton.parameters.values())).dtype

    @cached_property
    def calibration_inputs(self) -> Inputs:
        return Inputs.of_tokens(self.texts.calibration.ids)

    @cached_property
    def surroundings(self) -> dict[str, Any]:
        """What beside model, text and candidate decides the bits of a variant."""
        return {
            "torch": torch.__version__,
            "cpu": torch.backends.cpu.get_cpu_capability(),
            "device": self.request.device,
            "threads": torch.get_num_threads(),
            "dtype": str(self.capture_dtype),
            "batch_tokens": BATCH_TOKENS,
        }

    @cached_property
    def statistics_digest(self) -> str:
        """Digest of what the calibration saw."""
        return digest_of(
            [self.original.fingerprint, self.texts.calibration.digest, self.surroundings]
        )

    @property
    def drops_parts(self) -> bool:
        """Whether attention and FFNs are on offer to be dropped."""
        return DROP in self.candidates

    @property
    def offers_parts(self) -> bool:
        """Whether attention and FFNs are sites: to be dropped, or to be narrower."""
        formats = (resolve(candidate)[0] for candidate in self.candidates)
        return self.drops_parts or any(isinstance(format, WidthFormat) for format in formats)

    @property
    def drops_blocks(self) -> bool:
        """Whether blocks are; those that others take over among them."""
        fuses = any(isinstance(resolve(c)[0], FuseFormat) for c in self.candidates)
        return self.drops_parts or DROP_RUN in self.candidates or fuses

    def candidates_for(self, site: Site) -> list[Candidate]:
        """Candidates that can stand at this kind of site (built ones, not keep or drop): by their
        format; those that scale inputs at groups, and only those.
        """
        if self.edited is not None:
            return self._planned_for(self.edited, site)
        if site.kind is SiteKind.TABLE and not self.counts_tables:
            return []
        if site.kind is SiteKind.PART:
            return [c for c in self.candidates if isinstance(resolve(c)[0], WidthFormat)]
        if site.kind is SiteKind.BLOCK:
            return [c for c in self.candidates if self._can_fuse(c, site)]
        grouped = site.kind is SiteKind.GROUP
        kind = SiteKind.LINEAR if grouped else site.kind
        return [
            candidate
            for candidate in self.candidates
            if isinstance(resolve(candidate)[0], PackedFormat)
            and kind in resolve(candidate)[0].kinds
            and is_scaled(candidate) == grouped
        ]

    def _can_fuse(self, candidate: Candidate, site: Site) -> bool:
        """Whether it makes one block of this one and a neighbour that is there."""
        format, blocks = resolve(candidate)[0], self.skeleton.num_blocks
        return isinstance(format, FuseFormat) and 0 <= format.lost(site.block or 0) < blocks

    @staticmethod
    def _planned_for(plan: Plan, site: Site) -> list[Candidate]:
        choice = plan.choices.get(site.id)
        candidate = Candidate.parse(choice.candidate) if choice else KEEP
        stands = is_scaled(candidate) == (site.kind is SiteKind.GROUP)
        built = isinstance(resolve(candidate)[0], PackedFormat | WidthFormat | FuseFormat)
        return [candidate] if stands and built else []

    def stored_bytes(self, candidate: Candidate, site: Site) -> int:
        """Bytes of a variant, from its format alone: the most, where values decide; 0 where the
        format cannot take the shape.
        """
        format = resolve(candidate)[0]
        return format.stored_bytes(site.shape) if _fits(format, site) else 0

    def least_bytes(self, candidate: Candidate, site: Site) -> int:
        """The fewest that they can be."""
        format = resolve(candidate)[0]
        return format.least_bytes(site.shape) if _fits(format, site) else 0

    @property
    def counts_tables(self) -> bool:
        """Tables are on offer when they count against the budget."""
        budget = self.request.budget
        return budget is None or budget.counts_files


def open_original(
    model: str,
    revision: str | None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> Original:
    """Open a model folder or hub id; shapes and presence of all tensors are checked."""
    source = resolve_model(model, revision, trust_remote_code=trust_remote_code)
    checkpoint = Checkpoint.open(source.path)
    skeleton = build_skeleton(source.path, trust_remote_code=trust_remote_code)
    if getattr(skeleton.config, "quantization_config", None) is not None:
        raise ModelError(f"{model} is quantized already; fit its original")
    parameters = ParameterSource(skeleton.model, checkpoint)
    parameters.check_shapes()
    return Original(source, checkpoint, skeleton, parameters, progress or SilentProgress())


def open_run(request: FitRequest, progress: Progress) -> Run:
    """Check the request and open all it names; beside an empty library nothing is written."""
    if request.budget is None and request.plan is None:
        raise BudgetError(
            "no budget: give --bits, --size or --ratio, and --ram or --speedup; or --plan; or"
            " --lossless"
        )
    set_up(request)
    candidates = tuple(map(Candidate.parse, request.candidates)) or candidates_of(request.preset)
    for candidate in candidates:
        resolve(candidate)
    check_caches(request)
    check_policies(request)
    if len(set(map(str, candidates))) < len(candidates):
        raise CandidateError(f"candidates {', '.join(map(str, candidates))}: one is named twice")
    with progress.stage("open model and texts", 2, "parts") as stage:
        original = open_original(
            request.model, request.revision, request.trust_remote_code, progress
        )
        stage.advance()
        texts = open_texts(request, original.source.path, original.skeleton)
    return Run(
        request=request,
        progress=progress,
        original=original,
        texts=texts,
        library=Library(request.library or default_library()),
        candidates=candidates,
        edited=Plan.read(request.plan) if request.plan else None,
    )


def check_caches(request: FitRequest) -> None:
    """Raise ``CandidateError`` or ``BudgetError`` for formats of KV caches that cannot stand."""
    for text in request.kv:
        if text != str(KEEP):
            CacheFormat.parse(text)
    budget = request.budget
    if request.kv and budget is not None and budget.ram_bytes is None:
        raise BudgetError(
            "--kv: formats of KV caches are chosen under a limit on memory; give --ram and"
            " --context, or leave --kv out"
        )


def check_policies(request: FitRequest) -> None:
    """Raise ``AttentionError`` or ``CandidateError`` for policies that cannot stand, and
    ``BudgetError`` where nothing decides between them.
    """
    for text in request.attention:
        if not policy_named(text).causal:
            raise AttentionError(f"--attention: policy {text} is not for causal attention")
    budget = request.budget
    if request.attention and (
        budget is None or budget.speedup is None or budget.phase is not Phase.PREFILL
    ):
        raise BudgetError(
            "--attention: policies are chosen under a limit on the speed of reading; give"
            " --speedup with --phase prefill and --context, or leave --attention out"
        )


def _fits(format: Format, site: Site) -> bool:
    try:
        format.check_shape(site.shape, site.id)
    except FormatError:
        return False
    return True


def set_up(request: FitRequest) -> None:
    """Check where results go and what computes; set threads and seed."""
    check_free(request.out)
    check_device(request.device)
    torch.set_num_threads(request.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(request.seed)


def check_device(device: str) -> None:
    """Raise ``ModelError`` for a device that this machine or this torch does not have."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"device {device!r} cannot be used here ({reason}); give --device cpu"
        ) from None


def default_library() -> Path:
    """Where variants are kept unless the user names a folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "blockwright" / "library"


def digest_of(value: Any) -> str:
    """Digest of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def by_id(skeleton: Skeleton) -> Mapping[str, Site]:
    """Sites by id."""
    return {site.id: site for site in skeleton.sites}
