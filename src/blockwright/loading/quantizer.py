"""The transformers quantizer: ``AutoModel*.from_pretrained`` of a fitted folder gives packed
modules.

Loading is loud.  Every replaced parameter's own name stands in the folder at another shape, so that
transformers without Blockwright raises instead of running on random weights.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from blockwright.attention.huggingface import use_attention
from blockwright.attention.one_query import use_grouped_queries
from blockwright.errors import FormatError
from blockwright.loading.install import (
    install_parts,
    install_sites,
    packed_modules,
    place_heads,
    sentinels,
)

QUANT_METHOD = "blockwright"
CONFIG_VERSION = 3
"""2: parts are left out; 3: blocks have attention policies."""


class BlockwrightConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """What ``config.json`` of a fitted folder holds under ``quantization_config``."""

    def __init__(
        self,
        sites: Mapping[str, Mapping[str, Any]] | None = None,
        version: int = 1,
        cache: Mapping[str, Mapping[str, Any]] | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
        attention: Mapping[str, Mapping[str, Any]] | None = None,
        **rest: Any,
    ) -> None:
        """``sites``: site id -> format spec; ``cache``: layer -> spec of its KV cache, which
        ``generate`` of Blockwright uses by default; ``parts``: part id -> its format and what
        stands for its modules; ``attention``: layer -> spec of its attention policy.
        """
        if version > CONFIG_VERSION:
            raise FormatError(
                f"this folder has config version {version}, this Blockwright reads up to"
                f" {CONFIG_VERSION}; upgrade Blockwright"
            )
        self.quant_method = QUANT_METHOD
        self.version = version
        self.sites = dict(sites or {})
        self.cache = dict(cache or {})
        self.parts = dict(parts or {})
        self.attention = dict(attention or {})

    def to_dict(self) -> dict[str, Any]:
        held = {"cache": self.cache} if self.cache else {}
        held |= {"parts": self.parts} if self.parts else {}
        held |= {"attention": self.attention} if self.attention else {}
        return {
            "quant_method": QUANT_METHOD,
            "version": self.version,
            "sites": self.sites,
            **held,
        }


class BlockwrightQuantizer(HfQuantizer):  # type: ignore[misc]
    """Puts empty packed modules in place before the weights are read, and readies their kernels
    after.
    """

    requires_calibration = True
    is_trainable = False
    is_qat_trainable = False

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        install_parts(model, self.quantization_config.parts)
        names = install_sites(model, self.quantization_config.sites)
        place_heads(model, self.quantization_config.parts)
        # The other implementations multiply with the whole stack of experts at once.
        model.set_experts_implementation("eager")
        ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
        exact = {f"^{re.escape(name)}$" for name in names}
        model._keys_to_ignore_on_load_unexpected = {*ignored, *exact}
        return model

    def update_weight_conversions(
        self, weight_conversions: list[Any], model: nn.Module
    ) -> list[Any]:
        """None: a fitted folder holds tensors under the model's own names."""
        return []

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for module in packed_modules(model):
            module.prepare()
        leave_mapping(model)
        use_attention(model, None)
        use_grouped_queries(model)
        return model

    def get_state_dict_and_metadata(
        self, model: nn.Module
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        state = model.state_dict()
        empty = torch.empty(0, dtype=torch.uint8)
        state |= {name: empty.clone() for name in sentinels(model, self.quantization_config.sites)}
        return state, {}


def leave_mapping(model: nn.Module) -> None:
    """Copy what still lies in the mapped file, tensor by tensor.

    One such tensor keeps the whole file mapped, and the packed tensors that were read from it and
    are no longer needed stay resident with it.  Memory that loading freed goes back to the system.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "cpu":
                module._buffers[name] = buffer.clone()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def register() -> None:
    """Make transformers know the quantization method ``blockwright``; harmless when repeated."""
    from transformers.quantizers import auto  # noqa: PLC0415

    if QUANT_METHOD not in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        register_quantization_config(QUANT_METHOD)(BlockwrightConfig)
        register_quantizer(QUANT_METHOD)(BlockwrightQuantizer)
