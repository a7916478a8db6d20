"""A virtual environment for each peer, made from its pinned requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blockwright.errors import UserError

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
STAMP = ".made-from"


@dataclass(frozen=True)
class Environment:
    """How a peer is installed and started."""

    name: str
    """Of its requirements file."""
    install_variables: Mapping[str, str] = field(default_factory=dict)
    run_variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"


ENVIRONMENTS = {
    each.name: each
    for each in (
        # Without two workers it refuses to load anything on two cores.
        Environment("gptqmodel", run_variables={"GPTQMODEL_CPU_WORKERS": "2"}),
        Environment("autoround"),
        # Its setup script would build CUDA kernels.
        Environment("hqq", install_variables={"DISABLE_CUDA": "1"}),
    )
}


def made_from(environment: Environment) -> str:
    """Digest of what an environment is made from: its requirements and this Python."""
    hasher = hashlib.sha256(environment.requirements.read_bytes())
    hasher.update(".".join(map(str, sys.version_info[:3])).encode())
    return hasher.hexdigest()


def ensure_environment(environment: Environment, root: Path) -> Path:
    """Python of the peer's environment under ``root``; made if it is missing, unfinished or of
    other requirements.  Raises ``UserError`` when it cannot be installed.
    """
    folder = root / environment.name
    python, stamp = folder / "bin" / "python", folder / STAMP
    digest = made_from(environment)
    if stamp.is_file() and stamp.read_text(encoding="ascii") == digest:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {environment.name} in {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, symlinks=True)
    log = folder / "install.log"
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "-r"]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(
            [*command, str(environment.requirements)],
            env=os.environ | environment.install_variables,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise UserError(
            f"peer {environment.name}: pip could not install {environment.requirements.name}"
            f" ({last_line(log)}); all of it is in {log}; or leave it out of --peers"
        )
    stamp.write_text(digest, encoding="ascii")
    return python


def last_line(log: Path) -> str:
    """What a program said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
