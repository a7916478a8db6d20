"""``bench attention`` prints what it measured, or one line."""

from __future__ import annotations

import json

import pytest

from blockwright.cli import run

CALL = ["bench", "attention", "--tokens", "512", "--repeats", "1"]


def test_figures_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    policy = "xattention@block=32,stride=8"
    assert run([*CALL, "--policy", policy, "--density", "0.4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert 0.35 < figures["density"] <= 0.4
    assert figures["density"] < figures["mass_recall"] <= 1
    assert 0 < figures["output_error"] < 1
    assert figures["ratio"] == pytest.approx(figures["seconds"] / figures["dense_seconds"])
    own = 3 * 4 * 512 * 64 * 2
    assert min(figures["peak_bytes"], figures["dense_peak_bytes"]) >= own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "xattentoin"], "did you mean 'xattention'"),
        (["--policy", "mean@kep=3"], "did you mean 'keep'"),
        (["--policy", "mean", "--data", "columns"], "unknown data 'columns'"),
        (["--policy", "mean", "--kv-heads", "3"], "do not divide"),
        (["--policy", "mean", "--density", "0.01"], "already visits"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*CALL, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
