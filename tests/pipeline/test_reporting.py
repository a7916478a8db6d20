"""Every fitted folder carries a report whose figures are those of the result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockwright import pipeline
from blockwright.machine import processor
from blockwright.pipeline.frontiers import predicted_points
from blockwright.pipeline.machine import machine_of_report
from blockwright.pipeline.reporting import REPORT_DATA_FILE, REPORT_FILE, command_of
from blockwright.plan import solve
from blockwright.types import Budget, FitRequest, FitResult, Phase
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer
from tests.report.examples import problem_of, sites_of
from tests.report.page_reader import read_page

MODELS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 128, "num_hidden_layers": 2},
    "bert": {"intermediate_size": 128, "num_hidden_layers": 2},
    "qwen3_moe": {"moe_intermediate_size": 64, "num_hidden_layers": 2},
}


def fitted(kind: str, model_folder: ModelFolder, work: Path, **changes: Any) -> FitResult:
    model = with_tokenizer(model_folder(kind, **MODELS[kind]), work)
    return pipeline.fit(request(model, work, **changes))


def read(result: FitResult) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((result.out / REPORT_DATA_FILE).read_text(encoding="utf-8"))
    return data


def check(result: FitResult) -> None:
    """Both files have the figures of the result."""
    data = read(result)
    verdict = data["verdict"]
    assert verdict["size_bytes"] == result.size_bytes
    assert verdict["bits_per_weight"] == result.bits_per_weight
    assert verdict["fitted"]["kl_divergence"] == result.fitted.kl_divergence
    assert verdict["fitted"]["relative_error"] == result.fitted.relative_error
    assert verdict["limits"] == [
        {"name": "bits", "asked": 4.6, "got": result.bits_per_weight},
    ]
    assert data["absent"]["speed"] == "not measured, as asked (--no-speed)"
    assert len(data["map"]["rows"]) == 2
    stored = sum(row["stored_bytes"] for row in data["map"]["rows"])
    assert 8 * stored / data["linear_weights"] == pytest.approx(result.bits_per_weight)
    taken = [plan for plan in data["measured"] if plan["taken"]]
    loss = result.fitted.kl_divergence or result.fitted.relative_error
    assert [plan["heldout_loss"] for plan in taken] == [loss]
    page = read_page(result.report_path.read_text(encoding="utf-8"))
    assert f"{result.bits_per_weight:.2f} got" in page.by_id("headline").text


@pytest.mark.parametrize("kind", ["bert", "qwen3_moe"])
def test_the_report_has_the_figures_of_the_result(
    kind: str, model_folder: ModelFolder, tmp_path: Path
) -> None:
    check(fitted(kind, model_folder, tmp_path))


def test_a_folder_appears_with_its_report_or_not_at_all(
    model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends before the report is written leaves nothing under the folder's name, and
    the same call writes it; the folder's own plan is then reported without a rival.
    """
    model = with_tokenizer(model_folder("llama", **MODELS["llama"]), tmp_path)
    asked = request(model, tmp_path)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "describe", killed)
        with pytest.raises(KeyboardInterrupt):
            pipeline.fit(asked)
    assert not asked.out.exists()
    result = pipeline.fit(asked)
    assert result.library_misses == 0
    assert result.report_path == tmp_path / "out" / REPORT_FILE
    assert result.to_json()["report_path"] == str(result.report_path)
    assert [path.name for path in tmp_path.glob("out*")] == ["out"]
    check(result)
    check_planned(
        pipeline.fit(replace(asked, out=tmp_path / "2", plan=result.plan_path, budget=None))
    )


def check_planned(result: FitResult) -> None:
    """A plan file has no frontier and no rival."""
    data = read(result)
    assert data["frontier"] == []
    assert {"frontier", "uniform", "speed", "drop_loss"} <= set(data["absent"])
    assert data["verdict"]["budget"].startswith("the plan file ")
    assert data["verdict"]["uniform"] is None
    assert {plan["name"].partition(",")[0] for plan in data["measured"]} == {"plan"}


def test_the_machine_is_named() -> None:
    machine = machine_of_report("cpu")
    assert machine.processor == processor() != ""
    assert machine.cores >= 1
    assert set(machine.versions) >= {"blockwright", "python", "torch", "transformers"}


def test_the_command_asks_the_same() -> None:
    asked = FitRequest(
        model="my models/a; rm -rf ~",
        out=Path("out"),
        budget=Budget(size_bytes=4_000_000_000),
        candidates=("int4-g64:gptq", "int8:rtn"),
        seed=7,
        speed=False,
        trust_remote_code=True,
    )
    assert command_of(asked) == (
        "blockwright fit 'my models/a; rm -rf ~' --out out --size 4000000000"
        " --candidates int4-g64:gptq,int8:rtn --seed 7 --trust-remote-code --no-speed"
    )
    limited = FitRequest(
        model="m",
        out=Path("o"),
        budget=Budget(ram_bytes=10**9, speedup=1.5, phase=Phase.PREFILL, context=256),
    )
    assert command_of(limited) == (
        "blockwright fit m --out o --ram 1000000000 --speedup 1.5 --phase prefill --context 256"
    )
    plain = FitRequest(model="m", out=Path("o"), budget=None, plan=Path("p.json"))
    assert command_of(plain) == "blockwright fit m --out o --plan p.json"


@pytest.mark.parametrize("budget", [Budget(bits=3.7), Budget(ratio=0.55)], ids=["bits", "ratio"])
def test_the_frontier_never_rises_and_holds_the_plan(budget: Budget) -> None:
    problem = problem_of(sites_of(2))
    plan = solve(problem, budget)
    points = predicted_points(problem, plan, budget)
    mixed = [point for point in points if not point.uniform]
    losses = [point.predicted_loss for point in mixed]
    assert len(mixed) > 8
    assert losses == sorted(losses, reverse=True)
    own = [point for point in mixed if point.size_bytes == plan.size_bytes]
    assert [point.predicted_loss for point in own] == pytest.approx([plan.loss])
    rivals = [point for point in points if point.uniform]
    assert [point.predicted_loss for point in rivals] == sorted(
        (point.predicted_loss for point in rivals), reverse=True
    )
    assert mixed[0].size_bytes <= rivals[0].size_bytes
    assert mixed[-1].predicted_loss <= rivals[-1].predicted_loss
