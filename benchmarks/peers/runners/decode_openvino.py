"""OpenVINO with weights rounded by NNCF: symmetric int4 groups, or int8 rows; tables are int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from benchmarks.peers.job import SpeedJob
from benchmarks.peers.runners.speed import main

FILE = "openvino_model.xml"


def prepare(job: SpeedJob) -> None:
    """Convert the model with a cache inside, round its weights, save it."""
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig  # noqa: PLC0415

    options = {"sym": True, "group_size": job.group_size, "ratio": 1.0} if job.bits == 4 else {}
    model = OVModelForCausalLM.from_pretrained(
        job.model,
        export=True,
        compile=False,
        quantization_config=OVWeightQuantizationConfig(bits=job.bits, **options),
    )
    model.save_pretrained(job.stored)


class OpenVinoEngine:
    """One request on the CPU."""

    def __init__(self, job: SpeedJob) -> None:
        self.settings: Mapping[str, Any] = {"bits": job.bits, "group_size": job.group_size}
        self.versions: Mapping[str, str] = {
            name: version(name) for name in ("openvino", "nncf", "optimum-intel")
        }
        options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": job.threads}
        compiled = openvino.Core().compile_model(Path(job.stored) / FILE, "CPU", options)
        self.request = compiled.create_infer_request()
        self.names = {name for port in compiled.inputs for name in port.names}
        self.length = 0
        self.logits_V: np.ndarray[Any, Any] = np.empty(0)

    def read(self, ids: Sequence[int]) -> int:
        self.request.reset_state()
        self.length = 0
        return self._run(list(ids))

    def step(self, token: int) -> int:
        return self._run([token])

    def logits(self) -> list[float]:
        return list(map(float, self.logits_V))

    def _run(self, ids: list[int]) -> int:
        began, self.length = self.length, self.length + len(ids)
        inputs = {
            "input_ids": np.array([ids], np.int64),
            "attention_mask": np.ones((1, self.length), np.int64),
            "position_ids": np.arange(began, self.length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        found = self.request.infer({n: v for n, v in inputs.items() if n in self.names})
        self.logits_V = found["logits"][0, -1]
        return int(self.logits_V.argmax())


if __name__ == "__main__":
    main(prepare, OpenVinoEngine)
