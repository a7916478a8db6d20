"""A virtual environment for each peer, made from its pinned requirements."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from blockwright.errors import UserError

REQUIREMENTS = Path(__file__).resolve().parent / "requirements"
STAMP = ".made-from"


class PeerError(UserError):
    """A peer that cannot be installed or cannot do the job."""

    def __init__(self, reason: str, log: Path) -> None:
        super().__init__(f"{reason}; all it said is in {log}; or leave it out")
        self.reason, self.log = reason, log


def failed(error: UserError) -> dict[str, str]:
    """What a row says instead of figures."""
    if isinstance(error, PeerError):
        return {"error": error.reason, "log": str(error.log)}
    return {"error": str(error)}


@dataclass(frozen=True)
class Environment:
    """How a peer is installed and started."""

    name: str
    """Of its requirements file."""
    shares: str | None = None
    """Environment whose packages it sees behind its own: most of the bytes are torch's."""
    install_variables: Mapping[str, str] = field(default_factory=dict)
    run_variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"


SHARED = "torch"
ENVIRONMENTS = {
    each.name: each
    for each in (
        Environment(SHARED),
        # Without two workers it refuses to load anything on two cores.
        Environment("gptqmodel", run_variables={"GPTQMODEL_CPU_WORKERS": "2"}),
        Environment("autoround", SHARED),
        # Its setup script would build CUDA kernels.
        Environment("hqq", SHARED, install_variables={"DISABLE_CUDA": "1"}),
        Environment("llmcompressor", SHARED),
        Environment("torchao", SHARED),
        Environment("quanto", SHARED),
        # Its torchvision has no CPU build, and nothing here looks at pictures.
        Environment("openvino", SHARED, install_variables={"PIP_NO_DEPS": "1"}),
        # Compiled on this machine, for its processor.
        Environment("llamacpp", SHARED, install_variables={"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}),
    )
}


def made_from(environment: Environment) -> str:
    """Digest of what an environment is made from: its requirements, those that it shares, and this
    Python.
    """
    hasher = hashlib.sha256(environment.requirements.read_bytes())
    hasher.update(".".join(map(str, sys.version_info[:3])).encode())
    if environment.shares:
        hasher.update(made_from(ENVIRONMENTS[environment.shares]).encode())
    return hasher.hexdigest()


def ensure_environment(environment: Environment, root: Path) -> Path:
    """Python of the peer's environment under ``root``; made if it is missing, unfinished or of
    other requirements.  Raises ``UserError`` when it cannot be installed.
    """
    if environment.shares:
        ensure_environment(ENVIRONMENTS[environment.shares], root)
    folder = root / environment.name
    python, stamp = folder / "bin" / "python", folder / STAMP
    digest = made_from(environment)
    if stamp.is_file() and stamp.read_text(encoding="ascii") == digest:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    print(f"installing {environment.name} in {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, symlinks=True)
    if environment.shares:
        see_packages(folder, root / environment.shares)
    install(environment, python, folder / "install.log")
    stamp.write_text(digest, encoding="ascii")
    return python


def see_packages(folder: Path, shared: Path) -> None:
    """Let one environment find the packages of another, behind its own."""
    packages = packages_of(folder)
    packages.mkdir(parents=True, exist_ok=True)
    (packages / "shared.pth").write_text(f"{packages_of(shared)}\n", encoding="utf-8")


def packages_of(folder: Path) -> Path:
    """Where an environment's packages are."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(folder.resolve())}))


def install(environment: Environment, python: Path, log: Path) -> None:
    """Run pip; what it says goes to ``log``."""
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
        raise PeerError(
            f"{environment.name}: pip could not install {environment.requirements.name}"
            f" ({last_line(log)})",
            log,
        )


def last_line(log: Path) -> str:
    """What a program said last."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
