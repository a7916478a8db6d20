"""Machine profiles: what is timed, how often, and what the figures are made of; by a fake clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from blockwright.anatomy import skeleton_of_config
from blockwright.errors import ProfileError
from blockwright.machine import hollow_model, measure_profile, profile_inputs, works_of
from blockwright.machine.fixed import Step
from blockwright.machine.kernels import Bench, least_times, no_faster, time_work
from blockwright.machine.profile import count_usage
from blockwright.machine.works import Work
from blockwright.progress import SilentProgress
from blockwright.registry import format_class, format_named, format_stems
from blockwright.types import PackedFormat, Phase, Profile, Workload
from tests.models import KINDS, tiny_config

DECODE = Workload(context=16)
PREFILL = Workload(phase=Phase.PREFILL, batch=2, context=24)
BFLOAT = {"dtype": "bfloat16"}


def formats(*names: str) -> list[PackedFormat]:
    found = [format_named(name) for name in names]
    return [format for format in found if isinstance(format, PackedFormat)]


class FakeClock:
    """Time that passes by itself, a tick at every look."""

    def __init__(self, tick: int = 1000) -> None:
        self.now, self.tick = 0, tick

    def __call__(self) -> int:
        self.now += self.tick
        return self.now


def profile_of(kind: str, workload: Workload, clock: Callable[[], int], **options: Any) -> Profile:
    return measure_profile(
        skeleton_of_config(tiny_config(kind, **options)),
        formats("int4-g32", "int8"),
        workload,
        model=kind,
        progress=SilentProgress(),
        clock=clock,
        rounds=1,
    )


@pytest.mark.parametrize("stem", format_stems())
def test_a_format_with_a_kernel_is_timed_on_tensors_that_mean_nothing(stem: str) -> None:
    bench = Bench(torch.bfloat16, "cpu", stream_bytes=1, clock=FakeClock(), rounds=1)
    for format in formats(*format_class(stem).examples()[-2:]):
        found = time_work(bench, Work("linear", 48, 128), 2, [format])
        assert (format.name in found.ns) is format.limits.packed_on_cpu, found.untimed


def test_with_an_even_clock_the_figures_count_calls() -> None:
    """Every product takes one tick; a hollow forward of 3 blocks looks at the clock 8 times."""
    found = profile_of("llama", DECODE, FakeClock())
    assert set(found.work_ns.values()) == {1000}
    assert found.blocks_ns == dict.fromkeys([f"model.layers.{i}" for i in range(3)], 1000)
    assert found.outside_ns == 7000 - 3000
    names = {"head 128x64", "embedding 128x64", "linear 64x64", "linear 32x64"}
    names |= {"linear 96x64", "linear 64x96"}
    assert set(found.work_ns) == {f"{n} {f}" for n in names for f in ("keep", "int4-g32", "int8")}


def test_two_profiles_by_one_clock_are_equal() -> None:
    first, second = (profile_of("llama", DECODE, FakeClock()) for _ in range(2))
    assert first == second
    assert first.digest == second.digest


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "vit"])
@pytest.mark.parametrize("phase", list(Phase))
def test_every_architecture_is_timed_or_refused_by_name(kind: str, phase: Phase) -> None:
    workload = Workload(phase=phase, context=16)
    if kind == "bert" and phase is Phase.DECODE:
        with pytest.raises(ProfileError, match="bert does not write tokens; give --phase prefill"):
            profile_of(kind, workload, FakeClock())
        return
    found = profile_of(kind, workload, FakeClock())
    skeleton = skeleton_of_config(tiny_config(kind))
    for site in skeleton.sites:
        if site.parameter:
            assert found.time_of(works_of(site, "keep")) is not None, site.id


def test_a_context_beyond_the_positions_is_refused() -> None:
    with pytest.raises(ProfileError, match="--context 128: llama has 128 positions; give at most"):
        profile_of("llama", Workload(context=128), FakeClock())


def test_a_share_of_the_experts_is_counted_by_what_the_router_does() -> None:
    hollow = hollow_model(skeleton_of_config(tiny_config("mixtral")))
    used = {str(work): usage for work, usage in count_usage(hollow, DECODE).items()}
    assert used["expert 192x64"].calls == pytest.approx(0.5)  # 2 of 4, one token
    assert used["expert 192x64"].tokens == 1
    many = {str(work): usage for work, usage in count_usage(hollow, PREFILL).items()}
    routed = many["expert 192x64"]
    assert routed.calls * routed.tokens == pytest.approx(2 * 24 * 2 / 4, rel=0.1)


def test_a_prompt_asks_for_the_logits_of_its_last_token_alone() -> None:
    hollow = hollow_model(skeleton_of_config(tiny_config("llama", tie_word_embeddings=True)))
    used = {str(work): usage.tokens for work, usage in count_usage(hollow, PREFILL).items()}
    assert used["embedding 128x64"] == 48
    assert used["head 128x64"] == 2
    assert used["linear 96x64"] == 48


def test_a_decoding_step_sees_the_whole_context() -> None:
    hollow = hollow_model(skeleton_of_config(tiny_config("llama")))
    step = Step(hollow, DECODE, torch.device("cpu"))
    step()
    assert step._options["past_key_values"].get_seq_length() == DECODE.context + 1


def test_the_least_of_medians_over_interleaved_copies_counts() -> None:
    seconds = iter([*[9] * 6, *[5, 1, 7, 1, 6, 1], *[8, 2, 8, 2, 4, 2]])

    def looks() -> Iterator[int]:
        now = 0
        for spent in seconds:
            yield now
            now += spent
            yield now

    look = looks()
    order: list[str] = []

    def calls(name: str) -> list[Callable[[], object]]:
        return [lambda: order.append(name) for _ in range(3)]

    assert least_times({"a": calls("a"), "b": calls("b")}, lambda: next(look), 2) == {
        "a": 6,
        "b": 1,
    }
    assert order == ["a", "b"] * 9


@pytest.mark.parametrize(
    ("time", "counted"), [(50, 50), (97, 97), (98, 100), (100, 100), (140, 140)]
)
def test_a_kernel_within_the_margin_of_the_dense_one_is_no_faster(time: int, counted: int) -> None:
    assert no_faster(time, 100) == counted


def test_formats_without_a_kernel_here_are_named_and_not_timed() -> None:
    bench = Bench(torch.bfloat16, "cpu", 1 << 16, FakeClock(), rounds=1)
    found = time_work(bench, Work("linear", 32, 40), 1, formats("int4-row", "int4-g32", "int8"))
    assert set(found.ns) == {"keep", "int8"}
    assert "no packed kernel on cpu" in found.untimed["int4-row"]
    assert "group size 32 does not divide 40 inputs" in found.untimed["int4-g32"]


def test_formats_on_one_kernel_take_one_time() -> None:
    class Drifting(FakeClock):
        def __call__(self) -> int:
            self.tick += 1
            return super().__call__()

    bench = Bench(torch.bfloat16, "cpu", 1 << 16, Drifting(), rounds=2)
    work = Work("linear", 64, 64)
    found = time_work(bench, work, 1, formats("int2-g32", "int3-g32", "int4-g32", "int4-g64"))
    assert found.ns["int2-g32"] == found.ns["int3-g32"] == found.ns["int4-g32"]
    assert found.ns["int4-g64"] != found.ns["int4-g32"]


def test_the_key_of_a_profile_names_machine_shapes_workload_and_formats() -> None:
    def key(kind: str = "llama", context: int = 16, *names: str, **options: Any) -> str:
        skeleton = skeleton_of_config(tiny_config(kind, **options))
        offered = formats(*(names or ("int4-g32",)))
        return repr(profile_inputs(skeleton, offered, Workload(context=context), "cpu"))

    assert key() == key()
    others = [key("mistral"), key("llama", 17), key("llama", 16, "int8")]
    others += [key("llama", num_attention_heads=8), key("llama", num_hidden_layers=2)]
    assert len({key(), *others}) == 1 + len(others)
