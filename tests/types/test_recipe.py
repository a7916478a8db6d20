"""Recipes: request -> recipe -> request is the identity; what is wrong is named in one line."""

from __future__ import annotations

import tomllib
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockwright.errors import BudgetError, CandidateError, RecipeError
from blockwright.types import Budget, FitRequest, Preset, Recipe
from blockwright.types.recipe import NOT_IN_RECIPES

OUT = Path("out")
PLAIN = 'version = 1\nmodel = "m"\n'
WHOLE = PLAIN + "[budget]\nbits = 4\n"

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
paths = texts.filter(lambda text: "\x00" not in text).map(Path)
positive = st.floats(1e-300, 1e300)
budgets = st.one_of(
    st.builds(Budget, bits=positive),
    st.builds(Budget, size_bytes=st.integers(1, 2**62)),
    st.builds(Budget, ratio=positive),
)
counts = st.none() | st.integers(2, 2**62)
requests = st.builds(
    FitRequest,
    model=texts.filter(lambda text: not text.startswith("bundled:")),
    out=st.just(OUT),
    budget=budgets,
    preset=st.sampled_from(Preset),
    candidates=st.lists(st.sampled_from(["keep", "int4-g64:gptq@damping=0.1"])).map(tuple),
    calibration=st.none() | paths.filter(lambda path: not str(path).startswith("bundled:")),
    eval_text=st.none() | paths.filter(lambda path: not str(path).startswith("bundled:")),
    revision=st.none() | texts.filter(lambda text: not text.startswith("bundled:")),
    seed=st.integers(-(2**62), 2**62),
    threads=counts,
    calibration_tokens=counts,
    sequence_length=counts,
    eval_tokens=counts,
    device=st.sampled_from(["cpu", "cuda"]),
    speed=st.booleans(),
)


def parsed(text: str) -> FitRequest:
    return Recipe.parse(text, "recipe").request(out=OUT)


@given(requests)
def test_request_to_recipe_to_request_is_the_identity(request: FitRequest) -> None:
    text = Recipe.of(request, {"model": "d1"}, {"torch": "2"}).to_toml(["a\nnote"])
    recipe = Recipe.parse(text, "recipe")
    assert recipe.request(out=OUT) == request
    assert (recipe.digests, recipe.made_with) == ({"model": "d1"}, {"torch": "2"})


def test_every_field_of_the_request_is_in_recipes_or_named_as_left_out() -> None:
    full = FitRequest(
        model="m",
        out=OUT,
        budget=Budget(bits=4.0),
        preset=Preset.BEST,
        candidates=("keep",),
        calibration=Path("c"),
        eval_text=Path("e"),
        plan=Path("p"),
        kv=("int8",),
        attention=("mean@keep=4",),
        profile=Path("q"),
        sampled_share=0.25,
        revision="r",
        threads=3,
        calibration_tokens=512,
        sequence_length=64,
        eval_tokens=128,
        heal_steps=7,
    )
    written = set(tomllib.loads(Recipe.of(full).to_toml())) - {"version"}
    assert written == {item.name for item in fields(FitRequest)} - NOT_IN_RECIPES
    assert Recipe.parse(Recipe.of(full).to_toml(), "recipe").request(out=OUT) == full


def test_what_ships_with_the_package_is_named_without_a_path_of_this_machine() -> None:
    home = Path(str(files("blockwright"))) / "bundled"
    request = replace(
        parsed(WHOLE), model=str(home / "model"), calibration=home / "texts" / "heldout.jsonl"
    )
    text = Recipe.of(request).to_toml()
    assert str(home) not in text
    assert 'model = "bundled:model"' in text
    assert parsed(text) == request


def test_leave_to_run_code_cannot_be_given_by_a_file() -> None:
    with pytest.raises(RecipeError, match="unknown key 'trust_remote_code'"):
        parsed("trust_remote_code = true\n" + WHOLE)


def test_a_profile_stands_beside_the_recipe() -> None:
    recipe = Recipe.parse(PLAIN + 'profile = "p.json"\n[budget]\nspeedup = 2', "recipe")
    assert recipe.request(out=OUT, recipe=Path("d/r.toml")).profile == Path("d/p.json")


def test_a_plan_stands_beside_the_recipe() -> None:
    recipe = Recipe.parse(PLAIN + 'plan = "plan.json"', "recipe")
    assert recipe.request(out=OUT, recipe=Path("d/r.toml")).plan == Path("d/plan.json")
    assert recipe.request(out=OUT).budget is None


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sede = 3\n" + WHOLE, "recipe: unknown key 'sede'; did you mean 'seed'? (known: model,"),
        (WHOLE + "bit = 4", "recipe: budget: unknown key 'bit'; did you mean 'bits'? (known: bits"),
        (WHOLE + "seed = 4", "recipe: budget: unknown key 'seed'"),
        (WHOLE + "[digest]", "recipe: unknown key 'digest'; did you mean 'digests'?"),
        (WHOLE + "[digests]\ntext = 'a'", "recipe: digests: unknown key 'text'"),
        (WHOLE + "[digests]\nmodel = 3", "recipe: digests.model: got 3, needs a text"),
        (WHOLE + "[made_with]\ntorsh = 'a'", "did you mean 'torch'?"),
        ("seed = 'zero'\n" + WHOLE, "recipe: seed: got 'zero', needs an integer"),
        ("seed = true\n" + WHOLE, "recipe: seed: got True, needs an integer"),
        ("seed = 1.5\n" + WHOLE, "recipe: seed: got 1.5, needs an integer"),
        ("speed = 1\n" + WHOLE, "recipe: speed: got 1, needs true or false"),
        ("threads = 0\n" + WHOLE, "recipe: threads: got 0, at least 1 is allowed"),
        ("calibration = 3\n" + WHOLE, "recipe: calibration: got 3, needs a text"),
        ("candidates = 'keep'\n" + WHOLE, "recipe: candidates: got 'keep', needs a list"),
        ("candidates = [4]\n" + WHOLE, "recipe: candidates: got 4, needs a text"),
        ("preset = 'slow'\n" + WHOLE, "recipe: preset: got 'slow', allowed: fast, balanced, best"),
        ("preset = []\n" + WHOLE, "recipe: preset: got [], allowed: fast, balanced, best"),
        ("budget = 4\n" + PLAIN, "recipe: budget: got 4, needs a table"),
        (PLAIN + "[budget]\nbits = 'four'", "recipe: budget: bits: got 'four', needs a number"),
        (PLAIN + "[budget]\nbits = nan", "recipe: budget: bits: got nan, needs a finite number"),
        (PLAIN, "recipe: no budget; give a table [budget]"),
        ("version = 1\n[budget]\nbits = 4", "recipe: the key 'model' is missing"),
        (WHOLE.replace("1", "2", 1), "recipe: version 2, this tool reads 1"),
        ("model = 'm'", "recipe: version None, this tool reads 1"),
        ("version 1", "recipe is no TOML"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(text: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_candidates_and_budgets_are_checked_as_everywhere() -> None:
    with pytest.raises(CandidateError, match="is not of the form"):
        parsed("candidates = ['int4,,int8']\n" + WHOLE)
    with pytest.raises(BudgetError, match="give one of --bits"):
        parsed(WHOLE + "ratio = 0.5")


@pytest.mark.parametrize("content", [None, b"\xff"])
def test_files_that_cannot_be_read_are_named(content: bytes | None, tmp_path: Path) -> None:
    path: Any = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"r\.toml"):
        Recipe.read(path)
