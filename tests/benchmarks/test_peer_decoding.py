"""Everybody is timed by one loop, and a contender that fails keeps its row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.peers import decoding
from benchmarks.peers.environments import PeerError
from benchmarks.peers.job import SpeedAnswer, SpeedJob
from benchmarks.peers.runners import speed

from blockwright.errors import UserError
from tests.conftest import ModelFolder

JOB = SpeedJob(
    model="m",
    stored="s",
    out="o",
    bits=4,
    group_size=128,
    ids=(5, 6, 7),
    decode_tokens=4,
    threads=1,
)
ANSWER = SpeedAnswer(
    prefill_seconds=1.0,
    decode_seconds=0.1,
    library_bytes=10,
    resident_bytes=100,
    logits=[3.0, 4.0],
    settings={},
    versions={},
)


class Counting:
    """Gives the number of tokens that it has seen."""

    settings: Mapping[str, Any] = {"of": "test"}
    versions: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def read(self, ids: Sequence[int]) -> int:
        self.seen.append(list(ids))
        return len(ids)

    def step(self, token: int) -> int:
        self.seen[-1].append(token)
        return len(self.seen[-1])

    def logits(self) -> list[float]:
        return [float(len(self.seen[-1]))]


def test_every_prompt_is_read_anew_and_decoded_greedily() -> None:
    engine = Counting()
    answer = speed.measure(JOB, lambda _: engine)
    assert engine.seen == [[5, 6, 7]] * (speed.PREFILLS - 1) + [[5, 6, 7, 3, 4, 5, 6]]
    assert answer.logits == [3.0]
    assert 0 < answer.decode_seconds < answer.prefill_seconds + 1
    assert 0 < answer.library_bytes <= answer.resident_bytes


def test_speed_jobs_and_answers_survive_their_files(tmp_path: Path) -> None:
    JOB.write(tmp_path / "job.json")
    assert SpeedJob.read(tmp_path / "job.json") == JOB
    ANSWER.write(tmp_path / "answer.json")
    assert SpeedAnswer.read(tmp_path / "answer.json") == ANSWER


def test_ratios_are_of_the_least_times_to_bf16() -> None:
    slow, fast = replace(ANSWER, decode_seconds=0.4), replace(ANSWER, decode_seconds=0.2)
    ours = [replace(ANSWER, resident_bytes=50), replace(ANSWER, decode_seconds=0.3)]
    answers = {"bf16": [slow, fast], "ours-int4": ours}
    base, row = decoding.rows_of(["bf16", "ours-int4"], answers, {})
    assert (base["decode_ratio"], base["logits_difference"]) == (1.0, 0.0)
    assert (row["decode_ratio"], row["resident_ratio"]) == (pytest.approx(2.0), 0.5)


def test_another_model_is_not_timed() -> None:
    answers = {"bf16": [ANSWER], "llamacpp-q4_0": [replace(ANSWER, logits=[4.0, -3.0])]}
    _, row = decoding.rows_of(list(answers), answers, {})
    assert "logits differ by 1.41" in row["error"]


def test_four_bits_compete_with_four_bits_and_with_the_fastest_of_pytorch() -> None:
    ratios = {
        "ours-int4": 3.0,
        "ours-int8": 2.0,
        "llamacpp-q4_0": 4.0,
        "llamacpp-q8_0": 2.5,
        "torchao-int4": 2.0,
    }
    figures = {"prefill_ratio": 1.0, "resident_ratio": 1.0}
    rows = [
        {"who": who, "bits": decoding.CONTENDERS[who].bits, "decode_ratio": value, **figures}
        for who, value in ratios.items()
    ]
    found = {(r["who"], r["rival"]): (r["decode"], r["bound"]) for r in decoding.ratios(rows)}
    assert found == {
        ("ours-int4", "llamacpp-q4_0"): (0.75, 0.9),
        ("ours-int4", "torchao-int4"): (1.5, None),
        ("ours-int4", "the fastest of PyTorch"): (1.5, 1.0),
        ("ours-int8", "llamacpp-q8_0"): (0.8, None),
    }


def test_a_contender_that_fails_has_a_row_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: ModelFolder
) -> None:
    calls = []

    def call(name: str, phase: str, job: SpeedJob, folder: Path) -> None:
        calls.append((name, phase))
        if name == "openvino-int4" or (name, phase) == ("torchao-int8", "measure"):
            raise PeerError(f"{name} failed", folder / "log.txt")
        ANSWER.write(Path(job.out))

    monkeypatch.setattr(decoding, "call", call)
    names = ["llamacpp-q4_0", "openvino-int4", "torchao-int8"]
    setting = decoding.Setting(
        work=tmp_path, model=model_folder("llama"), names=names, rounds=2, threads=1
    )
    found = decoding.run(setting)
    errors = {row["who"]: row.get("error") for row in found["rows"]}
    assert errors == {
        "bf16": None,
        "llamacpp-q4_0": None,
        "openvino-int4": "openvino-int4 failed",
        "torchao-int8": "torchao-int8 failed",
    }
    assert calls.count(("llamacpp-q4_0", "prepare")) == 1
    assert calls.count(("llamacpp-q4_0", "measure")) == 2
    decoding.run(setting)
    assert calls.count(("llamacpp-q4_0", "prepare")) == 1
    json.dumps(found)


def test_nothing_is_compared_with_a_baseline_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: ModelFolder
) -> None:
    def call(name: str, phase: str, job: SpeedJob, folder: Path) -> None:
        raise PeerError("no memory", folder)

    monkeypatch.setattr(decoding, "call", call)
    setting = decoding.Setting(
        work=tmp_path, model=model_folder("llama"), names=[], rounds=1, threads=1
    )
    with pytest.raises(UserError, match="no memory"):
        decoding.run(setting)
