"""The way back: gradients of a loss through head and blocks, one at a time, from stored inputs.

Gradients travel as hidden states do: a file per block boundary, read back from disk at every stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from blockwright.stream.activations import ActivationFile, ActivationWriter
from blockwright.stream.executor import Inputs, Stem, Stream
from blockwright.stream.tap import LinearTap, Observer
from blockwright.types import Site

Loss = Callable[[Tensor], Tensor]
"""A scalar of a chunk of head outputs, see ``Stream.run_head``; losses of all chunks add up."""


@torch.enable_grad()
def head_gradients(
    stream: Stream, inputs: Inputs, stem: Stem, hidden: ActivationFile, loss: Loss, target: Path
) -> None:
    """Write dL/dh for the outputs ``hidden`` of the last block to ``target``, [N, T, H]."""
    with ActivationWriter(target) as writer:
        for rows, outputs in stream.watch_head(inputs, stem, hidden):
            (gradient,) = torch.autograd.grad(loss(outputs), rows)
            writer.append(gradient)


@torch.enable_grad()
def block_gradients(
    stream: Stream,
    index: int,
    block: nn.Module,
    stem: Stem,
    inputs: Iterator[Tensor],
    gradients: Iterator[Tensor],
    target: Path,
    *,
    observer: Observer | None = None,
    watched: Sequence[Site] = (),
) -> None:
    """One block backwards: from dL/d(outputs) to dL/d(inputs), both [N, T, H] batch by batch.

    The ``observer`` sees the products of the forward, with a graph: it may ask their outputs for
    gradients.
    """
    block.requires_grad_(False)
    sites = {site.id: site for site in watched}
    parameters = stream.parameters(index, block)
    tap = LinearTap(parameters, sites, observer) if observer else nullcontext()
    with ActivationWriter(target) as writer:
        for calls, hidden, gradient in zip(stem.calls, inputs, gradients, strict=True):
            x_BTH = hidden.to(stream.device).requires_grad_()
            if observer:
                observer.start_batch()
            with tap:
                outputs = calls[index].run(block, x_BTH)
            (found,) = torch.autograd.grad(outputs, x_BTH, gradient.to(stream.device))
            writer.append(found)
