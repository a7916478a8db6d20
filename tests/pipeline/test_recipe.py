"""The recipe in a fitted folder builds the same folder again, or says what has changed."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from blockwright import pipeline
from blockwright.errors import RecipeError
from blockwright.pipeline.recipe import RECIPE_FILE
from blockwright.pipeline.reporting import REPORT_DATA_FILE, REPORT_FILE
from blockwright.types import Budget, FitRequest, Recipe
from tests.conftest import ModelFolder
from tests.fits import request, with_tokenizer, words
from tests.pipeline.conftest import fit_here


@pytest.fixture(scope="module")
def fitted(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> FitRequest:
    """A request whose folder is there; shared, so read only."""
    work = tmp_path_factory.mktemp("recipe")
    model = with_tokenizer(model_folder("llama", intermediate_size=128), work)
    asked = request(
        model,
        work,
        candidates=("int4-g32:rtn", "int8:rtn"),
        budget=Budget(bits=5.5),
        eval_tokens=None,  # left to its default, so that the recipe has to fill it in
    )
    fit_here(asked)
    return asked


def again(fitted: FitRequest, recipe: Path, out: str, **changes: object) -> FitRequest:
    """The request that a recipe makes, with another output and options given on top."""
    read = Recipe.read(recipe).request(
        out=fitted.out.with_name(out), library=fitted.library, recipe=recipe
    )
    return replace(read, **changes)  # type: ignore[arg-type]


def same_folder(first: Path, second: Path) -> None:
    """The same files with the same bytes; reports hold times and places."""
    names = {path.name for path in first.iterdir()}
    assert names == {path.name for path in second.iterdir()}
    assert RECIPE_FILE in names
    for name in sorted(names - {REPORT_FILE, REPORT_DATA_FILE}):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_a_folders_recipe_fits_the_same_bytes(fitted: FitRequest) -> None:
    recipe = fitted.out / RECIPE_FILE
    result = pipeline.fit(again(fitted, recipe, "again"))
    assert result.library_misses == 0
    same_folder(fitted.out, fitted.out.with_name("again"))
    data = tomllib.loads(recipe.read_text(encoding="utf-8"))
    assert data["budget"] == {"bits": 5.5, "phase": "decode", "batch": 1, "context": 512}
    assert data["candidates"] == ["int4-g32:rtn", "int8:rtn"]
    assert data["sequence_length"] == 64
    assert data["eval_tokens"] % 64 == 0
    assert data["threads"] == 1
    assert set(data["digests"]) == {"model", "calibration", "selection", "heldout"}


def test_the_recipe_of_an_edited_plan_takes_the_plan_of_its_folder(fitted: FitRequest) -> None:
    plan = json.loads((fitted.out / "blockwright-plan.json").read_text(encoding="utf-8"))
    site = next(name for name in plan["choices"] if name.endswith("down_proj"))
    plan["choices"][site] = {"candidate": "int8:rtn", "stored_bytes": 0, "loss": 0.0, "key": ""}
    plan["limits"] = {}
    edited = fitted.out.with_name("edited.json")
    edited.write_text(json.dumps(plan), encoding="utf-8")
    first = replace(fitted, plan=edited, budget=None, out=fitted.out.with_name("edited"))
    pipeline.fit(first)
    edited.unlink()
    pipeline.fit(again(first, first.out / RECIPE_FILE, "edited-again"))
    same_folder(first.out, first.out.with_name("edited-again"))


def test_another_text_or_model_than_the_recipes_is_refused_unless_asked_for(
    fitted: FitRequest,
) -> None:
    text = (fitted.out / RECIPE_FILE).read_text(encoding="utf-8")
    digests = tomllib.loads(text)["digests"]
    for name, what in (("heldout", "heldout text"), ("model", "model")):
        recipe = fitted.out.with_name(f"another-{name}.toml")
        recipe.write_text(text.replace(digests[name], "0" * 32), encoding="utf-8")
        with pytest.raises(RecipeError, match=f"the {what} is not the one it was made with"):
            pipeline.fit(again(fitted, recipe, "refused"))
        assert not fitted.out.with_name("refused").exists()
    assert fitted.eval_text is not None
    other = fitted.eval_text.with_name("other.txt")
    other.write_text(words(98, 200), encoding="utf-8")
    pipeline.fit(again(fitted, fitted.out / RECIPE_FILE, "asked", eval_text=other))


def test_versions_that_differ_are_said(fitted: FitRequest) -> None:
    recipe = fitted.out / RECIPE_FILE
    text = recipe.read_text(encoding="utf-8")
    torch = tomllib.loads(text)["made_with"]["torch"]
    older = fitted.out.with_name("older.toml")
    older.write_text(text.replace(f'"{torch}"', '"1.0"'), encoding="utf-8")
    result = pipeline.fit(again(fitted, older, "newer"))
    note = f"the recipe was made with torch 1.0, now {torch}: bytes can differ"
    assert note in result.notes
