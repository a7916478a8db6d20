"""``fit --heal``: the assembled folder is healed as a whole before it is proved."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

from blockwright.pipeline.heal_texts import open_heal_texts
from blockwright.pipeline.opening import Run
from blockwright.pipeline.proving import open_fitted
from blockwright.pipeline.refining import plan_digest
from blockwright.pipeline.whole_healing import HealJob, train_job, write_healed
from blockwright.types import HealRequest, Plan


def heal_folder(run: Run, plan: Plan, folder: Path) -> tuple[Run, tuple[str, ...]]:
    """Heal ``folder`` in place, if it is asked for; the run with its steps, for the recipe, and
    what the user must know.

    A killed run goes on from the state in the library.
    """
    request = run.request
    if request.heal is None and request.heal_steps is None:
        return run, ()
    job = _job(run, plan, folder)
    outcome = train_job(job)
    beside = folder.with_name(folder.name + ".healed")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    try:
        write_healed(job, outcome, beside, ())
        shutil.rmtree(folder)
        os.replace(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    for hidden in job.work.glob("*.bin"):
        hidden.unlink()
    progress = outcome.healed.progress
    note = (
        f"healed for {outcome.steps} steps: loss on the selection text"
        f" {progress.start_loss:.5f} before, {progress.best_loss:.5f} after"
    )
    settled = replace(request, heal=None, heal_steps=outcome.steps)
    return replace(run, request=settled), (note,)


def _job(run: Run, plan: Plan, folder: Path) -> HealJob:
    request = run.request
    skeleton = open_fitted(folder, request.trust_remote_code, request.device).skeleton
    return HealJob(
        request=HealRequest(
            model=str(folder),
            against=request.model,
            out=request.out,
            data=request.calibration,
            eval_text=request.eval_text,
            minutes=request.heal,
            steps=request.heal_steps,
            sequence_length=request.sequence_length,
            seed=request.seed,
            threads=request.threads,
            device=request.device,
            trust_remote_code=request.trust_remote_code,
        ),
        progress=run.progress,
        fitted=folder,
        skeleton=skeleton,
        original=run.original,
        texts=open_heal_texts(request, run.original.source.path, run.skeleton),
        work=run.library.work_folder(f"healing-{plan_digest(plan)}"),
    )
