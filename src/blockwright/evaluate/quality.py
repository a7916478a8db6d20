"""Quality of a model on a text, block by block from disk, in fp32, against the original."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from blockwright.stream import ActivationFile, Inputs, Stem, Stream
from blockwright.types import Quality


@dataclass(frozen=True)
class FinalHidden:
    """Outputs of a model's last block for some inputs, on disk."""

    stream: Stream
    inputs: Inputs
    stem: Stem
    file: ActivationFile

    def outputs(self) -> Iterator[Tensor]:
        """Head outputs in chunks, see ``Stream.run_head``."""
        return self.stream.run_head(self.inputs, self.stem, self.file)


def run_to_file(
    stream: Stream, inputs: Inputs, target: Path, advance: Callable[[], object] = lambda: None
) -> FinalHidden:
    """Run all blocks; ``target`` gets the last one's outputs.  A finished file is not computed
    again.  ``advance`` is called after each block.
    """
    scratch = target.with_suffix(".first") if stream.blocks else target
    stem = stream.run_stem(inputs, scratch)
    final = stream.file(target, stem)
    if not final.is_complete(inputs.rows):
        current = scratch
        for position, index in enumerate(stream.blocks):
            last = position == len(stream.blocks) - 1
            following = target if last else target.with_suffix(f".{position % 2}")
            block, source = stream.block(index), stream.file(current, stem)
            batches = source.batches(inputs.rows, inputs.batch_size)
            stream.run_block(index, block, stem, batches, output=following)
            current.unlink()
            current = following
            advance()
    _remove_scratch(target, ".first", ".0", ".1")
    return FinalHidden(stream, inputs, stem, final)


def run_from(
    start: ActivationFile,
    place: int,
    stream: Stream,
    inputs: Inputs,
    stem: Stem,
    target: Path,
    advance: Callable[[], object] = lambda: None,
) -> FinalHidden:
    """``run_to_file`` of the blocks from ``place`` on, when what goes into them is known:
    ``start``, which stays.  ``stem`` is that of a model with the same stem.
    """
    final, current = stream.file(target, stem), start
    is_done = final.is_complete(inputs.rows)
    left = () if is_done else stream.blocks[place:]
    for position, index in enumerate(left):
        last = position == len(left) - 1
        following = target if last else target.with_suffix(f".{position % 2}")
        batches = current.batches(inputs.rows, inputs.batch_size)
        stream.run_block(index, stream.block(index), stem, batches, output=following)
        if current is not start:
            current.path.unlink()
        current = stream.file(following, stem)
        advance()
    _remove_scratch(target, ".0", ".1")
    return FinalHidden(stream, inputs, stem, final if is_done else current)


def _remove_scratch(target: Path, *suffixes: str) -> None:
    """What a killed run may have left beside ``target``, too."""
    for suffix in suffixes:
        target.with_suffix(suffix).unlink(missing_ok=True)


@dataclass
class _Sums:
    """Running sums over positions, float64."""

    positions: int = 0
    nats: float = 0.0
    kl: float = 0.0
    same_top1: int = 0
    squared_error: float = 0.0
    squared_norm: float = 0.0
    cosine: float = 0.0
    labelled: bool = field(default=True)

    def quality(self, against: bool) -> Quality:
        count = max(self.positions, 1)
        if not self.labelled:
            relative = math.sqrt(self.squared_error / max(self.squared_norm, 1e-30))
            return Quality(
                tokens=self.positions, relative_error=relative, cosine=self.cosine / count
            )
        return Quality(
            tokens=self.positions,
            perplexity=math.exp(self.nats / count),
            kl_divergence=self.kl / count if against else None,
            top1_agreement=self.same_top1 / count if against else None,
        )


@torch.no_grad()
def measure(model: FinalHidden, original: FinalHidden | None = None) -> Quality:
    """Perplexity of ``model``; with an original also KL(original || model) and top-1 agreement.

    The last position of every row has no label and is left out of all figures.  Encoders: relative
    error and mean cosine of the last hidden state (an original is needed).
    """
    if model.stream.skeleton.task != "causal-lm":
        return _measure_hidden(model, original or model)
    sums = _Sums()
    labels = next_tokens(model.inputs.values)
    others = original.outputs() if original else None
    start = 0
    for logits in model.outputs():
        other = next(others) if others is not None else None
        target = labels[start : start + len(logits)]
        start += len(logits)
        _add_logits(sums, logits, other, target)
    return sums.quality(original is not None)


def next_tokens(ids_NT: Tensor) -> Tensor:
    """The label of every position over all rows one after another; -1 where there is none."""
    labels = torch.full_like(ids_NT, -1)
    labels[:, :-1] = ids_NT[:, 1:]
    return labels.flatten()


def _add_logits(
    sums: _Sums, logits_TV: Tensor, original_TV: Tensor | None, labels_T: Tensor
) -> None:
    kept = labels_T >= 0
    labels = labels_T[kept]
    log_q = logits_TV[kept].float().log_softmax(-1)
    sums.positions += len(labels)
    sums.nats -= log_q.gather(1, labels[:, None]).double().sum().item()
    if original_TV is not None:
        log_p = original_TV[kept].float().log_softmax(-1)
        sums.same_top1 += int((log_p.argmax(-1) == log_q.argmax(-1)).sum())
        p = log_p.exp()
        sums.kl += p.mul_(log_p.sub_(log_q)).sum(-1).double().sum().item()


def _measure_hidden(model: FinalHidden, original: FinalHidden) -> Quality:
    sums = _Sums(labelled=False)
    for hidden, reference in zip(model.outputs(), original.outputs(), strict=True):
        sums.positions += hidden[..., 0].numel()
        sums.squared_error += (hidden - reference).double().square().sum().item()
        sums.squared_norm += reference.double().square().sum().item()
        cosine = torch.nn.functional.cosine_similarity(hidden, reference, dim=-1)
        sums.cosine += cosine.double().sum().item()
    return sums.quality(True)
