"""Blocks by their share of the loss, and by what dropping them costs."""

from __future__ import annotations

from collections.abc import Sequence

from blockwright.report.drawing import BOTTOM, LEFT, RIGHT, TOP, Bar, Chart, Size, plain
from blockwright.report.scales import Scale, Tick
from blockwright.report.wording import share, small
from blockwright.types.report import BlockImportance, Report

FLAT_WIDE, FLAT_NARROW = Size(760, 220, 16), Size(340, 190, 8)


def share_charts(report: Report, size: Size) -> list[Chart]:
    """Shares of the predicted loss: bars are this plan's, lines the uniform plan's."""
    blocks = report.importance
    if not any(block.share or block.uniform_share for block in blocks):
        return []
    levels = [block.uniform_share for block in blocks]
    titles = [_share_title(block) for block in blocks]
    bars = [block.share for block in blocks]
    return [_block_chart(blocks, bars, levels, titles, size, "share of predicted loss")]


def drop_charts(report: Report, size: Size) -> list[Chart]:
    """The loss of the model without each block."""
    blocks = report.importance
    if not any(block.drop_loss for block in blocks):
        return []
    losses = [block.drop_loss or 0.0 for block in blocks]
    titles = [f"without block {block.block}: KL {small(block.drop_loss)}" for block in blocks]
    label = "KL without the block, nats per token"
    return [_block_chart(blocks, losses, [None] * len(blocks), titles, size, label)]


def _share_title(block: BlockImportance) -> str:
    own = f"block {block.block}: {share(block.share)} of this plan's predicted loss"
    rival = f", {share(block.uniform_share)} of the uniform plan's"
    return own if block.uniform_share is None else own + rival


def _block_chart(
    blocks: Sequence[BlockImportance],
    values: Sequence[float],
    levels: Sequence[float | None],
    titles: Sequence[str],
    size: Size,
    y_label: str,
) -> Chart:
    """A bar for each value, a line across it for each level."""
    highest = max([*values, *(level for level in levels if level is not None)])
    y = Scale(0.0, highest * 1.08, size.height - BOTTOM, TOP)
    slot = (size.width - LEFT - RIGHT) / len(blocks)
    width = round(min(0.72 * slot, 44.0), 1)
    half = width / 2 + min(3.0, 0.12 * slot)
    middles = [LEFT + (index + 0.5) * slot for index in range(len(blocks))]
    bars = [
        Bar(round(at - width / 2, 1), y(value), width, round(y(0.0) - y(value), 1), title)
        for at, value, title in zip(middles, values, titles, strict=True)
    ]
    lines = [
        ("level", f"M{at - half:.1f} {y(level)}H{at + half:.1f}")
        for at, level in zip(middles, levels, strict=True)
        if level is not None
    ]
    every = max(1, -(-len(blocks) // size.ticks))
    named = list(zip(middles, blocks, strict=True))[::every]
    shares = "share" in y_label
    return Chart(
        size=size,
        description=f"{y_label} by block, {len(blocks)} blocks; the figures are in the table",
        x_label="block",
        y_label=y_label,
        x_ticks=tuple(Tick(round(at, 1), str(block.block)) for at, block in named),
        y_ticks=y.ticks(5, (lambda v: share(v).replace(".0%", "%")) if shares else plain),
        bars=tuple(bars),
        lines=tuple(lines),
    )
