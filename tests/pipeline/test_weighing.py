"""What options weigh: resident bytes of real loaded folders, works, and a block's own share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from torch import Tensor
from transformers import AutoModelForCausalLM

from blockwright.anatomy import Skeleton, build_skeleton
from blockwright.assemble import Layout, assemble
from blockwright.checkpoint import Checkpoint, ParameterSource
from blockwright.errors import ProfileError
from blockwright.machine import count_memory, describe_machine
from blockwright.pipeline.opening import Run, by_id
from blockwright.pipeline.weighing import check_profile, left_out, weigh_option
from blockwright.registry import format_named, method_named
from blockwright.stream import weight_of
from blockwright.types import (
    GridFormat,
    GridSolution,
    Option,
    Profile,
    Site,
    SiteKind,
    Statistics,
    Workload,
)
from tests.conftest import ModelFolder
from tests.machine.test_memory import held_bytes
from tests.plan.problems import option, problem_of


def run_of(skeleton: Skeleton, profile: Path | None = None) -> Run:
    """As much of a run as weighing needs."""
    request = SimpleNamespace(device="cpu", profile=profile)
    return cast(Run, SimpleNamespace(skeleton=skeleton, request=request))


def weighed(
    skeleton: Skeleton, site: str, candidate: str, contains: tuple[str, ...] = ()
) -> Option:
    bare = option(site, candidate, 0, 0.0, contains=contains)
    return weigh_option(run_of(skeleton), by_id(skeleton), bare)


def fitted(model: Path, out: Path, chosen: Mapping[str, str], kept: list[int]) -> None:
    """A folder of rounded weights, without a fit."""
    checkpoint, skeleton = Checkpoint.open(model), build_skeleton(model)
    source = ParameterSource(skeleton.model, checkpoint)

    def stored(site: Site) -> Mapping[str, Tensor]:
        format = format_named(chosen[site.id])
        assert isinstance(format, GridFormat)
        W_OI = weight_of(site, source.load([site.parameter])[site.parameter])
        solution = method_named("rtn").solve(W_OI, Statistics(tokens=0), format)
        assert isinstance(solution, GridSolution)
        return format.pack(solution, None, W_OI.dtype).stored_tensors()

    specs = {site: format_named(name).spec() for site, name in chosen.items()}
    assemble(Layout(skeleton, specs, kept), source, checkpoint, stored, out)


@pytest.mark.parametrize(
    ("kind", "options", "kept"),
    [
        ("llama", {"tie_word_embeddings": False}, [0, 2]),
        ("llama", {"tie_word_embeddings": True}, [0, 1, 2]),
        ("gpt2", {}, [1, 2]),
        ("mixtral", {}, [0, 1, 2]),
    ],
)
def test_options_add_up_to_what_a_loaded_folder_holds(
    kind: str,
    options: dict[str, bool],
    kept: list[int],
    model_folder: ModelFolder,
    tmp_path: Path,
) -> None:
    model = model_folder(kind, **options)
    skeleton = build_skeleton(model)
    inside = [site for site in skeleton.sites if site.parameter and site.block in (None, *kept)]
    names = ("int4-g32", "int8", "int6-g32", "keep")
    picked = {site.id: names[index % 4] for index, site in enumerate(inside)}
    if kind == "mixtral":  # experts of one matrix are tied
        picked = {s.id: "int4-g32" if s.expert is not None else "keep" for s in inside}
    total = sum(weighed(skeleton, site, name).resident_bytes or 0 for site, name in picked.items())
    for block in sorted({0, 1, 2} - set(kept)):
        total += weighed(skeleton, f"{skeleton.block_path}.{block}", "drop").resident_bytes or 0
    packed = {site: name for site, name in picked.items() if name != "keep"}
    fitted(model, tmp_path / "out", packed, kept)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert total + count_memory(skeleton).fixed_bytes == held_bytes(loaded)


def test_works_name_shape_and_format(model_folder: ModelFolder) -> None:
    skeleton = build_skeleton(model_folder("llama", tie_word_embeddings=True))
    q, k = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
    assert weighed(skeleton, q, "int4-g32:gptq").work == ("linear 64x64 int4-g32",)
    assert weighed(skeleton, q, "keep").work == ("linear 64x64 keep",)
    table = weighed(skeleton, "model.embed_tokens", "int8:rtn")
    assert table.work == ("embedding 128x64 int8", "head 128x64 int8")
    block = weighed(skeleton, "model.layers.0", "keep")
    assert (block.work, block.resident_bytes) == ((), 0)
    group = weighed(skeleton, "model.layers.0.qk", "int4-g32:gptq", contains=(q, k))
    assert group.work == ("linear 64x64 int4-g32", "linear 32x64 int4-g32")
    alone = [weighed(skeleton, site, "int4-g32:gptq").resident_bytes or 0 for site in (q, k)]
    assert group.resident_bytes == sum(alone)


def profile(**changes: object) -> Profile:
    fields = {
        "machine": describe_machine("cpu"),
        "model": "m",
        "dtype": "float32",
        "workload": Workload(),
        "outside_ns": 1,
        "original_extra_ns": 0,
        "blocks_ns": {},
        "work_ns": {"linear 8x4 keep": 2},
        "untimed": {"linear 8x4 int3": "no packed kernel"},
    }
    return Profile(**(fields | changes))  # type: ignore[arg-type]


def test_a_profile_of_another_machine_or_workload_is_refused(model_folder: ModelFolder) -> None:
    run = run_of(build_skeleton(model_folder("llama")), Path("p.json"))
    check_profile(profile(), run, Workload())
    elsewhere = {**describe_machine("cpu"), "processor": "abacus"}
    with pytest.raises(ProfileError, match=r"p\.json was measured elsewhere: processor abacus"):
        check_profile(profile(machine=elsewhere), run, Workload())
    native = {**describe_machine("cpu"), "native_kernel": "abc"}
    with pytest.raises(ProfileError, match=r"elsewhere: native_kernel abc \(here None\)"):
        check_profile(profile(machine=native), run, Workload())
    with pytest.raises(ProfileError, match=r"is of decode .* 512 tokens, the speedup is asked in"):
        check_profile(profile(), run, Workload(context=7))


def test_what_is_not_offered_under_a_speedup_is_named_with_its_reason() -> None:
    works = {"keep": "keep", "int3:rtn": "int3", "int5:rtn": "int5"}
    options = [
        weigh_free(option("a", candidate, 9, 0.0), f"linear 8x4 {name}")
        for candidate, name in works.items()
    ]
    assert left_out(problem_of(options), profile()) == [
        "not offered under a speedup: int3:rtn: no packed kernel",
        "not offered under a speedup: int5:rtn: the profile has no time for it",
    ]


def weigh_free(bare: Option, work: str) -> Option:
    return Option(**{**vars(bare), "work": (work,)})


def test_every_linear_of_every_block_has_a_work(model_folder: ModelFolder) -> None:
    skeleton = build_skeleton(model_folder("gpt2"))
    linears = [site for site in skeleton.sites if site.kind is SiteKind.LINEAR]
    assert all(weighed(skeleton, site.id, "keep").work for site in linears)
