"""Runs peers on jobs; a finished job is not run again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.peers.environments import (
    ENVIRONMENTS,
    ensure_environment,
    last_line,
    made_from,
)
from benchmarks.peers.job import ANSWER_FILE, Answer, Job
from blockwright.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT_FOLDER = ROOT / "build" / "peers"
LOG_FILE = "log.txt"


@dataclass(frozen=True)
class Peer:
    """A tool with its settings."""

    environment: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the job."""
    mixed: bool = False
    """Whether it mixes bits to an average instead of using one number everywhere."""


PEERS = {
    "gptqmodel": Peer("gptqmodel"),
    "autoround": Peer("autoround"),
    "hqq": Peer("hqq"),
    "gptqmodel-asym": Peer("gptqmodel", {"symmetric": False}),
    "autoround-asym": Peer("autoround", {"symmetric": False}),
    "autoscheme": Peer("autoround", {"options": (2, 3, 4, 8)}, mixed=True),
}
DEFAULT_PEERS = ("gptqmodel", "autoround", "hqq")


@dataclass(frozen=True)
class PeerRun:
    """A finished job."""

    folder: Path
    answer: Answer


def run_peer(name: str, job: Job, work: Path, content: str) -> PeerRun:
    """Run a peer, or find what it did before.

    ``job.out`` is chosen here; ``content``: digest of model and tokens, whatever their paths.
    Raises ``UserError`` naming the log when the peer fails.
    """
    peer = PEERS[name]
    job = replace(job, **peer.settings)
    folder = work / "jobs" / f"{name}-int{job.bits}-g{job.group_size}-{key_of(peer, job, content)}"
    if not (folder / ANSWER_FILE).is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        start(name, peer, replace(job, out=str(folder.resolve())), folder)
    return PeerRun(folder, Answer.read(folder / ANSWER_FILE))


def key_of(peer: Peer, job: Job, content: str) -> str:
    """Digest of everything that decides a job's outcome."""
    asked = asdict(replace(job, model="", tokens="", out=""))
    environment = ENVIRONMENTS[peer.environment]
    runners = Path(__file__).resolve().parent / "runners"
    sources = [path.read_text(encoding="utf-8") for path in sorted(runners.glob("*.py"))]
    parts = [asked, content, made_from(environment), sources]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def start(name: str, peer: Peer, job: Job, folder: Path) -> None:
    """One process in the peer's environment; its output goes to a log in ``folder``."""
    environment = ENVIRONMENTS[peer.environment]
    python = ensure_environment(environment, ENVIRONMENT_FOLDER)
    job.write(folder / "job.json")
    variables = {
        "OMP_NUM_THREADS": str(job.threads),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        **environment.run_variables,
    }
    module = f"benchmarks.peers.runners.run_{peer.environment}"
    print(f"{name}: int{job.bits}-g{job.group_size}, seed {job.seed}", file=sys.stderr, flush=True)
    with (folder / LOG_FILE).open("w", encoding="utf-8") as log:
        done = subprocess.run(
            [str(python), "-m", module, str((folder / "job.json").resolve())],
            cwd=folder,
            env=os.environ | variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode or not (folder / ANSWER_FILE).is_file():
        log_path = folder / LOG_FILE
        raise UserError(
            f"peer {name} failed on int{job.bits}-g{job.group_size} with exit code"
            f" {done.returncode} ({last_line(log_path)}); all it said is in {log_path};"
            " leave it out of --peers to go on without it"
        )
