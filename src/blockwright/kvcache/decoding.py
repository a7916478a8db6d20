"""What decoding with a quantized cache computes, for all tokens of a text in one forward.

Decoded one after another, token t sees key j as it was made while j is among the newest, and
rounded once the page of j is quantized.  So every product of attention is made over both kinds of
keys, and a mask says which of the two each query sees:

    softmax(q [K ; K_hat]^T + [mask & fresh ; mask & paged]) [V ; V_hat]
    paged(t, j)  =  floor(j / G) < floor((t - window) / G)

A torch-function mode stands around the block, so nothing is said about architectures: whatever
calls ``scaled_dot_product_attention`` on a text against itself is such a product.

Shapes:  q [B, H, T, D], keys and values [B, H_kv, T, D] (or repeated for all heads), T tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from blockwright.errors import ModelError
from blockwright.kvcache.build import Formats
from blockwright.kvcache.pages import KINDS
from blockwright.types import CacheFormat


class DecodedAttention(TorchFunctionMode):
    """Attention inside sees keys and values as a cache of this format would hold them.

    Raises ``ModelError`` on leaving where no attention was met.
    """

    def __init__(self, format: CacheFormat, where: str) -> None:
        super().__init__()
        self._format, self._where, self._met = format, where, False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            self._met = True
            return self._attend(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        super().__exit__(exc_type, exc_value, traceback)  # type: ignore[no-untyped-call]
        if exc_type is None and not self._met:
            raise ModelError(
                f"{self._where}: its attention is not PyTorch's, so the KV cache cannot be"
                " quantized in it; leave --kv out"
            )

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        allowed = _allowed(query, key, attn_mask, is_causal)
        paged_TT = paged(key.shape[2], self._format, key.device)
        masks = _joined_masks(allowed, paged_TT)
        return scaled_dot_product_attention(
            query,
            torch.cat([key, self._rounded(key, keys=True)], 2),
            torch.cat([value, self._rounded(value, keys=False)], 2),
            attn_mask=masks,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=enable_gqa,
        )

    def _rounded(self, states_BHTD: Tensor, *, keys: bool) -> Tensor:
        """Whole pages as they are read back; tokens behind them as they are."""
        states_BHTD = states_BHTD.contiguous()
        pages = KINDS[self._format.kind](self._format, states_BHTD, keys=keys)
        whole = states_BHTD.shape[2] // self._format.page * self._format.page
        if not whole:
            return states_BHTD
        pages.append(states_BHTD[:, :, :whole])
        found = states_BHTD.clone()
        pages.read_into(found)
        return found


def decoded(formats: Formats) -> Callable[[int], AbstractContextManager[object]]:
    """What stands around each block, by its index."""

    def around(index: int) -> AbstractContextManager[object]:
        format = formats.get(index)
        return nullcontext() if format is None else DecodedAttention(format, f"block {index}")

    return around


def paged(tokens: int, format: CacheFormat, device: torch.device | str = "cpu") -> Tensor:
    """bool [T, T]: whether query t sees key j rounded."""
    token_T = torch.arange(tokens, device=device)
    done_T = (token_T - format.window).div(format.page, rounding_mode="floor")
    return token_T.div(format.page, rounding_mode="floor")[None, :] < done_T[:, None]


def _allowed(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
    """The mask that was meant, bool or added, [..., T, T]."""
    if query.shape[2] != key.shape[2]:
        raise ModelError("the KV cache is quantized in attention of a text to itself only")
    if mask is not None:
        return mask
    full = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    return full.tril() if is_causal else full


def _joined_masks(allowed: Tensor, paged_TT: Tensor) -> Tensor:
    """[..., T, 2 T]: fresh keys first, then rounded ones."""
    if allowed.dtype == torch.bool:
        return torch.cat([allowed & ~paged_TT, allowed & paged_TT], -1)
    never = float("-inf")
    fresh = allowed.masked_fill(paged_TT, never)
    return torch.cat([fresh, allowed.masked_fill(~paged_TT, never)], -1)
