"""llama.cpp through llama-cpp-python, on a GGUF file written with the ``gguf`` library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from benchmarks.peers.job import SpeedJob
from benchmarks.peers.runners.speed import main

FILE = "model.gguf"
LINEARS = {4: "Q4_0", 8: "Q8_0"}


def prepare(job: SpeedJob) -> None:
    """Write the file.  What it needs is imported here alone: torch would count as memory."""
    from benchmarks.peers.runners.gguf_file import write_gguf  # noqa: PLC0415

    write_gguf(job, Path(job.stored) / FILE)


class LlamaEngine:
    """One context."""

    def __init__(self, job: SpeedJob) -> None:
        self.settings: Mapping[str, Any] = {"linears": LINEARS[job.bits], "tables": "Q8_0"}
        self.versions: Mapping[str, str] = {
            name: version(name) for name in ("llama-cpp-python", "gguf")
        }
        self.llama = llama_cpp.Llama(
            str(Path(job.stored) / FILE),
            n_ctx=len(job.ids) + job.decode_tokens + 1,
            n_batch=max(512, len(job.ids)),
            n_threads=job.threads,
            n_threads_batch=job.threads,
            verbose=False,
        )

    def read(self, ids: Sequence[int]) -> int:
        self.llama.reset()
        return self._run(list(ids))

    def step(self, token: int) -> int:
        return self._run([token])

    def logits(self) -> list[float]:
        values: list[float] = self._last().tolist()
        return values

    def _run(self, ids: list[int]) -> int:
        self.llama.eval(ids)
        return int(self._last().argmax())

    def _last(self) -> np.ndarray[Any, Any]:
        pointer = llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, (self.llama.n_vocab(),))


if __name__ == "__main__":
    main(prepare, LlamaEngine)
