"""The reverse sweep: how much the loss feels a change of each linear's output.

For a linear with outputs y, and g = dL/dy the gradient of the loss summed over all tokens, the
second moment G = E[g g^T] (its diagonal here, mean over tokens) gives the second-order KL of a
change D of the weight,

    KL per token ~ 1/2 tr(G D H D^T) ~ 1/2 sum_o G_oo (D H D^T)_oo,

when L is the cross-entropy of labels *sampled from the model* (the true Fisher; Martens, "New
insights and perspectives on the natural gradient method", JMLR 2020, sections 5 and 9).  It runs
block by block, back to front, from the inputs that the forward sweep has left on disk; memory is
that of one block and one batch.

A model without a language head has no labels: random probes of the last hidden state take their
place, scaled so that the same formula gives the squared relative error of that state.

An expert's sum runs over the tokens routed to it and is divided by all tokens, so that costs of
experts and of what every token passes add up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from blockwright.capture.sweep import inputs_path, linear_sites
from blockwright.stream import (
    ActivationFile,
    Inputs,
    Loss,
    Stem,
    Stream,
    block_gradients,
    head_gradients,
)
from blockwright.types import Site


def gradients_path(folder: Path, index: int) -> Path:
    """Gradient at the inputs of block ``index``; index = number of blocks: at the last outputs."""
    return folder / f"gradients-{index:04d}.bin"


class OutputMoments:
    """Observer of a forward with a graph: sums of squared output gradients by site."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        """[O] fp64, summed over the tokens that reached the site."""

    def start_batch(self) -> None:
        """Nothing is kept between batches but the sums."""

    def __call__(self, site: Site, x_TI: Tensor, output: Tensor) -> None:
        def add(gradient: Tensor) -> None:
            g_TO = gradient.reshape(-1, gradient.shape[-1]).float()
            total_O = g_TO.square().sum(0, dtype=torch.float64)
            self.totals[site.id] = self.totals.get(site.id, 0.0) + total_O

        output.register_hook(add)


def reverse_sweep(
    stream: Stream,
    inputs: Inputs,
    stem: Stem,
    swept: Path,
    folder: Path,
    loss: Loss,
    wanted: Collection[int],
) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Yield (block, site id -> diagonal of G, fp32 [O]) for the ``wanted`` blocks, last one first.

    ``inputs``: the first rows of those the forward sweep left in ``swept``; ``stem``: theirs.
    ``folder`` keeps the gradients; they belong to these inputs and this loss.  Blocks that are not
    wanted and whose gradients are on disk are not even loaded.
    """
    last = gradients_path(folder, stream.blocks[-1] + 1)
    if not stream.file(last, stem).is_complete(inputs.rows):
        hidden = stream.file(inputs_path(swept, stream.blocks[-1] + 1), stem)
        head_gradients(stream, inputs, stem, hidden, loss, last)
    for index in reversed([index for index in stream.blocks if index >= min(wanted)]):
        done = stream.file(gradients_path(folder, index), stem).is_complete(inputs.rows)
        if index not in wanted and done:
            continue
        moments = _block_moments(stream, inputs, stem, swept, folder, index)
        if index in wanted:
            yield index, moments


def _block_moments(
    stream: Stream, inputs: Inputs, stem: Stem, swept: Path, folder: Path, index: int
) -> dict[str, Tensor]:
    observer = OutputMoments()

    def batches(path: Path) -> Iterator[Tensor]:
        return stream.file(path, stem).batches(inputs.rows, inputs.batch_size)

    block_gradients(
        stream,
        index,
        stream.block(index),
        stem,
        batches(inputs_path(swept, index)),
        batches(gradients_path(folder, index + 1)),
        gradients_path(folder, index),
        observer=observer,
        watched=linear_sites(stream, index),
    )
    tokens = inputs.values.numel()
    return {site: (total_O / tokens).float() for site, total_O in observer.totals.items()}


def sampled_label_loss(seed: int) -> Loss:
    """Cross-entropy, summed over tokens, of labels that the model itself draws."""
    generator = torch.Generator().manual_seed(seed)

    def loss(logits_TV: Tensor) -> Tensor:
        log_p_TV = logits_TV.float().log_softmax(-1)
        labels_T = torch.multinomial(log_p_TV.detach().exp(), 1, generator=generator)
        nats: Tensor = -log_p_TV.gather(1, labels_T).sum()
        return nats

    return loss


def probe_loss(seed: int, mean_square: float) -> Loss:
    """sqrt(2 / E|h|^2) v^T h with standard normal v, summed over positions.

    Half the expected square of a change of it is that change's squared relative error.
    ``mean_square``: E|h|^2 of the last hidden states, see ``hidden_mean_square``.
    """
    generator = torch.Generator().manual_seed(seed)

    def loss(hidden_BTH: Tensor) -> Tensor:
        probe = torch.randn(hidden_BTH.shape, generator=generator)
        return (hidden_BTH.float() * probe).sum() * math.sqrt(2 / mean_square)

    return loss


def hidden_mean_square(stream: Stream, inputs: Inputs, stem: Stem, hidden: ActivationFile) -> float:
    """E|h|^2 of the last hidden states, per position."""
    total = positions = 0.0
    for h_BTH in stream.run_head(inputs, stem, hidden):
        total += float(h_BTH.double().square().sum())
        positions += h_BTH[..., 0].numel()
    return total / positions
