"""Documents that a model writes itself, sampled in a fresh process so that this one stays small."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from blockwright.evaluate.fresh import Loading, answers_of

CHILD = "blockwright.evaluate.sampler"
BATCH_DOCUMENTS = 32
"""Documents that are sampled together."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Which documents are sampled; everything here but the model decides the tokens."""

    documents: int
    length: int
    """Tokens of each."""
    start: Sequence[int]
    """Tokens that open a document; empty: a random one."""
    end: int | None
    """The token after which a new document is opened."""
    seed: int

    def batch_rows(self) -> list[int]:
        """Documents of each batch."""
        whole, rest = divmod(self.documents, BATCH_DOCUMENTS)
        return [BATCH_DOCUMENTS] * whole + [rest] * bool(rest)

    def batch_seed(self, index: int) -> int:
        """A seed of its own, so that batches can be made in any order."""
        digest = hashlib.sha256(f"{self.seed}:{index}".encode()).digest()
        return int.from_bytes(digest[:7])


def sample_documents(
    loading: Loading, sampling: Sampling, folder: Path, advance: Callable[[int], None]
) -> Tensor:
    """Ids [documents, length]; finished batches are kept in ``folder`` and not sampled again.

    ``advance`` is told the tokens that were made.  Raises ``ModelError`` when the process fails.
    """
    rows = sampling.batch_rows()
    targets = [folder / f"{index:04d}.safetensors" for index in range(len(rows))]
    missing = []
    for index, target in enumerate(targets):
        if target.exists():
            advance(rows[index] * sampling.length)
        else:
            seed = sampling.batch_seed(index)
            missing.append({"rows": rows[index], "seed": seed, "target": str(target)})
    if missing:
        request = {
            **asdict(loading),
            "folder": str(loading.folder),
            "length": sampling.length,
            "start": list(sampling.start),
            "restart": _restart(sampling),
            "batches": missing,
        }
        failed = f"{loading.folder}: no text could be sampled from it, give --calibration"
        for told in answers_of(CHILD, request, failed):
            advance(told["tokens"])
    return torch.cat([load_file(target)["ids"] for target in targets])


def _restart(sampling: Sampling) -> list[int]:
    """End token and the one that opens the next document, where these differ."""
    one = len(sampling.start) == 1 and sampling.end is not None
    different = one and sampling.start[0] != sampling.end
    return [sampling.end, sampling.start[0]] if different and sampling.end is not None else []
