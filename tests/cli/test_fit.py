"""``fit``: options reach the request, results reach stdout, and nothing else does."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from blockwright.cli import options
from blockwright.cli.fit import fit
from blockwright.errors import ModelError, OutputError
from blockwright.types import Budget, FitRequest, Phase, Preset
from tests.cli.conftest import CommandLine, RecordingPipeline, make_result

CONTRACT = (
    *("bits_per_weight", "size_bytes", "original_size_bytes", "perplexity_original"),
    *("perplexity_fitted", "perplexity_uniform", "kl_divergence", "kl_divergence_uniform"),
    *("bits_per_weight_uniform", "top1_agreement", "seconds", "peak_rss_bytes"),
    *("library_hits", "library_misses", "plan_path", "report_path"),
)


def test_every_option_reaches_the_request(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    given = {
        **{"--bits": "3.5", "--out": "o", "--calibration": "c", "--eval-text": "e"},
        **{"--candidates": "int4-g64:gptq@damping=0.1,symmetric=true,int8", "--preset": "fast"},
        **{"--library": "l", "--seed": "7", "--threads": "2", "--calibration-tokens": "4096"},
        **{"--sequence-length": "256", "--eval-tokens": "512", "--device": "cuda"},
        **{"--revision": "main"},
    }
    pairs = [text for pair in given.items() for text in pair]
    assert command_line("fit", "m", *pairs, "--trust-remote-code", "--no-speed").code == 0
    assert pipeline.requests == [
        FitRequest(
            model="m",
            out=Path("o"),
            budget=Budget(bits=3.5),
            preset=Preset.FAST,
            candidates=("int4-g64:gptq@damping=0.1,symmetric=true", "int8"),
            calibration=Path("c"),
            eval_text=Path("e"),
            library=Path("l"),
            revision="main",
            seed=7,
            threads=2,
            calibration_tokens=4096,
            sequence_length=256,
            eval_tokens=512,
            device="cuda",
            trust_remote_code=True,
            speed=False,
        )
    ]


def test_defaults_are_those_of_the_request(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    command_line("fit", "m", "--out", "o", "--ratio", "0.3")
    assert pipeline.requests == [FitRequest(model="m", out=Path("o"), budget=Budget(ratio=0.3))]


@pytest.mark.parametrize(("text", "size"), [("4GB", 4_000_000_000), ("1MiB", 2**20), ("12", 12)])
def test_sizes_are_read_with_units(
    command_line: CommandLine, pipeline: RecordingPipeline, text: str, size: int
) -> None:
    command_line("fit", "m", "--out", "o", "--size", text)
    assert pipeline.requests[0].budget == Budget(size_bytes=size)


def test_limits_combine_into_one_budget(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    limits = ("--bits", "3.5", "--ram", "4GB", "--speedup", "1.5", "--context", "2048")
    where = ("--phase", "prefill", "--batch", "2", "--profile", "p.json")
    assert command_line("fit", "m", "--out", "o", *limits, *where).code == 0
    assert pipeline.requests[0].profile == Path("p.json")
    assert pipeline.requests[0].budget == Budget(
        bits=3.5,
        ram_bytes=4_000_000_000,
        speedup=1.5,
        phase=Phase.PREFILL,
        batch=2,
        context=2048,
    )


def test_a_plan_takes_the_place_of_the_budget(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    command_line("fit", "m", "--out", "o", "--plan", "p.json")
    assert pipeline.requests[0].budget is None
    assert pipeline.requests[0].plan == Path("p.json")


def test_lossless_takes_the_place_of_the_budget(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    assert command_line("fit", "m", "--out", "o", "--lossless").code == 0
    assert pipeline.requests == [FitRequest(model="m", out=Path("o"), budget=None, lossless=True)]
    for given in (("--bits", "3"), ("--plan", "p.json"), ("--candidates", "int8")):
        outcome = command_line("fit", "m", "--out", "o", "--lossless", *given)
        assert outcome.code == 2
        assert "lossless: every bit is kept and nothing is chosen" in outcome.err
    assert len(pipeline.requests) == 1


def test_json_is_one_object_with_the_contract_and_stdout_holds_nothing_else(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    outcome = command_line("fit", "m", "--out", "o", "--bits", "4.3", "--json")
    data = json.loads(outcome.out)
    assert set(CONTRACT) <= set(data)
    assert data == json.loads(json.dumps(make_result(Path("o")).to_json()))
    assert "a library prints to stdout" in outcome.err


def test_the_table_shows_all_three_models_and_where_the_folder_is(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    outcome = command_line("fit", "m", "--out", "o", "--bits", "4.3")
    rows = {line.split("  ")[0]: line.split() for line in outcome.out.splitlines() if line}
    assert rows["size"][-5:] == ["MB", "5.3", "MB", "(36.1%)", "-"]
    assert rows["bits per weight"][-3:] == ["-", "4.298", "4.250"]
    assert rows["perplexity"][-3:] == ["7.500", "7.530", "7.580"]
    assert rows["KL, nats per token"][-3:] == ["0.00000", "0.00210", "0.00430"]
    assert rows["top-1 agreement"][-3:] == ["100.00%", "98.10%", "97.00%"]
    assert rows["decode, tokens/s"][-3:] == ["41.2", "-", "-"]
    assert rows["resident memory"][-4:] == ["612", "MB", "-", "-"]
    assert "relative error" not in outcome.out
    assert "uniform int4-g64:gptq" in outcome.out
    assert "note: calibration text: sampled from the model" in outcome.out
    assert "unavailable: model.layers.0.mlp.up_proj int2-g64:gptq: not finite" in outcome.out
    assert outcome.out.splitlines()[-2:] == ["folder: o", "report: o/report.html"]


def test_a_dry_run_prints_the_price_and_fits_nothing(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    outcome = command_line("fit", "m", "--out", "o", "--bits", "4", "--dry-run")
    assert "2 GB" in outcome.out
    assert "40 MB" in outcome.out
    assert "1:40" in outcome.out
    priced = command_line("fit", "m", "--out", "o", "--bits", "4", "--dry-run", "--json")
    assert json.loads(priced.out)["parts"] == {"capture": 40.0, "build": 60.0}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "give one of --bits, --size, --ratio, or --ram, --speedup"),
        (("--bits", "4", "--ratio", "0.5"), "give one of --bits, --size, --ratio; --ram and"),
        (("--speedup", "0.9"), "a speedup of 0.9 is no speedup"),
        (("--ram", "lots"), "size 'lots'"),
        (("--speedup", "2", "--phase", "sleep"), "'--phase'"),
        (("--speedup", "2", "--plan", "p"), "carries its own limits"),
        (("--bits", "-1"), "not positive"),
        (("--size", "4 parsecs"), "4 parsecs"),
        (("--bits", "4", "--plan", "p"), "--plan decides the size"),
        (("--bits", "4", "--candidates", "int4,,int8"), "is not of the form"),
        (("--bits", "many"), "'--bits'"),
        (("--bits", "4", "--preset", "slow"), "'--preset'"),
        (("--bits", "4", "--threads", "0"), "'--threads'"),
        (("--bitz", "4"), "No such option: --bitz"),
        (("--bits", "4", "extra"), "extra"),
    ],
)
def test_bad_options_are_refused_in_one_line(
    command_line: CommandLine, pipeline: RecordingPipeline, options: tuple[str, ...], reason: str
) -> None:
    assert reason in command_line.refused("fit", "m", "--out", "o", *options)
    assert not pipeline.requests


@pytest.mark.parametrize(
    "missing",
    [("fit", "--bits", "4", "--out", "o"), ("fit", "m", "--bits", "4"), ("fit", "--bits", "4")],
)
def test_missing_arguments_are_named(
    command_line: CommandLine, pipeline: RecordingPipeline, missing: tuple[str, ...]
) -> None:
    assert "Missing" in command_line.refused(*missing)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ModelError("model m: no config.json"), "blockwright: model m: no config.json\n"),
        (OutputError("over\ntwo lines"), "blockwright: over two lines\n"),
        (
            OSError(28, "No space left on device", "x.safetensors"),
            "blockwright: x.safetensors: No space left on device; put it right and repeat\n",
        ),
    ],
)
def test_what_the_user_can_put_right_is_one_line_and_exit_code_2(
    command_line: CommandLine, pipeline: RecordingPipeline, error: Exception, line: str
) -> None:
    pipeline.error = error
    outcome = command_line("fit", "m", "--out", "o", "--bits", "4")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == "a library prints to stdout\n" + line


def test_debug_shows_the_traceback(command_line: CommandLine, pipeline: RecordingPipeline) -> None:
    pipeline.error = ModelError("no config")
    outcome = command_line("--debug", "fit", "m", "--out", "o", "--bits", "4")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.endswith("blockwright: no config\n")


def test_an_interrupt_says_how_to_go_on(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    pipeline.error = KeyboardInterrupt()
    outcome = command_line("fit", "m", "--out", "o", "--bits", "4")
    assert outcome.code == 130
    assert outcome.err.endswith("blockwright: interrupted; the same command resumes\n")


def test_our_own_mistakes_are_not_hidden(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    pipeline.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        command_line("fit", "m", "--out", "o", "--bits", "4")


def test_every_field_of_the_request_has_an_option(
    command_line: CommandLine, pipeline: RecordingPipeline
) -> None:
    help_text = command_line("fit", "--help").out
    for field in fields(FitRequest):
        option = {"budget": "--bits", "model": "model", "speed": "--no-speed"}.get(
            field.name, "--" + field.name.replace("_", "-")
        )
        assert option in help_text


def test_every_option_is_one_of_the_request_or_beside_it() -> None:
    known = {item.name for item in fields(FitRequest)} | options.BESIDE_THE_REQUEST
    parameters = set(inspect.signature(fit).parameters) - {"invocation"}
    assert {options.REQUEST_FIELDS.get(name, name) for name in parameters} <= known


def test_the_pipeline_is_not_imported_for_help(command_line: CommandLine) -> None:
    before = set(sys.modules)
    assert command_line("fit", "--help").code == 0
    assert not {name for name in set(sys.modules) - before if name.startswith("blockwright.")}
