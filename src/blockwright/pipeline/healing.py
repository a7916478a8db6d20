"""Local healing of a plan, kept only when the selection text says that it is better."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace

from torch import Tensor, nn

from blockwright.capture import inputs_path
from blockwright.errors import NumericalError
from blockwright.library import variant_key
from blockwright.pipeline.measuring import measure_on_selection, plan_stream
from blockwright.pipeline.opening import Run, digest_of
from blockwright.pipeline.placing import Placement
from blockwright.pipeline.presets import HEALING
from blockwright.pipeline.refining import plan_digest
from blockwright.pipeline.sweeping import sweep_original
from blockwright.refine import HealedBlocks, heal_blocks, healing_inputs
from blockwright.stream import BATCH_TOKENS, ActivationFile, Stem, Stream
from blockwright.tuning import Tuned, TuningSettings
from blockwright.types import PackedLinear, Plan, Site, VariantRecord

HEALING_VERSION = 1
"""Raised whenever healed tensors change: part of their key."""


def heal_plan(run: Run, plan: Plan) -> Plan:
    """The plan with its blocks tuned, as its preset asks for, if that measures better."""
    settings = HEALING[run.request.preset]
    if settings is None or not any(choice.key for choice in plan.choices.values()):
        return plan
    healed = heal_each_block(run, plan, settings)
    if not healed.healed:
        return plan
    measured = measure_on_selection(run, healed)
    return measured if is_better(measured, plan) else plan


def is_better(healed: Plan, plan: Plan) -> bool:
    """Whether healing lowered the loss on the selection text."""
    return healed.measured["selection_loss"] < plan.measured["selection_loss"]


def heal_each_block(run: Run, plan: Plan, settings: TuningSettings) -> Plan:
    """The plan with healed tensors in every block that tuning brought closer to the original."""
    work = _Work.of(run, replace(plan, healed={}), settings)
    folder = run.library.work_folder("heal-" + digest_of(sorted(work.inputs.items())))
    inputs = healing_inputs(run.calibration_inputs, BATCH_TOKENS)
    blocks = HealedBlocks(
        is_done=work.is_done,
        block=work.block,
        packed=work.packed,
        target=work.target,
        absent=Placement(run, plan).absent,
        heal=work.heal,
    )
    if not all(work.is_done(index) for index in work.stream.blocks):
        sweep_original(run)
    with run.progress.stage(f"heal {plan.name}", len(work.stream.blocks), "blocks") as stage:
        heal_blocks(work.stream, inputs, folder, blocks, settings, stage.advance)
        for record in work.records():
            if not record.available:
                stage.note(f"{record.site} stays as it is: {record.unavailable}")
    shutil.rmtree(folder)
    return work.healed_plan()


@dataclass(frozen=True)
class _Work:
    """Healing one plan: keys of its blocks, and what stands where."""

    run: Run
    plan: Plan
    stream: Stream
    """The planned model without healing, in fp32."""
    inputs: Mapping[str, object]
    """What decides the healed tensors of every block."""

    @classmethod
    def of(cls, run: Run, plan: Plan, settings: TuningSettings) -> _Work:
        inputs = {
            "statistics": f"{run.statistics_digest}/healed-in/{plan_digest(plan)}",
            "healing": {"version": HEALING_VERSION, **asdict(settings)},
            "surroundings": run.surroundings,
        }
        return cls(run, plan, plan_stream(run, plan), inputs)

    def key(self, index: int) -> str:
        return variant_key({"block": self.site(index), **self.inputs})

    def site(self, index: int) -> str:
        """Id of a block."""
        return f"{self.run.skeleton.block_path}.{index}"

    def is_done(self, index: int) -> bool:
        return self.run.library.lookup(self.key(index)) is not None

    def healed_plan(self) -> Plan:
        """The plan with the blocks that are healed by now."""
        healed = {record.site: record.key for record in self.records() if record.available}
        return replace(self.plan, healed=healed)

    def records(self) -> list[VariantRecord]:
        """Of the blocks that are done, in order."""
        found = [self.run.library.lookup(self.key(index)) for index in self.stream.blocks]
        return [record for record in found if record is not None]

    def block(self, index: int) -> nn.Module:
        return plan_stream(self.run, self.healed_plan()).block(index)

    def packed(self, index: int) -> dict[Site, PackedLinear]:
        """The packed modules of a block's sites."""
        placement = Placement(self.run, self.plan)
        sites = self.run.skeleton.block_sites(index)
        return {site: placement.module(site) for site in sites if site.id in placement.keys}

    def target(self, index: int, stem: Stem) -> ActivationFile:
        """The original's hidden states behind a block."""
        folder = self.run.library.work_folder(self.run.statistics_digest)
        path = inputs_path(folder, index + 1)
        return ActivationFile(path, stem.row_shape, self.run.capture_dtype)

    def heal(self, index: int, tune: Callable[[], Tuned]) -> None:
        """Store the tuned tensors of a block, or why there are none."""
        key, loss = self.key(index), 0.0
        tensors: Mapping[str, Tensor] = {}
        with self.run.library.building(key):
            try:
                tuned = tune()
            except NumericalError as error:
                reason = str(error)
            else:
                reason = "" if tuned.step else "no moment of tuning was better on held text"
                tensors, loss = (tuned.tensors, tuned.loss) if tuned.step else ({}, 0.0)
            record = VariantRecord(
                key=key,
                site=self.site(index),
                candidate="healed",
                stored_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
                relative_error=loss,
                tokens=self.run.texts.calibration.tokens,
                unavailable=reason,
                inputs={"block": self.site(index), **self.inputs},
            )
            self.run.library.store(record, tensors)
