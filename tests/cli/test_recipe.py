"""``fit --recipe``: the recipe's request, and what is given beside it in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from blockwright.types import Budget, FitRequest, Preset
from tests.cli.conftest import CommandLine, RecordingPipeline

RECIPE = """version = 1
model = "owner/name"
preset = "fast"
seed = 7
speed = false
calibration = "c.txt"
[budget]
bits = 3.5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "blockwright.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def asked(recipe: Path, **changes: object) -> FitRequest:
    values: dict[str, object] = {
        "model": "owner/name",
        "out": Path("o"),
        "budget": Budget(bits=3.5),
        "preset": Preset.FAST,
        "seed": 7,
        "speed": False,
        "calibration": Path("c.txt"),
        "recipe": recipe,
    }
    return FitRequest(**(values | changes))  # type: ignore[arg-type]


def test_a_recipe_needs_only_an_output(
    command_line: CommandLine, pipeline: RecordingPipeline, recipe: Path
) -> None:
    assert command_line("fit", "--recipe", recipe, "--out", "o").code == 0
    assert pipeline.requests == [asked(recipe)]


def test_what_is_given_overrides_even_where_it_is_the_default(
    command_line: CommandLine, pipeline: RecordingPipeline, recipe: Path
) -> None:
    line = ("fit", "other", "--recipe", recipe, "--out", "o", "--seed", "0", "--library", "l")
    command_line(*line, "--size", "4GB", "--preset", "balanced", "--trust-remote-code")
    assert pipeline.requests == [
        asked(
            recipe,
            model="other",
            seed=0,
            budget=Budget(size_bytes=4 * 10**9),
            library=Path("l"),
            preset=Preset.BALANCED,
            trust_remote_code=True,
        )
    ]


def test_a_plan_takes_the_place_of_the_recipes_budget_and_back(
    command_line: CommandLine, pipeline: RecordingPipeline, recipe: Path
) -> None:
    command_line("fit", "--recipe", recipe, "--out", "o", "--plan", "p.json")
    recipe.write_text('version = 1\nmodel = "m"\nplan = "q.json"\n', encoding="utf-8")
    command_line("fit", "--recipe", recipe, "--out", "o")
    command_line("fit", "--recipe", recipe, "--out", "o", "--bits", "4")
    plans = [(request.plan, request.budget) for request in pipeline.requests]
    assert plans == [
        (Path("p.json"), None),
        (recipe.parent / "q.json", None),
        (None, Budget(bits=4)),
    ]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--bits", "4", "--ratio", "0.5"), "give one of --bits, --size, --ratio"),
        (("--bits", "4", "--plan", "p"), "--plan decides the size"),
        (("--candidates", "int4,,int8"), "is not of the form"),
    ],
)
def test_options_that_contradict_each_other_are_refused(
    command_line: CommandLine,
    pipeline: RecordingPipeline,
    recipe: Path,
    options: tuple[str, ...],
    reason: str,
) -> None:
    assert reason in command_line.refused("fit", "--recipe", recipe, "--out", "o", *options)
    assert not pipeline.requests


def test_a_bad_recipe_is_one_line_and_nothing_runs(
    command_line: CommandLine, pipeline: RecordingPipeline, recipe: Path
) -> None:
    recipe.write_text("sede = 3\n" + RECIPE, encoding="utf-8")
    line = command_line.refused("fit", "--recipe", recipe, "--out", "o")
    assert "unknown key 'sede'; did you mean 'seed'?" in line
    assert "does not exist" in command_line.refused("fit", "--recipe", "absent", "--out", "o")
    assert not pipeline.requests
