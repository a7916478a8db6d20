"""Channels of FFNs by what they carry, and how many of them every block keeps.

Paper:   Wang, Ma, Wang, et al., "CFSP: An Efficient Structured Pruning Framework for LLMs with
         Coarse-to-Fine Activation Information", COLING 2025.
Idea:    A block that turns its tokens far does much, and keeps more channels; inside a block those
         stay that are active and stand out among the weights on the same coordinates of the
         residual stream.  One forward gives both.  First and last blocks are protected in part
         only; a plan over measured losses allots better.

Equations -> code
    I_b = mean arccos cos(x_in, x_out) / pi                    turning
    keep_b = share z_b / mean z, z = sigmoid((I - mean I) t)    widths
    s_j = n_j mean(n_j |Wd_:j| / sum, |Wu_j:| / sum, |Wg_j:| / sum)      channel_scores
Shapes:  T tokens, D hidden features, F channels.
Differs from the paper:
    1. t = 1 / std(I): the released code's scale grows with the number of calibration tokens.
    2. Weights are divided by their sums over channels, so that a channel's share of a coordinate
       counts.  The released code sums along the axis that it averages afterwards, where weights
       cancel and s_j = n_j is left: ``relative=False``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

HEADROOM = 1.05
"""No block keeps all of its channels: the largest share stays this far below 1, as a factor."""


def turning(x_TD: Tensor, y_TD: Tensor) -> float:
    """Mean angle between a block's inputs and outputs, in half turns: 0 to 1."""
    cosine_T = torch.nn.functional.cosine_similarity(x_TD.double(), y_TD.double(), dim=-1)
    return float(cosine_T.clamp(-1, 1).arccos().mean()) / torch.pi


def widths(importance: Sequence[float], share: float, channels: int, multiple: int) -> list[int]:
    """Channels that every block keeps, whole multiples; together ``share`` of all, to a multiple.

    Raises ``ValueError`` for a share outside 0 and 1, or channels that are no whole multiples.
    """
    if not 0 < share < 1 or channels % multiple:
        raise ValueError(f"a share of {share:g} of {channels} channels in steps of {multiple}")
    kept = _shares(torch.tensor(importance, dtype=torch.float64), share) * (channels // multiple)
    whole = kept.floor().clamp(1, channels // multiple)
    missing = round(share * len(importance) * (channels // multiple)) - int(whole.sum())
    by_rest = torch.sort(kept - whole, descending=missing > 0, stable=True).indices
    for block in by_rest[: abs(missing)].tolist():
        whole[block] += 1 if missing > 0 else -1
    return [int(units) * multiple for units in whole.tolist()]


def channel_scores(
    writer_DF: Tensor, readers: Sequence[Tensor], rms_F: Tensor, *, relative: bool = True
) -> Tensor:
    """s_j of every channel, [F]; ``readers`` [F, D] make them, ``rms_F`` is how large they are."""
    if not relative:
        return rms_F
    parts = [_mean_share(writer_DF.abs() * rms_F)]
    parts += [_mean_share(reader.abs().T) for reader in readers]
    return rms_F * torch.stack(parts).mean(0)


def largest_channels(score_I: Tensor, count: int, columns: int = 1) -> tuple[Tensor, Tensor]:
    """The channels of largest score, int64 [K] rising, and their columns [K columns]; a channel's
    score is the sum over its ``columns``, which stand side by side.
    """
    score_C = score_I.unflatten(0, (-1, columns)).sum(1)
    kept_K = score_C.sort(descending=True, stable=True).indices[:count].sort().values
    place = torch.arange(columns, device=score_I.device)
    return kept_K, (kept_K[:, None] * columns + place).flatten()


def _shares(importance_B: Tensor, share: float) -> Tensor:
    """keep_b, mean ``share``, none of 1 or more."""
    spread = float(importance_B.std(correction=0)) or 1.0
    z_B = ((importance_B - importance_B.mean()) / spread).sigmoid()
    mean, over = z_B.mean(), z_B.max() - z_B.mean()
    if share * z_B.max() >= mean:
        z_B = mean + (z_B - mean) * (mean * (1 / share - 1) / (HEADROOM * over))
    return share * z_B / mean


def _mean_share(size_DF: Tensor) -> Tensor:
    """Mean over coordinates of each channel's share, [F]."""
    return (size_DF / size_DF.sum(1, keepdim=True).clamp(min=1e-30)).mean(0)
