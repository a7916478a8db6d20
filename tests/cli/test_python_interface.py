"""The Python interface mirrors the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import blockwright
from blockwright.errors import BudgetError
from blockwright.types import Budget, FitRequest, Preset
from tests.cli.conftest import RecordingPipeline, make_result


def test_fit_builds_the_request_and_returns_the_result(pipeline: RecordingPipeline) -> None:
    result = blockwright.fit("m", budget=4.3, calibration="c.txt", out="o", preset="fast")
    assert result == make_result(Path("o"))
    assert pipeline.requests == [
        FitRequest(
            model="m",
            out=Path("o"),
            budget=Budget(bits=4.3),
            preset=Preset.FAST,
            calibration=Path("c.txt"),
        )
    ]


def test_a_recipe_is_run_with_places_of_its_own(
    pipeline: RecordingPipeline, tmp_path: Path
) -> None:
    recipe = tmp_path / "blockwright.toml"
    recipe.write_text('version = 1\nmodel = "m"\n[budget]\nratio = 0.5\n', encoding="utf-8")
    blockwright.fit_recipe(recipe, out="o", library="l")
    assert pipeline.requests == [
        FitRequest(
            model="m",
            out=Path("o"),
            library=Path("l"),
            budget=Budget(ratio=0.5),
            recipe=recipe,
        )
    ]


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (3, Budget(bits=3.0)),
        ("4GB", Budget(size_bytes=4 * 10**9)),
        (Budget(ratio=0.25), Budget(ratio=0.25)),
        (None, None),
    ],
)
def test_budgets_are_bits_sizes_or_budgets(
    pipeline: RecordingPipeline, given: Budget | float | str | None, read: Budget | None
) -> None:
    blockwright.fit("m", budget=given, plan="p", out="o")
    assert pipeline.requests[0].budget == read


def test_a_bad_budget_is_refused(pipeline: RecordingPipeline) -> None:
    with pytest.raises(BudgetError, match="lots"):
        blockwright.fit("m", budget="lots", out="o")


def test_the_other_commands_are_functions_too(pipeline: RecordingPipeline) -> None:
    request = FitRequest(model="m", out=Path("o"), budget=Budget(bits=4))
    assert blockwright.price(request).seconds == 100.0
    assert blockwright.evaluate_model("m", eval_text=Path("t"))["size_bytes"] == 1000
    assert blockwright.inspect_model("m")["blocks"] == 1
    assert blockwright.generate_text("m", "def").startswith("def")


def test_every_public_name_resolves_and_others_do_not() -> None:
    for name in blockwright.__all__:
        assert getattr(blockwright, name) is not None
        assert name in dir(blockwright)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = blockwright.fitt  # type: ignore[attr-defined]
