"""Distils narrower parts: their matrices are trained to give, in their block, what the whole part
gave (Bercovich et al., "Puzzle", ICML 2025: blockwise local distillation).

Everything else of the block is the original's, and so are its inputs: a child is a function of its
own part, and may be built anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from blockwright.anatomy.changed import With
from blockwright.anatomy.narrowed import Slice, slices_of
from blockwright.capture import inputs_path
from blockwright.errors import NumericalError
from blockwright.library.build import BuiltVariant
from blockwright.library.part import CHANNELS, WEIGHT
from blockwright.pipeline.opening import Run
from blockwright.refine import StoredBatches, healing_inputs
from blockwright.stream import BATCH_TOKENS, ActivationFile, BlockCall
from blockwright.tuning import TrainedTensor, TuningSettings, Values, tune
from blockwright.types import DistillingMethod, Part, Site, packed_name


def distilled(run: Run, part: Part, built: BuiltVariant, method: DistillingMethod) -> BuiltVariant:
    """A built variant with its plain matrices trained; the record of one that could not be."""
    if part.channels is None or part.site.block is None:
        raise TypeError(f"{part.site.id} has no channels to distil")
    kept = built.tensors[CHANNELS].tolist()
    slices = slices_of(part.members, part.channels, kept)
    try:
        weights = _trained(run, part, built, slices, method)
    except NumericalError as error:
        reason = f"{part.site.id}: {str(error).removeprefix(part.site.id + ': ')}"
        return BuiltVariant(replace(built.record, unavailable=reason), {})
    return BuiltVariant(built.record, {CHANNELS: built.tensors[CHANNELS], **weights})


def _trained(
    run: Run,
    part: Part,
    built: BuiltVariant,
    slices: Mapping[str, Slice],
    method: DistillingMethod,
) -> dict[str, Tensor]:
    """Weights [out, in] by name in an entry, in their stored dtypes."""
    index, inputs = part.site.block or 0, healing_inputs(run.calibration_inputs, BATCH_TOKENS)
    stream = run.stream()
    folder = run.library.work_folder(f"distil-{run.statistics_digest}")
    stem = stream.run_stem(inputs, folder / "stem.bin")
    swept = run.library.work_folder(run.statistics_digest)
    hidden = [
        ActivationFile(inputs_path(swept, place), stem.row_shape, run.capture_dtype)
        for place in (index, index + 1)
    ]
    block = stream.block(index).requires_grad_(False)
    parameters, stored = stream.parameters(index, block), run.skeleton.parameters
    prefix = f"{run.skeleton.block_path}.{index}."
    start = {site: _start(site, part, built, slices, parameters) for site in part.members}
    trained = {
        site.parameter: TrainedTensor(tensor, dtype=stored[site.parameter].dtype)
        for site, tensor in start.items()
    }
    biases = {name: slices[name].zeroed(parameters[name]) for name in slices if name not in trained}

    def forward(values: Values, x_BTH: Tensor, calls: Sequence[BlockCall]) -> Tensor:
        whole = {
            name: slices[name].spread(value, parameters[name].shape[slices[name].axis])
            for name, value in values.items()
        }
        changed = {name.removeprefix(prefix): t for name, t in {**whole, **biases}.items()}
        given = x_BTH.to(stream.device, stream.dtype)
        return calls[index].run(With(block, changed), given)

    settings = TuningSettings(steps=method.steps, rate=method.rate, checks=method.checks)
    batches = StoredBatches(stem, hidden[0], hidden[1], inputs)
    tuned = tune(forward, trained, batches, settings, where=part.site.id)
    found = {}
    for site in part.members:
        tensor = tuned.tensors[site.parameter]
        found[packed_name(site.id, WEIGHT)] = tensor.T.contiguous() if site.transposed else tensor
    return found


def _start(
    site: Site,
    part: Part,
    built: BuiltVariant,
    slices: Mapping[str, Slice],
    parameters: Mapping[str, Tensor],
) -> Tensor:
    """A member's smaller parameter before it is trained, as its module holds it, fp32."""
    if part.channels is not None and site.id == part.channels.writer:
        W_OK = built.tensors[WEIGHT].float()
        return W_OK.T.contiguous() if site.transposed else W_OK
    return slices[site.parameter].of(parameters[site.parameter])
