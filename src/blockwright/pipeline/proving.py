"""The proof: the folder measured on held-out text, reloaded in a fresh process, and timed."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blockwright.anatomy import Skeleton, build_skeleton, install_narrow, install_placed
from blockwright.assemble import Layout, Specs, StoredTensors, write_model
from blockwright.attention.huggingface import attends_by_policy, use_attention
from blockwright.attention.spelling import spec_of
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.errors import AttentionError, BudgetError, ModelError
from blockwright.evaluate import FinalHidden, Loading, ask_fresh_process, measure, run_to_file
from blockwright.kvcache import chosen_formats, decoded
from blockwright.numerics.finite import all_finite
from blockwright.pipeline.measuring import (
    kept_blocks,
    measure_plan,
    original_on,
    planned_caches,
    planned_policies,
)
from blockwright.pipeline.opening import Opened, Run
from blockwright.pipeline.parting import dropped_parts
from blockwright.pipeline.placing import Placement
from blockwright.stream import FittedFolder, Inputs, Stream, WeightSource, WithZeros
from blockwright.types import KEEP, Plan, Quality, Speed, absent_from_json

Caches = Mapping[int, Mapping[str, Any]]
"""Block -> spec of its KV cache's format."""
RELOAD_ROWS, RELOAD_TOKENS = 2, 64
RELOAD_TOLERANCE = 1e-3
"""Largest relative difference of logits between the reloaded folder and the streamed one, both
fp32.
"""
SPEED_PREFILL_TOKENS = 256
FRESH_PROCESS_SECONDS = 7.0
"""Imports and first calls of a fresh process."""
LOAD_BYTES_PER_SECOND = 2e8
"""Reading, unpacking and some forward passes of a model, by its bytes."""
PLAN_FILE = "blockwright-plan.json"


@dataclass(frozen=True)
class Proof:
    """Figures of the finished folder."""

    original: Quality
    fitted: Quality
    uniform: Quality | None
    original_speed: Speed | None
    fitted_speed: Speed | None
    size_bytes: int
    """Of the folder's safetensors files."""
    notes: tuple[str, ...]


def write_folder(run: Run, plan: Plan, folder: Path) -> int:
    """Assemble the plan in an empty folder; returns file bytes, which must keep the budget."""
    placement = Placement(run, plan)
    specs = {site: placement.spec(site) for site in placement.keys} | placement.inner_specs()
    caches = {block: format.spec() for block, format in planned_caches(plan).items()}
    layout = layout_of(run, specs, kept_blocks(run, plan), caches)
    layout = replace(
        layout,
        policies={block: spec_of(policy) for block, policy in planned_policies(plan).items()},
        dropped=dropped_parts(run, plan),
        narrowed=[narrowing.narrowed for narrowing in placement.narrowed],
    )
    size = fill_folder(run, layout, placement.source(), placement.tensors, plan, folder)
    check_size(run, size)
    return size


def layout_of(
    run: Opened,
    specs: Specs,
    kept: Sequence[int],
    caches: Caches | None = None,
) -> Layout:
    """What a folder holds that packs the sites of ``specs`` and keeps some blocks."""
    checkpoint, names = run.original.checkpoint, run.original.parameters.unused
    unused = {name: (checkpoint.dtype(name), checkpoint.shape(name)) for name in names}
    return Layout(run.skeleton, specs, kept, unused, caches or {})


def fill_folder(
    run: Opened,
    layout: Layout,
    source: WeightSource,
    stored_tensors: StoredTensors,
    plan: Plan,
    folder: Path,
) -> int:
    """Write the layout and the plan into an empty folder; returns the safetensors' bytes."""
    with run.progress.stage("write the folder", layout.total_bytes / 1e6, "MB") as stage:
        return write_model(
            layout,
            source,
            run.original.checkpoint,
            stored_tensors,
            folder,
            {PLAN_FILE: plan.to_text()},
            lambda written: stage.advance(written / 1e6),
        )


