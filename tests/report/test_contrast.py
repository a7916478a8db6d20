"""Text stands out from what is behind it, in both themes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from blockwright.report.map_view import SHADES, shade
from blockwright.report.page import TEMPLATES

TEXT, GRAPHIC = 4.5, 3.0
"""Least contrast of text and of marks (WCAG 2.2, AA)."""
PAIRS = [
    *((ink, ground, TEXT) for ink in ("ink", "soft", "plan") for ground in ("page", "sheet")),
    *((ink, "sheet", TEXT) for ink in ("rival", "good", "bad")),
    *(("ink", "faint", TEXT), ("soft", "faint", TEXT)),
    *((f"t{step}", f"s{step}", TEXT) for step in range(SHADES)),
    *(("plan", "sheet", GRAPHIC), ("rival", "sheet", GRAPHIC)),
]


def colours(file: Path) -> dict[str, str]:
    """Variables of a theme, references followed."""
    found = dict(re.findall(r"--([\w-]+): ([^;]+);", file.read_text(encoding="utf-8")))
    return {
        name: found[value[6:-1]] if value.startswith("var(--") else value
        for name, value in found.items()
    }


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_of_black_on_white_is_21() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme: str) -> None:
    found = colours(TEMPLATES / f"{theme}.css")
    low = {
        f"{ink} on {ground}": round(contrast(found[ink], found[ground]), 2)
        for ink, ground, least in PAIRS
        if contrast(found[ink], found[ground]) < least
    }
    assert low == {}


def test_themes_define_the_same_colours() -> None:
    assert colours(TEMPLATES / "light.css").keys() == colours(TEMPLATES / "dark.css").keys()


def test_more_bits_have_a_deeper_shade() -> None:
    shades = [shade("int4-g64:gptq", bits) for bits in (1.0, 2.2, 3.25, 4.25, 5.25, 6.3, 8.1, 16)]
    assert shades == sorted(shades)
    assert (shades[0], shades[-1]) == ("s0", f"s{SHADES - 1}")
    assert len(set(shades)) >= 6
    assert (shade("keep", 16.0), shade("drop", 0.0)) == ("keep", "drop")
