"""Decoding and prefill on this machine: peers, our folders and plain bf16, in turn, each time in a
fresh process; the least of each counts.

Everybody runs the same model: block linears in 4 or 8 bits, tables in 8 where the peer can.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path
from typing import Any

from benchmarks.models import uniform_folder
from benchmarks.peers.environments import (
    ENVIRONMENTS,
    PeerError,
    ensure_environment,
    failed,
    last_line,
    made_from,
)
from benchmarks.peers.job import SpeedAnswer, SpeedJob
from benchmarks.peers.running import (
    ENVIRONMENT_FOLDER,
    digest,
    run_logged,
    runner_sources,
    variables_of,
)
from blockwright.checkpoint import Checkpoint
from blockwright.errors import UserError
from blockwright.numerics.native import SWITCH

BASELINE = "bf16"
GROUP_SIZE = 128
PROMPT_TOKENS, DECODE_TOKENS = 128, 32
DONE_FILE = "prepared"
BUILD = ("kernels", "--build")
SAME_MODEL = 0.8
"""Largest ``logits_difference`` from bf16; logits of another model differ by 1.4."""
BOUNDS = {"llamacpp": 0.9, "torch": 1.0}
"""Least tokens per second of our int4, decoding, over llama.cpp's Q4_0 and over the fastest peer
made of PyTorch.
"""


@dataclass(frozen=True)
class Contender:
    """One way to run the model."""

    bits: int
    environment: str | None = None
    """None: this Python, on a folder of ours or on the original."""
    torch: bool = False
    """Whether it is made of PyTorch."""
    format: str = ""
    """Of our block linears."""
    native: bool = False
    """Whether ours are multiplied by the kernel that ``blockwright kernels --build`` compiles."""


CONTENDERS = {
    BASELINE: Contender(16),
    "ours-int4": Contender(4, format=f"int4-g{GROUP_SIZE}"),
    "ours-int8": Contender(8, format="int8"),
    "ours-int4-native": Contender(4, format=f"int4-g{GROUP_SIZE}", native=True),
    "ours-int8-native": Contender(8, format="int8", native=True),
    "llamacpp-q4_0": Contender(4, "llamacpp"),
    "llamacpp-q8_0": Contender(8, "llamacpp"),
    "openvino-int4": Contender(4, "openvino"),
    "openvino-int8": Contender(8, "openvino"),
    "torchao-int4": Contender(4, "torchao", torch=True),
    "torchao-int8": Contender(8, "torchao", torch=True),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """What is compared."""

    work: Path
    model: Path
    names: Sequence[str]
    rounds: int
    threads: int
    prompt_tokens: int = PROMPT_TOKENS
    decode_tokens: int = DECODE_TOKENS


def run(setting: Setting) -> Row:
    """A row for every contender, the ones that failed with their error, and ratios."""
    errors: dict[str, Row] = {}
    jobs: dict[str, SpeedJob] = {}
    fingerprint = fingerprint_of(setting.model)
    names = [BASELINE, *(name for name in setting.names if name != BASELINE)]
    for name in names:
        try:
            jobs[name] = prepare(setting, name, fingerprint)
        except UserError as error:
            errors[name] = failed(error)
    answers: dict[str, list[SpeedAnswer]] = {name: [] for name in jobs}
    for _ in range(setting.rounds):
        for name in [name for name in jobs if name not in errors]:
            try:
                answers[name].append(measure(setting, name, jobs[name]))
            except UserError as error:
                errors[name] = failed(error)
    if BASELINE in errors:
        raise UserError(errors[BASELINE]["error"])
    rows = rows_of(names, answers, errors)
    return {
        "model": str(setting.model),
        "prompt_tokens": setting.prompt_tokens,
        "decode_tokens": setting.decode_tokens,
        "rounds": setting.rounds,
        "threads": setting.threads,
        "rows": rows,
        "ratios": ratios(rows),
    }


def fingerprint_of(model: Path) -> str:
    """Digest of the config and all tensors."""
    checkpoint = Checkpoint.open(model)
    tensors = {name: checkpoint.finite_digest(name) for name in checkpoint.names}
    return digest([(model / "config.json").read_text(encoding="utf-8"), tensors])


def prepare(setting: Setting, name: str, fingerprint: str) -> SpeedJob:
    """The contender's files; what is there is not made again.  ``UserError`` when it fails."""
    contender = CONTENDERS[name]
    made = made_from(ENVIRONMENTS[contender.environment]) if contender.environment else ""
    work = setting.work / "decode"
    sources = runner_sources(contender.environment)
    folder = work / f"{name}-{digest([fingerprint, made, sources])}"
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((setting.model / "config.json").read_text(encoding="utf-8"))
    job = SpeedJob(
        model=str(setting.model.resolve()),
        stored=str(folder.resolve() if contender.environment else setting.model.resolve()),
        out=str((folder / "answer.json").resolve()),
        bits=contender.bits,
        group_size=GROUP_SIZE,
        ids=prompt(config["vocab_size"], setting.prompt_tokens),
        decode_tokens=setting.decode_tokens,
        threads=setting.threads,
    )
    if contender.format:
        stored = work / f"{contender.format}-{fingerprint}"
        uniform_folder(setting.model, contender.format, stored)
        if contender.native:
            run_phase(name, "build", [sys.executable, "-m", "blockwright", *BUILD], job, folder)
        return replace(job, stored=str(stored.resolve()))
    if contender.environment and not (folder / DONE_FILE).is_file():
        call(name, "prepare", job, folder)
        (folder / DONE_FILE).touch()
    return job


