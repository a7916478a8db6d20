"""A transformers model as an engine, whatever its linears are."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class TorchEngine:
    """Eager, with the model's own cache."""

    def __init__(self, model: Any, settings: Mapping[str, Any], versions: Mapping[str, str]):
        self.model, self.settings, self.versions = model, settings, versions
        takes_last = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.options = {"use_cache": True} | ({"logits_to_keep": 1} if takes_last else {})
        self.outputs: Any = None

    def read(self, ids: Sequence[int]) -> int:
        self.outputs = None
        return self._run(list(ids), None)

    def step(self, token: int) -> int:
        return self._run([token], self.outputs.past_key_values)

    def logits(self) -> list[float]:
        return self._last().float().tolist()

    @torch.inference_mode()
    def _run(self, ids: list[int], cache: Any) -> int:
        self.outputs = self.model(
            input_ids=torch.tensor([ids]), past_key_values=cache, **self.options
        )
        return int(self._last().argmax())

    def _last(self) -> Tensor:
        logits_V: Tensor = self.outputs.logits[0, -1]
        return logits_V
