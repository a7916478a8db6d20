"""One block's KV cache: quantized pages of older tokens, and the newest tokens as they are.

    tokens   0 ............... pages * G | ........................ T
             quantized, a page at a time | exact: at least ``window``, fewer than ``window`` + G

A page is quantized once, when ``window`` newer tokens stand behind it.  What is stored depends on
the tokens alone, not on how many came at a time.  An update answers with what was stored before it
and with the new tokens as they are, so a prompt is read exactly, and within the window nothing
differs from the ordinary cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from blockwright.errors import ModelError
from blockwright.kvcache.pages import KINDS, Pages
from blockwright.types import CacheFormat


class QuantizedLayer(DynamicLayer):  # type: ignore[misc]
    """A layer of a transformers ``Cache``; ``keys`` and ``values`` hold the exact tokens."""

    keys: Tensor
    values: Tensor

    def __init__(self, format: CacheFormat) -> None:
        super().__init__()
        self.format = format
        self.pages: dict[str, Pages] = {}
        """Of ``keys`` and of ``values``; empty before the first update."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        kind = KINDS[self.format.kind]
        for name, states in (("keys", key_states), ("values", value_states)):
            setattr(self, name, states[:, :, :0])
            self.pages[name] = kind(self.format, states, keys=name == "keys")

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in new tokens [B, H, T, D]; all tokens, in the dtype of the new ones."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        keys = joined(self.pages["keys"], self.keys, key_states)
        values = joined(self.pages["values"], self.values, value_states)
        self._store(keys=keys, values=values)
        return keys, values

    def _store(self, **all_tokens: Tensor) -> None:
        """Quantize the pages that are old enough; keep the tokens behind them exact."""
        page, start = self.format.page, self.paged_tokens
        for name, states in all_tokens.items():
            old = max(0, states.shape[2] - start - self.format.window) // page * page
            if old:
                self.pages[name].append(states[:, :, start : start + old])
            setattr(self, name, states[:, :, start + old :].clone())

    @property
    def paged_tokens(self) -> int:
        """Tokens that are quantized."""
        return self.pages["keys"].tokens if self.pages else 0

    @property
    def held_tokens(self) -> int:
        """Tokens in pages and exact ones."""
        return self.paged_tokens + self.keys.shape[2] if self.pages else 0

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.held_tokens

    def held_tensors(self) -> list[Tensor]:
        """Everything that takes memory."""
        exact = [self.keys, self.values] if self.pages else []
        return exact + [tensor for pages in self.pages.values() for tensor in pages.held()]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens, given as a negative number.

        Where a page is cut, what is left of it goes back to the exact tokens with its rounded
        values: reading gives what it gave before.
        """
        if tokens_to_remove > 0:
            super().crop(tokens_to_remove)  # refuses
        if tokens_to_remove == 0 or not self.pages:
            return
        left, page = max(0, self.held_tokens + tokens_to_remove), self.format.page
        whole = min(self.paged_tokens, left // page * page)
        for name, pages in self.pages.items():
            exact, start = getattr(self, name), pages.tokens
            if whole < start:
                exact, start = joined(pages, exact)[:, :, whole:], whole
                pages.keep(whole // page)
            setattr(self, name, exact[:, :, : left - start].clone())

    def reset(self) -> None:
        """Forget everything."""
        self.pages = {}
        super().reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take other rows in place of each (beam search)."""
        self._pick(lambda held: held.index_select(0, beam_idx.to(held.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._pick(lambda held: held.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._pick(lambda held: held[indices, ...])

    def _pick(self, rows: Callable[[Tensor], Tensor]) -> None:
        for name, pages in self.pages.items():
            pages.pick(rows)
            setattr(self, name, rows(getattr(self, name)))


class SlidingQuantizedLayer(QuantizedLayer):
    """A layer of which the model sees a window: pages that fell out of it are forgotten.

    The window is longer than what stays exact, so that there are pages before anything is
    forgotten.
    """

    is_sliding = True
    is_croppable = False

    def __init__(self, format: CacheFormat, sliding_window: int) -> None:
        super().__init__(format)
        self.sliding_window = sliding_window
        self.cumulative_length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Take in new tokens; those that the first of them sees, and themselves."""
        visible, _ = self.get_mask_sizes(key_states.shape[2])
        keys, values = super().update(key_states, value_states)
        self.cumulative_length += key_states.shape[2]
        spare = self.held_tokens - (self.sliding_window - 1)
        if spare >= self.format.page:
            for pages in self.pages.values():
                pages.forget(spare // self.format.page)
        return keys[:, :, -visible:], values[:, :, -visible:]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that an update of so many tokens answers with."""
        seen, window = self.cumulative_length, self.sliding_window - 1
        return min(seen, window) + query_length, max(seen - window, 0)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """Tokens that the model sees."""
        return self.sliding_window

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the newest tokens; ``ModelError`` once older ones may be gone."""
        if tokens_to_remove and self.cumulative_length >= self.sliding_window:
            raise ModelError(
                f"a quantized cache that slides over {self.sliding_window} tokens cannot be"
                " cropped once it is full; decode without an assistant, or with an ordinary cache"
            )
        super().crop(tokens_to_remove)
        self.cumulative_length = self.held_tokens


def joined(pages: Pages, *exact: Tensor) -> Tensor:
    """All tokens [B, H, T, D] in fresh memory: those in pages, then the exact ones."""
    like, place = exact[-1], pages.tokens
    tokens = place + sum(states.shape[2] for states in exact)
    whole = like.new_empty((*like.shape[:2], tokens, like.shape[-1]))
    pages.read_into(whole)
    for states in exact:
        whole[:, :, place : place + states.shape[2]] = states
        place += states.shape[2]
    return whole
