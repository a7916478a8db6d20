"""The page says what was measured: ratios first, reasons joined, no places of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from benchmarks.peers import page
from benchmarks.peers.page import write_page

from blockwright.errors import UserError

MACHINE = {
    "processor": "Some CPU",
    "capability": "AVX512",
    "threads": 2,
    "torch": "2",
    "transformers": "5",
    "python": "3.11",
}
LOSSES = {"excess_loss": 0.001, "tokens": 4096, "seed": 0}
QUALITY = {
    "model": "/data/somebody/model",
    "held_out": "the shipped held-out text",
    "seeds": [0],
    "sequence_length": 512,
    "rows": [
        {"format": "int4-g64", "who": "autoround", "bits": 4.3, "kl": 0.002, **LOSSES},
        {"format": "int4-g64", "who": "our gptq", "bits": 4.3, "kl": 0.001, **LOSSES},
        {
            "format": "int4-g64",
            "who": "plan best at the bits of autoround",
            "bits": 4.3,
            "kl": 0.003,
            **LOSSES,
        },
        {
            "format": "int3-g64",
            "who": "quanto",
            "error": "quanto has no 3 bits",
            "log": "/data/somebody/log",
            "seed": 0,
        },
    ],
    "ratios": [
        {
            "format": "int4-g64",
            "preset": "best",
            "rival": "autoround",
            "ratio": 1.5,
            "bound": 0.5,
        }
    ],
}
DECODE = {
    "model": "/data/somebody/llama-22",
    "prompt_tokens": 128,
    "decode_tokens": 32,
    "rounds": 3,
    "threads": 2,
    "rows": [
        {
            "who": who,
            "bits": 4,
            "decode_ratio": ratio,
            "prefill_ratio": 1.0,
            "resident_ratio": 0.5,
            "decode_tokens_per_second": 10.0,
            "prefill_seconds": 1.0,
            "resident_bytes": 10**9,
            "library_bytes": 10**8,
            "logits_difference": 0.1,
        }
        for who, ratio in (("bf16", 1.0), ("ours-int4", 3.0))
    ],
    "ratios": [
        {
            "who": "ours-int4",
            "rival": "llamacpp-q4_0",
            "decode": 0.8,
            "prefill": 1.0,
            "resident": 1.0,
            "bound": 0.9,
        }
    ],
}
TIME = {
    "model": "/data/somebody/llama-22",
    "tokens": 16384,
    "threads": 2,
    "blockwright": {"fit_seconds": 60.0, "tree_bytes": 10**9},
    "peers": {
        "gptqmodel": {"seconds": 120.0, "tree_bytes": 3 * 10**9},
        "awq": {"error": "no memory"},
    },
    "ratios": [{"rival": "gptqmodel", "time": 0.5, "memory": 0.33}],
    "second_budget_seconds": 2.0,
    "second_budget_bound_seconds": 5.0,
}


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reasons: str = "") -> str:
    """The page of all parts."""
    (tmp_path / "reasons.toml").write_text(reasons, encoding="utf-8")
    monkeypatch.setattr(page, "REASONS", tmp_path / "reasons.toml")
    for part, figures in (("quality", QUALITY), ("time", TIME), ("decode", DECODE)):
        report: dict[str, Any] = {"machine": MACHINE, "figures": figures}
        (tmp_path / f"peers-{part}.json").write_text(json.dumps(report), encoding="utf-8")
    return write_page(tmp_path, tmp_path / "docs").read_text(encoding="utf-8")


def test_every_part_has_its_table_its_plot_and_its_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = written(tmp_path, monkeypatch)
    assert text.count("Some CPU (AVX512), 2 threads") == 3
    assert "| int4-g64 | best | autoround | 1.50x | 0.5x | not found yet |" in text
    assert "| ours-int4 | llamacpp-q4_0 | 0.80x | 0.9x | 1.00x | 1.00x | not found yet |" in text
    assert "| gptqmodel | 0.50x |  | 0.33x |  |  |" in text
    assert "- int3-g64 quanto: quanto has no 3 bits" in text
    assert "- awq: no memory" in text
    for name in ("quality", "compressing", "decode"):
        assert f"(benchmarks-{name}.svg)" in text
        drawing = ElementTree.parse(tmp_path / "docs" / f"benchmarks-{name}.svg").getroot()
        assert drawing.tag.endswith("svg")


def test_rows_that_are_not_first_take_their_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = '[decode]\n"ours-int4 llamacpp-q4_0" = "its kernel reads less"\n'
    text = written(tmp_path, monkeypatch, reasons)
    assert "| its kernel reads less |" in text


def test_no_place_of_this_machine_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, monkeypatch)
    for path in (tmp_path / "docs").iterdir():
        assert "somebody" not in path.read_text(encoding="utf-8")


def test_reasons_are_of_known_parts() -> None:
    import tomllib  # noqa: PLC0415

    found = tomllib.loads(page.REASONS.read_text(encoding="utf-8"))
    assert set(found) <= set(page.SECTIONS)
    assert all(isinstance(text, str) for part in found.values() for text in part.values())


def test_nothing_measured_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run quality, time or decode first"):
        write_page(tmp_path, tmp_path / "docs")
