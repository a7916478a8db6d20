"""``bench attention`` prints what it measured, or one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import attention_page
from blockwright.attention import benchmark, figures
from blockwright.attention.spelling import policies_of
from blockwright.cli import run
from tests.report.page_reader import read_page

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


def test_a_page_draws_a_block_of_the_shipped_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, policy = tmp_path / "tiles.html", "mean@query_block=16,key_block=16,keep=3"
    drawn = ["bench", "attention", "--tokens", "128", "--policy", policy, "--page", str(page)]
    assert run([*drawn, "--block", "1"]) == 0
    assert str(page) in capsys.readouterr().out
    found = read_page(page.read_text(encoding="utf-8"))
    assert len(found.all("figure")) == 4
    assert "block 1 · 4 heads · 128 tokens" in found.text
    assert run([*drawn, "--block", "99"]) == 2
    assert "has no block 99" in capsys.readouterr().err


def test_without_a_policy_all_that_is_promised_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "_peak_bytes", lambda policy, setting: None)
    small: dict[str, Any] = {
        "AT_DENSITY": ((256, 0.9, 0.6, 1.5),),
        "BIDIRECTIONAL": ("pisa@block=16",),
        "HEADLINE": ("mean@query_block=16,key_block=16",),
    }
    small |= {"OTHERS": ("moba@block=16", "window@window=64"), "DENSITIES": (0.9,)}
    small |= {"TABLE_TOKENS": 512, "TABLE_DATA": ("mixed",), "TABLE_SEEDS": 1, "OTHER_TOKENS": 256}
    for name, value in small.items():
        monkeypatch.setattr(figures, name, value)
    done: list[None] = []
    setting = benchmark.Setting(tokens=256, repeats=1, threads=1)
    found = figures.all_figures(setting, lengths=(512, 1024), advance=lambda: done.append(None))
    assert len(done) == figures.parts()
    json.dumps(found)
    assert found["at_density"][0]["density"] <= 0.9
    assert [row["policy"] for row in found["densest_that_wins"]] == [
        *small["OTHERS"],
        *small["BIDIRECTIONAL"],
    ]
    assert found["at_eight_tiles"]["mixed"]["oracle"]["mass_recall"] > 0.5
    assert set(found["growth"]) == {"dense", "llsa", "lightning", "gla", "block_linear"}
    machine = {"processor": "one", "capability": "some", "threads": 2, "torch": "2"}
    again = json.loads(json.dumps(found | {"machine": machine}))
    page = attention_page.written(
        f"# A\n{attention_page.BEGIN}\nold\n{attention_page.END}\nend", again
    )
    assert page.startswith("# A\n")
    assert page.endswith("\nend")
    assert "old" not in page
    assert "| 256 | `mean` |" in page
    assert "one (some), 2 threads" in page


def test_thresholds_of_heads_are_written_for_the_other_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, policy = tmp_path / "heads.json", "xattention@block=16,stride=8"
    fit = ["bench", "attention", "--tokens", "160", "--policy", policy, "--fit-heads", str(path)]
    assert run([*fit, "--density", "0.7"]) == 0
    assert str(path) in capsys.readouterr().out
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found
    assert all(text.startswith(f"{policy},steps=") for text in found.values())
    assert policies_of(str(path)) == {int(block): text for block, text in found.items()}
    for changed, message in (
        ([*fit], "needs --policy, --tokens and --density"),
        ([*fit, "--density", "0.01"], "still visit"),
        ([*fit[:6], "--fit-heads", "heads.txt", "--density", "0.7"], "name it .json"),
        ([*fit, "--policy", "mean", "--density", "0.7"], "are xattention's"),
    ):
        assert run(changed) == 2
        assert message in capsys.readouterr().err


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
