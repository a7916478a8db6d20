"""Presets: which candidates are on offer, and how much calibration text they see."""

from __future__ import annotations

from blockwright.tuning import TuningSettings
from blockwright.types import Candidate, Preset

FEW_BITS, MORE_BITS = ("int2", "int3", "int4"), ("int5", "int6")
"""Where QuantEase gains, and where GPTQ leaves little to gain."""
INTEGERS = tuple(
    (bits, method)
    for some, method in ((FEW_BITS, "quantease"), (MORE_BITS, "gptq"))
    for bits in some
)

CANDIDATES: dict[Preset, tuple[str, ...]] = {
    Preset.FAST: ("int3-g64:gptq", "int4-g128:gptq", "int4-g64:gptq", "int5-g128:rtn", "int8:rtn"),
    Preset.BALANCED: (
        *(f"{bits}-g64:{method}" for bits, method in INTEGERS),
        *(f"{bits}-g128:{method}" for bits, method in INTEGERS),
        "int8:rtn",
    ),
    Preset.BEST: (
        *(f"{bits}-g{group}:{method}" for bits, method in INTEGERS for group in (32, 64, 128)),
        "int8-g128:gptq",
        "int8:rtn",
    ),
}
CALIBRATION_TOKENS = {Preset.FAST: 16_384, Preset.BALANCED: 32_768, Preset.BEST: 131_072}
REVERSE_TOKENS = {Preset.FAST: 4_096, Preset.BALANCED: 16_384, Preset.BEST: 65_536}
"""Calibration tokens that the reverse sweep runs over."""
MEASURED_TOKENS = {Preset.FAST: 2_048, Preset.BALANCED: 4_096, Preset.BEST: 8_192}
"""Calibration tokens on which a changed table or a dropped block is measured."""
ROUNDS = {Preset.FAST: 1, Preset.BALANCED: 3, Preset.BEST: 6}
"""Most mixed plans that are measured on the selection text."""
EXPANSIONS = {Preset.FAST: 4, Preset.BALANCED: 6, Preset.BEST: 10}
"""Most plans that are found from the slopes of a measured one, where several families of formats
are on offer."""
REFINED = {Preset.FAST: False, Preset.BALANCED: True, Preset.BEST: True}
"""Whether the plan and its uniform rival are solved again behind their compressed prefixes."""
MATCHING = {Preset.FAST: False, Preset.BALANCED: True, Preset.BEST: True}
"""Whether refinement aims at the original's outputs rather than its weights."""
HEALING: dict[Preset, TuningSettings | None] = {
    Preset.FAST: None,
    Preset.BALANCED: TuningSettings(steps=32, rate=0.005),
    Preset.BEST: TuningSettings(steps=128, rate=0.005, checks=8),
}
"""Local healing of the chosen plan's blocks."""
SAMPLED_SHARE = {Preset.FAST: 0.25, Preset.BALANCED: 0.5, Preset.BEST: 0.5}
"""Share of the calibration tokens that the model writes itself when no text is named."""
SELECTION_TOKENS = {Preset.FAST: 4_096, Preset.BALANCED: 8_192, Preset.BEST: 16_384}
HELDOUT_TOKENS = 16_384
LONGEST_SEQUENCE = 2_048


def candidates_of(preset: Preset) -> tuple[Candidate, ...]:
    """The candidates a preset offers."""
    return tuple(map(Candidate.parse, CANDIDATES[preset]))
