"""Laws of every training-time recipe, run over everything that is registered."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from blockwright.errors import CandidateError, TrainingError
from blockwright.registry import (
    format_named,
    method_named,
    recipe_class,
    recipe_named,
    recipe_names,
    width_named,
)
from blockwright.training import Entry, Place, Scope, TrainingRecipe
from blockwright.training.places import under_recipe
from blockwright.training.recipes.nested import Nested, NestedMatrix
from blockwright.types import Channels, MaskedFormat, Statistics, WidthFormat
from tests.models import random_model
from tests.training.cases import STEPS, settings, tokens, trained

CASES = (
    *("bdwp", "bdwp@format=sparse1of4,refresh=4,decay=0.001", "srste@format=panel16x4-50"),
    *("pgf", "pgf@decay=linear,format=sparse70", "pgf@decay=structure", "issp"),
    *("issp@format=sparse2of4,soft=0", "sparseift@every=2,format=sparse70", "masksparsity"),
    *("masksparsity@only=false,format=narrow-p50", "srste"),
    *("nested", "nested@children=2,distil=false,format=narrow-p12"),
)
STATEFUL = (
    *("bdwp@format=sparse1of4,refresh=4,decay=0.001", "pgf", "issp"),
    *("sparseift@every=2,format=sparse70", "masksparsity", "nested"),
)
"""Those that a resumed run has to know more of than the weights."""
every_case = pytest.mark.parametrize("name", CASES)
PROBE = tokens().window(0, 64).unsqueeze(0)


@cache
def trained_once(name: str) -> tuple[PreTrainedModel, list[Entry]]:
    """A tiny model after training; shared, so read only."""
    return trained(name)


def places(recipe: TrainingRecipe) -> list[str]:
    """Paths of the linears that a recipe works on in a tiny model."""
    with under_recipe(random_model("llama"), recipe, PROBE) as matrices:
        return [matrix.place.name for matrix in matrices]


def state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: PreTrainedModel, other: PreTrainedModel) -> bool:
    mine, its = state(one), state(other)
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


def test_every_recipe_is_tried() -> None:
    assert {name.partition("@")[0] for name in CASES} == set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_is(name: str) -> None:
    cls = recipe_class(name)
    assert cls.paper
    assert cls.family == "training"
    assert recipe_named(name) == cls()
    with pytest.raises(CandidateError, match="no option 'nonsense'"):
        recipe_named(f"{name}@nonsense=1")
    with pytest.raises(TrainingError, match="format"):
        recipe_named(f"{name}@format=int4-g64")
    with pytest.raises(TrainingError, match="did you mean"):
        recipe_named(f"{name}@format=sparse2of5")


@pytest.mark.parametrize("name", recipe_names())
def test_same_seed_same_bytes(name: str) -> None:
    model, _ = trained_once(name)
    assert same(model, trained(name)[0])
    assert not same(model, random_model("llama"))


@pytest.mark.parametrize("name", STATEFUL)
def test_a_killed_run_ends_with_the_same_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, log = trained_once(name)
    checkpoint = tmp_path / "checkpoint.pt"
    rate_at = type(settings()).rate_at

    def killed(self: object, step: int) -> float:
        if step == STEPS - 1:
            raise KeyboardInterrupt
        return rate_at(self, step)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr("blockwright.training.settings.TrainingSettings.rate_at", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(name, checkpoint=checkpoint)
    resumed, its_log = trained(name, checkpoint=checkpoint)
    assert same(whole, resumed)
    figures = [[{**entry, "seconds": 0} for entry in found] for found in (log, its_log)]
    assert figures[0] == figures[1]


@every_case
def test_what_is_left_is_an_ordinary_model(name: str, tmp_path: Path) -> None:
    model, _ = trained_once(name)
    plain = random_model("llama")
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert state(model).keys() == state(plain).keys()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(PROBE).logits, model(PROBE).logits)


@every_case
def test_its_format_stores_what_is_left_without_loss(name: str) -> None:
    recipe = recipe_named(name)
    format = format_named(recipe.format)
    model = deepcopy(trained_once(name)[0]).to(torch.bfloat16).float()
    for path in places(recipe):
        W_OI = model.get_submodule(path).get_parameter("weight").detach()
        assert W_OI.any()
        if isinstance(format, MaskedFormat):
            solution = method_named("magnitude").solve(W_OI, Statistics(tokens=0), format)
            assert torch.equal(solution.weight(), W_OI)
        elif isinstance(recipe, Nested):
            assert isinstance(format, WidthFormat)
            check_child(recipe, format, path, W_OI)
        else:
            assert isinstance(format, WidthFormat)
            check_narrow(format, model, path, W_OI)


def check_child(recipe: Nested, format: WidthFormat, path: str, W_OI: Tensor) -> None:
    """Its narrowest child is what the method of prefixes cuts off."""
    linear = nn.Linear(W_OI.shape[1], W_OI.shape[0], bias=False)
    with torch.no_grad():
        linear.weight.copy_(W_OI)
    channels = Channels(writer=path, width=W_OI.shape[1], readers={})
    matrix = recipe.matrix(linear, Place(path, channels))
    assert isinstance(matrix, NestedMatrix)
    matrix.halving = matrix.halvings
    kept = format.kept(W_OI.shape[1])
    kept_K, cut_OK = width_named("matformer").narrow(W_OI, Statistics(tokens=0), kept)
    a = torch.randn(3, W_OI.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(matrix(a), nn.functional.linear(a[:, kept_K], cut_OK))


def check_narrow(format: WidthFormat, model: PreTrainedModel, path: str, W_OI: Tensor) -> None:
    """Channels that go are silent, and the method that narrows leaves just them out."""
    alive_I = W_OI.any(0)
    width = len(alive_I)
    assert int(alive_I.sum()) == format.kept(width)
    given: list[Tensor] = []
    writer = model.get_submodule(path)
    handle = writer.register_forward_pre_hook(lambda _m, inputs: given.append(inputs[0]))
    with torch.no_grad():
        model(PROBE)
    handle.remove()
    a_TI = given[0].flatten(0, -2)
    assert not a_TI[:, ~alive_I].any()
    seen = Statistics(tokens=len(a_TI), input_gram=a_TI.T @ a_TI / len(a_TI))
    kept_K, _ = width_named("modegpt").narrow(W_OI, seen, format.kept(width))
    assert kept_K.tolist() == alive_I.nonzero().flatten().tolist()


@every_case
def test_linears_outside_its_pattern_train_densely(name: str) -> None:
    recipe = recipe_named(name)
    model = random_model("llama")
    with under_recipe(model, recipe, PROBE, "*layers.1.*") as matrices:
        names = [matrix.place.name for matrix in matrices]
        swapped = [n for n, m in model.named_modules() if m in matrices]
    assert names
    assert sorted(swapped) == sorted(names)
    assert all(".layers.1." in path for path in names)
    assert not any(m in matrices for m in model.modules())


@pytest.mark.parametrize("kind", ["phi3", "opt"])
@pytest.mark.parametrize("name", recipe_names())
def test_it_trains_any_architecture(name: str, kind: str) -> None:
    recipe = recipe_named(name)
    model, log = trained(name, kind=kind, steps=2)
    assert all(torch.isfinite(tensor).all() for tensor in state(model).values())
    assert log[-1]["step"] == 2
    if recipe.scope is Scope.LINEARS:
        linears = [
            m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers" in n
        ]
        shares = [float((linear.weight == 0).float().mean()) for linear in linears]
        assert min(shares) >= 0.5


@pytest.mark.parametrize("name", recipe_names())
def test_linears_that_are_none_are_refused_by_name(name: str) -> None:
    with pytest.raises(TrainingError, match="Conv1D"):
        trained(name, kind="gpt2", steps=1)
    with (
        pytest.raises(TrainingError, match=r"matches 'nothing'"),
        under_recipe(random_model("llama"), recipe_named(name), PROBE, "nothing"),
    ):
        pass
