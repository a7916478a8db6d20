"""The fresh process that samples documents from a model (see ``sampled``).

Idea: what a model writes by itself is text of the kind it was trained on, whatever that was; its
activations are those it will have in use.

Paper:   Liu et al., "LLM-QAT: Data-Free Quantization Aware Training for Large Language Models",
         ACL Findings 2024, section 3.1: a first token, then ancestral sampling, not greedy.
Differs from the paper: documents start as the tokenizer starts a text, and only where it starts
         them with nothing at a random token; every token is sampled, there is no greedy beginning.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from blockwright.evaluate.loaded import load

TOLD_STEPS = 8
"""Steps between two reports of progress."""


@torch.inference_mode()
def sample(
    model: Any,
    start_BS: Tensor,
    length: int,
    generator: torch.Generator,
    advance: Callable[[int], None],
    restart: tuple[int, int] | None = None,
) -> Tensor:
    """Ancestral sampling at temperature 1 with a KV cache: ids [B, length], the start included.

    ``restart`` (end, first): after an end token the next document's first token is put.
    """
    ids_BT = following = start_BS
    cache, told = None, 0
    while ids_BT.shape[1] < length:
        outputs = model(input_ids=following, past_key_values=cache, use_cache=True)
        cache = outputs.past_key_values
        probabilities_BV = outputs.logits[:, -1].float().softmax(-1).cpu()
        drawn = torch.multinomial(probabilities_BV, 1, generator=generator).to(ids_BT.device)
        if restart is not None:
            drawn = torch.where(ids_BT[:, -1:] == restart[0], restart[1], drawn)
        following = drawn
        ids_BT = torch.cat([ids_BT, drawn], dim=1)
        if ids_BT.shape[1] - told >= TOLD_STEPS or ids_BT.shape[1] == length:
            advance(len(ids_BT) * (ids_BT.shape[1] - told))
            told = ids_BT.shape[1]
    return ids_BT[:, :length]


def first_tokens(
    start: list[int], rows: int, vocabulary: int, generator: torch.Generator
) -> Tensor:
    """What documents start with [B, S]: the tokenizer's start, or else one random token."""
    if start:
        return torch.tensor([start] * rows)
    return torch.randint(vocabulary, (rows, 1), generator=generator)


def main() -> None:
    """Sample the batches that are asked for; one JSON line per few steps with the tokens done."""
    request = json.load(sys.stdin)
    torch.set_num_threads(request["threads"])
    with redirect_stdout(sys.stderr):
        model = load(request, "auto").to(request["device"])
    vocabulary = int(model.config.get_text_config().vocab_size)
    restart = tuple(request["restart"]) if request["restart"] else None

    def advance(tokens: int) -> None:
        print(json.dumps({"tokens": tokens}), flush=True)

    advance(0)
    for batch in request["batches"]:
        generator = torch.Generator().manual_seed(batch["seed"])
        start = first_tokens(request["start"], batch["rows"], vocabulary, generator)
        start = start.to(request["device"])
        ids = sample(model, start, request["length"], generator, advance, restart)
        target = Path(batch["target"])
        partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
        save_file({"ids": ids.cpu().contiguous()}, partial)
        partial.replace(target)


if __name__ == "__main__":
    main()