def check_size(run: Run, size: int) -> None:
    """Recount: raise ``BudgetError`` when the files are over what was asked."""
    budget = run.request.budget
    if budget is None or budget.bits is not None:
        return
    original = run.original.checkpoint.total_file_bytes
    limit = budget.size_bytes if budget.ratio is None else int(budget.ratio * original)
    if limit is not None and size > limit:
        raise BudgetError(
            f"the files have {size} bytes, {limit} were asked; this is a bug, report it"
        )


def prove(run: Run, out: Path, uniform: Plan | None) -> Proof:
    """Measure quality on the held-out text, reload, time."""
    request, heldout = run.request, run.texts.heldout
    original = original_on(run, "heldout", heldout)
    stream = open_fitted(out, request.trust_remote_code, request.device)
    scratch = original.file.path.with_name("fitted.bin")
    scratch.unlink(missing_ok=True)
    with run.progress.stage("measure the folder", len(stream.blocks) + 2, "parts") as stage:
        fitted = run_to_file(stream, original.inputs, scratch, stage.advance)
        quality = measure(fitted, original)
        stage.advance()
        original_quality = measure(original)
        stage.advance()
    uniform_quality = (
        measure_plan(run, uniform, original, heldout.digest) if uniform is not None else None
    )
    speed = check_reload(run, out, fitted)
    scratch.unlink()
    original_speed, notes = time_original(run, _speed_ids(run)) if request.speed else (None, ())
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return Proof(original_quality, quality, uniform_quality, original_speed, speed, size, notes)


def open_fitted(
    folder: Path,
    trust_remote_code: bool = False,
    device: str = "cpu",
    kv: str | None = None,
    attention: str | None = None,
    checkpoint: Checkpoint | None = None,
) -> Stream:
    """A stream over any model folder: fitted by Blockwright, or plain.

    ``kv``: format of the KV cache that its text is read with; ``attention``: policy of every block;
    None: as the folder says.  ``checkpoint``: the folder's, when some tensors are others.
    """
    checkpoint = checkpoint or Checkpoint.open(folder)
    skeleton = build_skeleton(folder, trust_remote_code=trust_remote_code)
    config = getattr(skeleton.config, "quantization_config", None)
    parts = config.get("parts", {}) if isinstance(config, dict) else {}
    for spec in parts.values():
        install_narrow(skeleton.model, spec.get("shapes", {}))
        install_placed(skeleton.model, spec.get("placed", {}))
    weights: WeightSource = ParameterSource(skeleton.model, checkpoint)
    if config is not None:
        if config.get("quant_method") != "blockwright":
            raise ModelError(
                f"{folder} is quantized by {config.get('quant_method')!r}, not Blockwright"
            )
        shapes = {name: tuple(tensor.shape) for name, tensor in skeleton.parameters.items()}
        weights = FittedFolder(weights, checkpoint, skeleton.sites, shapes, config["sites"])
        weights = WithZeros(weights, absent_parameters(skeleton, parts))
    if kv not in (None, str(KEEP)) and skeleton.task != "causal-lm":
        raise ModelError(f"{folder} has no language head: it keeps no KV cache; leave --kv out")
    formats = chosen_formats(skeleton.config, kv)
    use_attention(skeleton.model, attention)
    if formats and attends_by_policy(skeleton.model):
        raise AttentionError(
            f"{folder}: a KV cache is measured token by token, an attention policy as it reads"
            " whole texts; give --kv keep or --attention keep"
        )
    return Stream(skeleton, weights, dtype=torch.float32, device=device, around=decoded(formats))


def absent_parameters(skeleton: Skeleton, parts: Specs) -> dict[str, Tensor]:
    """What a folder leaves out with its dropped parts, on ``meta``."""
    paths = [m.path for spec in parts.values() for m in absent_from_json(spec.get("modules", {}))]
    inside = tuple(f"{path}." for path in paths)
    return {n: tensor for n, tensor in skeleton.parameters.items() if n.startswith(inside)}