def prompt(vocabulary: int, tokens: int) -> tuple[int, ...]:
    """Random token numbers: what is read does not matter here."""
    return tuple(random.Random(1).choices(range(vocabulary), k=tokens))


def measure(setting: Setting, name: str, job: SpeedJob) -> SpeedAnswer:
    """One fresh process."""
    out = Path(job.out)
    out.unlink(missing_ok=True)
    call(name, "measure", job, out.parent)
    answer = SpeedAnswer.read(out)
    figures = f"decode {1 / answer.decode_seconds:.2f} tokens/s"
    print(f"{name}: {figures}", file=sys.stderr, flush=True)
    return answer


def call(name: str, phase: str, job: SpeedJob, folder: Path) -> None:
    """Run a phase in the contender's Python."""
    environment = CONTENDERS[name].environment
    module = "benchmarks.peers.folder_speed"
    python = Path(sys.executable)
    if environment:
        module = f"benchmarks.peers.runners.decode_{environment}"
        python = ensure_environment(ENVIRONMENTS[environment], ENVIRONMENT_FOLDER)
    path = folder / "job.json"
    job.write(path)
    run_phase(name, phase, [str(python), "-m", module, phase, str(path.resolve())], job, folder)


def run_phase(name: str, phase: str, command: list[str], job: SpeedJob, folder: Path) -> None:
    """``UserError`` with the last line said when the command fails."""
    contender = CONTENDERS[name]
    variables = variables_of(contender.environment, job.threads)
    if not contender.environment:
        kernels = {"XDG_CACHE_HOME": str(folder.resolve())} if contender.native else {SWITCH: "0"}
        variables |= kernels
    code, _ = run_logged(command, folder, variables, log=f"{phase}.txt")
    if code:
        said = folder / f"{phase}.txt"
        raise PeerError(f"{name} failed to {phase} with exit code {code} ({last_line(said)})", said)


def rows_of(
    names: Sequence[str], answers: dict[str, list[SpeedAnswer]], errors: dict[str, Row]
) -> list[Row]:
    """Least times and memory of each; ratios of tokens per second and of memory to the baseline."""
    base = answers[BASELINE]
    rows = []
    for name in names:
        row: Row = {"who": name, "bits": CONTENDERS[name].bits}
        if name in errors:
            rows.append(row | errors[name])
            continue
        found = answers[name]
        row |= {
            "decode_ratio": least(base, "decode_seconds") / least(found, "decode_seconds"),
            "prefill_ratio": least(base, "prefill_seconds") / least(found, "prefill_seconds"),
            "resident_ratio": least(found, "resident_bytes") / least(base, "resident_bytes"),
            "decode_tokens_per_second": 1 / least(found, "decode_seconds"),
            "prefill_seconds": least(found, "prefill_seconds"),
            "resident_bytes": least(found, "resident_bytes"),
            "library_bytes": least(found, "library_bytes"),
            "decode_seconds_by_round": [answer.decode_seconds for answer in found],
            "logits_difference": difference(found[0].logits, base[0].logits),
            "settings": found[0].settings,
            "versions": found[0].versions,
        }
        rows.append(checked(row))
    return rows


def checked(row: Row) -> Row:
    """The row, or an error in place of its figures where it is another model that was timed."""
    if row["logits_difference"] <= SAME_MODEL:
        return row
    error = f"{row['who']} computes something else: logits differ by {row['logits_difference']:.2f}"
    return {"who": row["who"], "bits": row["bits"], "error": error}


def least(answers: Sequence[SpeedAnswer], figure: str) -> float:
    """Over all rounds."""
    return min(float(getattr(answer, figure)) for answer in answers)


def difference(logits: Sequence[float], reference: Sequence[float]) -> float:
    """||logits - reference|| / ||reference||: small where both run the same model."""
    squares = sum((a - b) ** 2 for a, b in zip(logits, reference, strict=True))
    return sqrt(squares / sum(b**2 for b in reference))


def ratios(rows: Sequence[Row]) -> list[Row]:
    """Our tokens per second over each rival's with as many bits, and the fastest of PyTorch's."""
    timed = {row["who"]: row for row in rows if "error" not in row}
    found = []
    for who, ours in timed.items():
        if not CONTENDERS[who].format:
            continue
        rivals = [
            name
            for name in timed
            if CONTENDERS[name].environment and CONTENDERS[name].bits == ours["bits"]
        ]
        found += [ratio(ours, timed[name], name) for name in rivals]
        torch = [name for name in rivals if CONTENDERS[name].torch]
        if torch and ours["bits"] == 4:
            fastest = max(torch, key=lambda name: float(timed[name]["decode_ratio"]))
            bound = BOUNDS["torch"]
            found.append(ratio(ours, timed[fastest], "the fastest of PyTorch") | {"bound": bound})
    return found


def ratio(ours: Row, rival: Row, name: str) -> Row:
    """Decoding and prefill in tokens per second, memory in bytes."""
    bounded = ours["bits"] == 4 and name.startswith("llamacpp")
    return {
        "who": ours["who"],
        "rival": name,
        "decode": ours["decode_ratio"] / rival["decode_ratio"],
        "prefill": ours["prefill_ratio"] / rival["prefill_ratio"],
        "resident": ours["resident_ratio"] / rival["resident_ratio"],
        "bound": BOUNDS["llamacpp"] if bounded else None,
    }
