"""What a run of healing needs to go on after it was killed: one file, written whole or not at all.

moved/<name>            what is trained, as the optimizer moves it
optimizer/<name>        its states
best/<name>             the same at the best check so far
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from blockwright.checkpoint import write_bytes_atomic

STATE_FILE = "state.safetensors"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run is."""

    step: int = 0
    start_loss: float = 0.0
    """On the selection text, as all of them."""
    best_loss: float = 0.0
    best_step: int = 0
    rollbacks: int = 0
    losses: tuple[tuple[int, float], ...] = ()
    """Step and loss of every check."""


@dataclass(frozen=True, kw_only=True)
class State:
    """A run at a moment."""

    progress: Progress
    moved: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    best: Mapping[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Replace the folder's state."""
        tensors = {f"moved/{name}": tensor for name, tensor in self.moved.items()}
        tensors |= {f"optimizer/{name}": tensor for name, tensor in self.optimizer.items()}
        tensors |= {f"best/{name}": tensor for name, tensor in self.best.items()}
        data = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(asdict(self.progress))
        write_bytes_atomic(folder / STATE_FILE, save(data, {"progress": text}))

    @classmethod
    def read(cls, folder: Path) -> State | None:
        """The folder's state; None where there is none that can be read."""
        path = folder / STATE_FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                held = json.loads(file.metadata()["progress"])
        except (SafetensorError, KeyError, TypeError, ValueError):
            return None
        parts: dict[str, dict[str, Tensor]] = {"moved": {}, "optimizer": {}, "best": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            parts[part][rest] = tensor
        losses = tuple((int(step), float(loss)) for step, loss in held["losses"])
        return cls(progress=replace(Progress(**held), losses=losses), **parts)