def check_reload(run: Run, out: Path, fitted: FinalHidden) -> Speed | None:
    """Load the folder as a user would, compare its outputs with the streamed ones, time it."""
    request = run.request
    stream = open_fitted(out, request.trust_remote_code, request.device, kv=str(KEEP))
    rows = fitted.inputs.values[:RELOAD_ROWS, :RELOAD_TOKENS].contiguous()
    inputs = Inputs(fitted.inputs.name, rows, RELOAD_ROWS)
    return reload_alike(run, out, stream, inputs, fitted.file.path.parent, _speed_ids(run))


def reload_alike(
    run: Opened, out: Path, stream: Stream, inputs: Inputs, work: Path, speed_ids: Tensor
) -> Speed | None:
    """Load the folder as a user would, compare its outputs with a stream's, time it if asked.

    Raises ``ModelError`` when they differ.
    """
    expected = fresh_seconds(run.original.checkpoint.total_file_bytes, 2)
    with run.progress.stage("reload in a fresh process", expected_seconds=expected):
        target = work / "reload.bin"
        target.unlink(missing_ok=True)
        assembled = torch.cat(list(run_to_file(stream, inputs, target).outputs()))
        target.unlink()
        if not all_finite(assembled):
            raise ModelError(
                f"{out}: its outputs are not finite before it is reloaded; evaluate the original,"
                " which overflows or is damaged if its own are not either"
            )
        answers = ask_fresh_process(
            loading_of(run, out),
            speed_ids=speed_ids if run.request.speed else None,
            inputs=inputs.values,
            input_name=inputs.name,
        )
    if answers.outputs is None:
        raise ModelError(f"{out} gave no outputs in a fresh process")
    loaded = answers.outputs.reshape(assembled.shape)
    difference = float((loaded - assembled).abs().max() / assembled.abs().max().clamp(min=1e-9))
    if not difference <= RELOAD_TOLERANCE:
        raise ModelError(
            f"{out} loads, but its outputs differ from the assembled ones by {difference:.2g}"
            f" (allowed {RELOAD_TOLERANCE:g}); it was not kept: report this"
        )
    return answers.speed


def time_original(run: Opened, speed_ids: Tensor) -> tuple[Speed | None, tuple[str, ...]]:
    """The original's, alone in a fresh process, where memory allows."""
    if not original_fits(run):
        needed, free = original_needs(run), available_bytes()
        note = f"original's speed: skipped, it needs {needed:.3g} bytes and {free:.3g} are free"
        return None, (note,)
    expected = fresh_seconds(run.original.checkpoint.total_file_bytes, 1)
    with run.progress.stage("time the original", expected_seconds=expected):
        loading = loading_of(run, run.original.source.path)
        return ask_fresh_process(loading, speed_ids=speed_ids).speed, ()


def original_needs(run: Opened) -> float:
    """Bytes of memory to load the whole original."""
    return 1.5 * run.original.checkpoint.total_file_bytes


def original_fits(run: Opened) -> bool:
    """Whether the whole original can be loaded."""
    return original_needs(run) <= available_bytes()


def loading_of(run: Opened, folder: Path) -> Loading:
    """How a folder of this run's model is loaded in a fresh process."""
    return Loading(
        folder=folder,
        task=run.skeleton.task,
        device=run.request.device,
        trust_remote_code=run.request.trust_remote_code,
    )


def fresh_seconds(model_bytes: int, loads: int, start: float = FRESH_PROCESS_SECONDS) -> float:
    """What a fresh process is expected to take that loads a model so many times."""
    return start + loads * model_bytes / LOAD_BYTES_PER_SECOND


def _speed_ids(run: Run) -> Tensor:
    return run.texts.heldout.ids[0, :SPEED_PREFILL_TOKENS]


def available_bytes() -> int:
    """Memory that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far.

    Linux hands ``ru_maxrss`` on from the process that started this one; its own count does not.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
