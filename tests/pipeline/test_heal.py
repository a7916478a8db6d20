"""Healing of whole fitted folders: better than before, resumable, loudly refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from blockwright import pipeline
from blockwright.checkpoint import Checkpoint
from blockwright.errors import AdapterError, BlockwrightError, BudgetError, OutputError, UserError
from blockwright.heal import loop
from blockwright.pipeline import blockwise_healing, whole_healing
from blockwright.pipeline.heal_student import train_what_fits
from blockwright.types import Budget, FitRequest, HealRequest, HealResult, Preset, Recipe
from tests.conftest import ModelFolder
from tests.fits import folder_bytes, request, with_tokenizer
from tests.pipeline.conftest import fit_here, load_here
from tests.pipeline.test_fit import KINDS

Fitted = Callable[..., tuple[Path, Path]]
STEPS = 12
BITS = {"int2": 2.7, "int3": 4.6, "rank": 8.2, "sparse2of4": 10.2}


@pytest.fixture(scope="module")
def fitted(
    model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """``fitted(kind, candidates, bits)``: folders of an original and of what was fitted of it."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def fit(kind: str, candidate: str) -> tuple[Path, Path]:
        key = (kind, candidate)
        if key not in made:
            work = tmp_path_factory.mktemp("healed")
            model = with_tokenizer(model_folder(kind, **KINDS[kind]), work)
            budget = Budget(bits=BITS[candidate.partition("-")[0].partition(":")[0]])
            asked = request(model, work, candidates=(candidate,), budget=budget)
            made[key] = model, fit_here(replace(asked, preset=Preset.FAST)).out
        return made[key]

    return fit


def asked(folders: tuple[Path, Path], work: Path, **changes: Any) -> HealRequest:
    original, model = folders
    options: dict[str, Any] = {
        "model": str(model),
        "against": str(original),
        "out": work / "healed",
        "data": original.parent / "texts",
        "eval_text": original.parent / "heldout.txt",
        "steps": STEPS,
        "rate": 0.02,
        "sequence_length": 64,
        "batch_tokens": 256,
        "eval_tokens": 512,
        "threads": 1,
    }
    return HealRequest(**(options | changes))


def healed(folders: tuple[Path, Path], work: Path, **changes: Any) -> HealResult:
    return pipeline.heal(asked(folders, work, **changes))


@pytest.mark.parametrize(
    ("kind", "candidate"),
    [
        pytest.param("llama", "rank-p50+bf16:svd", marks=pytest.mark.slow),
        pytest.param("llama", "sparse2of4:magnitude", marks=pytest.mark.slow),
        ("gpt2", "int2-g32:rtn"),
        pytest.param("qwen3_moe", "int2-g32:rtn", marks=pytest.mark.slow),
        pytest.param("bert", "int2-g32:rtn", marks=pytest.mark.slow),
    ],
)
def test_a_healed_model_is_closer_to_the_original_on_held_out_text(
    kind: str, candidate: str, fitted: Fitted, tmp_path: Path
) -> None:
    result = healed(fitted(kind, candidate), tmp_path)
    assert result.best_step > 0
    if kind == "bert":
        assert (result.after.relative_error or 1) < 0.98 * (result.before.relative_error or 1)
    else:
        assert (result.after.kl_divergence or 1) < 0.98 * (result.before.kl_divergence or 1)
    assert result.size_bytes == result.size_bytes_before


