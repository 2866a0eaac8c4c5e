"""Text is readable: every ink on every ground, in both themes, at WCAG 2.2 AA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TOKENS = (Path(__file__).parents[2] / "frontend/src/tokens.css").read_text(encoding="utf-8")
COLOURS = {
    name: (light, dark)
    for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\);", TOKENS)
}
INKS = [
    "ink",
    "quiet",
    "accent",
    "holds",
    "caveat",
    "not-shown",
    *(name for name in COLOURS if name.startswith("fam-")),
]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("ground", ["paper", "sheet"])
@pytest.mark.parametrize("ink", INKS)
def test_text_stands_out_four_and_a_half_times(ink: str, ground: str, theme: int) -> None:
    assert contrast(COLOURS[ink][theme], COLOURS[ground][theme]) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_fields_and_lines_of_plots_stand_out_three_times(theme: int) -> None:
    for name in ("edge", *(name for name in COLOURS if name.startswith("series-"))):
        assert contrast(COLOURS[name][theme], COLOURS["sheet"][theme]) >= 3.0, name
    assert contrast(COLOURS["paper"][theme], COLOURS["accent"][theme]) >= 4.5, "a button's words on its ground"
    assert contrast(COLOURS["ink"][theme], COLOURS["mark"][theme]) >= 4.5


def test_every_family_of_the_atlas_has_its_hue() -> None:
    from carrel.atlas.card import FAMILIES

    assert {f"fam-{family}" for family in FAMILIES} <= set(COLOURS)
