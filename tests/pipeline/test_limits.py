"""A fit under limits on bits, memory and speed at once, timed once, repeated to the same bytes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.anatomy import build_skeleton
from blockwright.errors import BudgetError, ProfileError
from blockwright.evaluate import Loading, TimedFolder
from blockwright.machine import measure_profile
from blockwright.pipeline import timing
from blockwright.pipeline.recipe import PROFILE_FILE, RECIPE_FILE
from blockwright.pipeline.weighing import packed_formats
from blockwright.progress import SilentProgress
from blockwright.types import Budget, Candidate, FitRequest, Plan, Preset, Profile, Recipe, Workload
from tests.conftest import ModelFolder
from tests.fits import CANDIDATES, folder_bytes, request, with_tokenizer
from tests.machine.test_profile import FakeClock

BUDGET = Budget(bits=7, ram_bytes=30_000_000, speedup=1.5, context=16)


def write_profile(model: Path, path: Path) -> str:
    """A profile of this machine with made-up times; its digest."""
    measured = measure_profile(
        build_skeleton(model),
        packed_formats(map(Candidate.parse, CANDIDATES)),
        Workload(context=16),
        model="tiny",
        progress=SilentProgress(),
        clock=FakeClock(10),
        rounds=1,
    )
    speeds = {"keep": 1000, "int8": 600, "int4-g32": 400, "int3-g32": 400}
    times = {work: speeds[work.rpartition(" ")[2]] for work in measured.work_ns}
    made = replace(measured, work_ns=times)
    made.write(path)
    return made.digest


@pytest.fixture
def asked(model_folder: ModelFolder, tmp_path: Path) -> FitRequest:
    model = with_tokenizer(model_folder("llama", intermediate_size=128), tmp_path)
    options = {"preset": Preset.FAST, "budget": BUDGET, "profile": tmp_path / "profile.json"}
    return request(model, tmp_path, **options)


def test_three_limits_are_kept_timed_once_and_repeated_to_the_same_bytes(
    asked: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = write_profile(Path(asked.model), tmp_path / "profile.json")
    timed: list[Path] = []

    def in_turn(first: Loading, second: Loading, workload: Workload) -> tuple[TimedFolder, ...]:
        assert workload == BUDGET.workload
        assert (second.folder / "config.json").is_file()
        timed.append(second.folder)
        held = {"library_bytes": 0, "loaded_bytes": 0, "resident_bytes": 0}
        return TimedFolder(least_ns=1600, **held), TimedFolder(least_ns=1000, **held)

    def alone(loading: Loading, workload: Workload) -> TimedFolder:
        assert workload == BUDGET.workload
        assert (loading.folder / "config.json").is_file()
        return TimedFolder(least_ns=1000, library_bytes=5, loaded_bytes=9, resident_bytes=12)

    monkeypatch.setattr(timing, "time_in_turn", in_turn)
    monkeypatch.setattr(timing, "time_folder", alone)
    result = pipeline.fit(asked)
    plan = Plan.read(result.plan_path)
    assert plan.limits == {"bits": 7, "ram_bytes": 30_000_000, "speedup": 1.5}
    assert (plan.profile, plan.budget) == (digest, str(BUDGET))
    assert plan.bits_per_weight <= 7
    assert plan.ram_bytes is not None
    assert plan.ram_bytes <= 30_000_000
    assert plan.speedup is not None
    assert plan.speedup >= 1.5
    figures = result.to_json()
    assert figures["speedup_measured"] == pytest.approx(1.6)
    assert figures["speedup_predicted"] == plan.speedup
    assert figures["profile"] == digest
    assert figures["ram_bytes_measured"] == 7
    assert not timed[0].exists()
    recipe = asked.out / RECIPE_FILE
    repeated = Recipe.read(recipe).request(out=asked.out, library=asked.library, recipe=recipe)
    assert repeated.profile == asked.out / PROFILE_FILE
    assert Profile.read(repeated.profile).digest == digest

    shutil.copytree(asked.out, tmp_path / "first")
    shutil.rmtree(asked.out)
    pipeline.fit(asked)
    assert len(timed) == 1
    assert folder_bytes(asked.out) == folder_bytes(tmp_path / "first")

    refused_request = replace(asked, out=tmp_path / "never", budget=replace(BUDGET, speedup=9.0))
    with pytest.raises(BudgetError, match=r"fastest plan is predicted 2\.\d+ times as fast; ask"):
        pipeline.fit(refused_request)
    assert not (tmp_path / "never").exists()


def test_what_cannot_be_is_refused_before_anything_is_built(
    asked: FitRequest, tmp_path: Path
) -> None:
    write_profile(Path(asked.model), tmp_path / "profile.json")
    longer = replace(BUDGET, context=17)
    with pytest.raises(ProfileError, match=r"is of decode .* 16 tokens, the speedup is asked in"):
        pipeline.fit(replace(asked, budget=longer))
    with pytest.raises(BudgetError, match=r"fastest plan is predicted 2\.\d+ times as fast; ask"):
        pipeline.fit(replace(asked, budget=replace(BUDGET, speedup=9.0)))
    with pytest.raises(BudgetError, match=r"smallest plan takes \d+ bytes of memory at 16 tokens"):
        pipeline.fit(replace(asked, budget=Budget(ram_bytes=1000, context=16)))
    with pytest.raises(ProfileError, match="--context 128: llama has 128 positions; give at most"):
        pipeline.fit(replace(asked, budget=replace(BUDGET, context=128), profile=None))
    data = json.loads((tmp_path / "profile.json").read_text(encoding="utf-8"))
    (tmp_path / "profile.json").write_text(json.dumps(data | {"outside_ns": 1}), encoding="utf-8")
    with pytest.raises(ProfileError, match="was altered"):
        pipeline.fit(asked)
    assert not asked.out.exists()
    assert not list((tmp_path / "library").glob("entries/*"))