def test_healing_of_codes_changes_scales_norms_and_tables_alone(
    fitted: Fitted, tmp_path: Path
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    result = healed(folders, tmp_path)
    before, after = Checkpoint.open(folders[1]), Checkpoint.open(result.out)
    assert before.names == after.names
    changed = {n for n in before.names if not torch.equal(before.read(n), after.read(n))}
    kinds = {name.rpartition(".")[2] for name in changed}
    assert kinds == {"scale", "weight"}
    assert not any(name.endswith("proj.weight") for name in changed)
    told = json.loads((result.out / whole_healing.HEAL_FILE).read_text(encoding="utf-8"))
    assert told["adapters"] == {"e2eqp": 21}


@pytest.mark.slow
def test_the_same_healing_gives_the_same_bytes(fitted: Fitted, tmp_path: Path) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    first = healed(folders, tmp_path, out=tmp_path / "a")
    second = healed(folders, tmp_path, out=tmp_path / "b")
    assert folder_bytes(first.out) == folder_bytes(second.out)
    assert not (tmp_path / "a.healing").exists()


@pytest.mark.parametrize("killed_at", [9, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_healing_resumes_to_the_same_bytes(
    killed_at: int, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    whole = healed(folders, tmp_path, out=tmp_path / "whole")
    seen: list[int] = []
    stepped = loop._stepped

    def watched(training: Any, step: int, rollbacks: int) -> bool:
        seen.append(step)
        if seen == list(range(1, killed_at + 1)):
            raise KeyboardInterrupt
        return stepped(training, step, rollbacks)

    monkeypatch.setattr(loop, "_stepped", watched)
    with pytest.raises(KeyboardInterrupt):
        healed(folders, tmp_path, out=tmp_path / "killed")
    assert not (tmp_path / "killed").exists()
    again = healed(folders, tmp_path, out=tmp_path / "killed")
    assert folder_bytes(again.out) == folder_bytes(whole.out)
    assert len(seen) < 2 * STEPS


@pytest.mark.slow
def test_minutes_become_a_stored_step_count(
    fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    monkeypatch.setattr(whole_healing, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        healed(folders, tmp_path, steps=None, minutes=0.01)
    stored = json.loads((tmp_path / "healed.healing" / "run.json").read_text(encoding="utf-8"))
    monkeypatch.undo()
    monkeypatch.setattr(whole_healing, "steps_of_minutes", killed)
    load_here(monkeypatch)
    result = healed(folders, tmp_path, steps=None, minutes=0.01)
    assert result.steps == stored["steps"] >= 8


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.slow
def test_a_model_that_nothing_improves_is_written_as_it_was(fitted: Fitted, tmp_path: Path) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    result = healed(folders, tmp_path, rate=1e-9)
    assert result.best_step == 0
    assert any("nothing was better" in note for note in result.notes)
    before, after = Checkpoint.open(folders[1]), Checkpoint.open(result.out)
    assert all(torch.equal(before.read(name), after.read(name)) for name in before.names)


@pytest.mark.parametrize(
    ("adapter", "candidate"),
    [
        ("lora@rank=4", "int3-g32:rtn"),
        pytest.param("miss@rank=4", "rank-p50+bf16:svd", marks=pytest.mark.slow),
        pytest.param("blocklora@rank=4", "int3-g32:rtn", marks=pytest.mark.slow),
    ],
)
def test_an_adapter_becomes_a_side_path(
    adapter: str, candidate: str, fitted: Fitted, tmp_path: Path
) -> None:
    folders = fitted("llama", candidate)
    result = healed(folders, tmp_path, adapter=adapter, steps=6)
    assert result.best_step > 0
    assert (result.after.kl_divergence or 1) < (result.before.kl_divergence or 1)
    assert result.size_bytes > result.size_bytes_before
    config = json.loads((result.out / "config.json").read_text(encoding="utf-8"))
    before = json.loads((folders[1] / "config.json").read_text(encoding="utf-8"))
    specs = config["quantization_config"]["sites"]
    assert specs.keys() == before["quantization_config"]["sites"].keys()
    assert specs != before["quantization_config"]["sites"]


def refusal(folders: tuple[Path, Path], work: Path, **changes: Any) -> str:
    with pytest.raises(BlockwrightError) as caught:
        healed(folders, work, **changes)
    assert isinstance(caught.value, UserError), caught.value
    assert "\n" not in str(caught.value)
    assert not (work / "healed").exists()
    return str(caught.value)


def test_bad_input_is_refused_in_one_line(
    fitted: Fitted, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    wide = with_tokenizer(model_folder("llama", hidden_size=128), tmp_path / "wide")
    words = with_tokenizer(model_folder("llama", vocab_size=160), tmp_path / "words")
    other = with_tokenizer(model_folder("mistral"), tmp_path / "other")
    assert "hidden size of 128" in refusal((wide, folders[1]), tmp_path, data=None)
    assert "vocabulary of 160" in refusal((words, folders[1]), tmp_path, data=None)
    assert "mistral model" in refusal((other, folders[1]), tmp_path, data=None)
    assert "quantized already" in refusal((folders[1], folders[1]), tmp_path, data=None)
    assert "did you mean 'lora'" in refusal(folders, tmp_path, adapter="lorra")
    assert "supports dense hosts" in refusal(folders, tmp_path, adapter="dora")
    assert "no option 'size'" in refusal(folders, tmp_path, adapter="lora@size=3")
    assert "unknown optimizer" in refusal(folders, tmp_path, optimizer="adma")
    assert "give one of them" in refusal(folders, tmp_path, minutes=3.0)
    assert "does not exist" in refusal(folders, tmp_path, data=tmp_path / "none.txt")
    (tmp_path / "healed").mkdir()
    (tmp_path / "healed" / "file").touch()
    with pytest.raises(OutputError):
        healed(folders, tmp_path)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    class Nothing:
        hosts = ()
        trained: ClassVar[dict[str, Any]] = {}
        stored_parameters = dict
        train_parameters = list
        angles = list

    skeleton = SimpleNamespace(sites=(), block_path="blocks")
    with pytest.raises(AdapterError, match="has no trainable parameter; name another --adapter"):
        train_what_fits(
            Nothing(),  # type: ignore[arg-type]
            skeleton,  # type: ignore[arg-type]
            "auto",
            tables=True,
            seed=0,
            sample={},
        )


def test_a_loss_that_is_not_finite_rolls_back_and_the_folder_stays_good(
    fitted: Fitted, tmp_path: Path
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    result = healed(folders, tmp_path, rate=1e38)
    assert result.rollbacks == loop.MOST_ROLLBACKS + 1
    assert result.best_step == 0
    assert result.after.kl_divergence == result.before.kl_divergence


@pytest.mark.slow
def test_a_state_of_other_inputs_is_not_continued(fitted: Fitted, tmp_path: Path) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    whole = healed(folders, tmp_path, out=tmp_path / "whole")
    work = tmp_path / "healed.healing"
    work.mkdir()
    (work / "run.json").write_text('{"identity": "another", "steps": 3}', encoding="utf-8")
    again = healed(folders, tmp_path)
    assert again.steps == STEPS
    assert folder_bytes(again.out) == folder_bytes(whole.out)
    shutil.rmtree(again.out)


@pytest.mark.slow
def test_a_fit_heals_before_its_proof_and_its_recipe_repeats_it(
    model_folder: ModelFolder, tmp_path: Path
) -> None:
    model = with_tokenizer(model_folder("llama"), tmp_path)
    asked = request(model, tmp_path, candidates=("int2-g32:rtn",), budget=Budget(bits=2.7))
    asked = replace(asked, preset=Preset.FAST)
    plain = pipeline.fit(replace(asked, out=tmp_path / "plain"))
    result = pipeline.fit(replace(asked, heal_steps=STEPS))
    assert (result.fitted.kl_divergence or 1) < (plain.fitted.kl_divergence or 0)
    assert any(note.startswith(f"healed for {STEPS} steps") for note in result.notes)
    recipe = Recipe.read(result.out / "blockwright.toml")
    assert recipe.values["heal_steps"] == STEPS
    again = pipeline.fit(
        recipe.request(out=tmp_path / "again", library=tmp_path / "other", recipe=None)
    )
    first, second = (folder_bytes(folder) for folder in (result.out, again.out))
    assert first["model.safetensors"] == second["model.safetensors"]


def test_a_fit_takes_minutes_or_steps_of_healing() -> None:
    options: dict[str, Any] = {"model": "m", "out": Path("o"), "budget": Budget(bits=3)}
    with pytest.raises(BudgetError, match="give one of them"):
        FitRequest(heal=3.0, heal_steps=3, **options)
    with pytest.raises(BudgetError, match="positive number of minutes"):
        FitRequest(heal=-1.0, **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "candidate"),
    [
        ("llama", "int2-g32:rtn"),
        ("llama", "rank-p50+bf16:svd"),
        ("gpt2", "int2-g32:rtn"),
        ("qwen3_moe", "int2-g32:rtn"),
        ("bert", "int2-g32:rtn"),
    ],
)
def test_healing_block_by_block_changes_scales_and_norms_for_the_better(
    kind: str, candidate: str, fitted: Fitted, tmp_path: Path
) -> None:
    folders = fitted(kind, candidate)
    result = healed(folders, tmp_path, blockwise=True)
    assert result.best_step == result.steps == STEPS
    assert result.selection_loss_after < result.selection_loss_before
    if kind == "bert":
        assert (result.after.relative_error or 1) < 0.98 * (result.before.relative_error or 1)
    else:
        assert (result.after.kl_divergence or 1) < 0.98 * (result.before.kl_divergence or 1)
    before, after = Checkpoint.open(folders[1]), Checkpoint.open(result.out)
    assert before.names == after.names
    changed = [n for n in before.names if not torch.equal(before.read(n), after.read(n))]
    assert changed
    assert all(before.dtype(name).is_floating_point for name in changed)
    assert result.size_bytes == result.size_bytes_before
    assert not (tmp_path / "healed.healing").exists()


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", [1, 2])
def test_a_killed_healing_block_by_block_resumes_to_the_same_bytes(
    killed_at: int, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    whole = healed(folders, tmp_path, out=tmp_path / "whole", blockwise=True)
    assert whole.best_step == STEPS
    assert (whole.after.kl_divergence or 1) < 0.98 * (whole.before.kl_divergence or 1)
    heal, seen = blockwise_healing._Blocks.heal, list[int]()

    def watched(blocks: Any, index: int, tune: Any) -> None:
        seen.append(index)
        if seen == list(range(killed_at + 1)):
            raise KeyboardInterrupt
        heal(blocks, index, tune)

    monkeypatch.setattr(blockwise_healing._Blocks, "heal", watched)
    with pytest.raises(KeyboardInterrupt):
        healed(folders, tmp_path, out=tmp_path / "killed", blockwise=True)
    again = healed(folders, tmp_path, out=tmp_path / "killed", blockwise=True)
    assert seen == [*range(killed_at + 1), *range(killed_at, 3)]
    assert folder_bytes(again.out) == folder_bytes(whole.out)


def test_what_cannot_be_healed_block_by_block_is_refused(
    fitted: Fitted, model_folder: ModelFolder, tmp_path: Path
) -> None:
    folders = fitted("llama", "int2-g32:rtn")
    fewer = with_tokenizer(model_folder("llama", num_hidden_layers=2), tmp_path / "fewer")
    assert "leave --adapter out" in refusal(folders, tmp_path, blockwise=True, adapter="lora")
    assert "leave --minutes out" in refusal(
        folders, tmp_path, blockwise=True, steps=None, minutes=1.0
    )
    told = refusal((fewer, folders[1]), tmp_path, blockwise=True, data=None, eval_text=None)
    assert "has 3 blocks, its original 2" in told
