"""What a figure is drawn with: the frame that turns values into points, its grid, and pieces of SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from carrel.atlas.axis import Axis
from carrel.atlas.parts import Curve

_COLOURS = 6
_LETTER = 6.9  # average width of a letter at size 12


class Frame:
    """The rectangle that the lines live in, and the way from values to its points."""

    def __init__(self, axes: tuple[Axis, Axis], left: float, top: float, right: float, bottom: float) -> None:
        self.left, self.top, self.right, self.bottom = left, top, max(right, left + 20), bottom
        self._axes = axes

    @property
    def width(self) -> float:
        return self.right - self.left

    def x(self, value: float) -> float:
        return self.left + self._axes[0].place(value) * self.width

    def y(self, value: float) -> float:
        return self.bottom - self._axes[1].place(value) * (self.bottom - self.top)

    def ticks_x(self, wanted: int) -> list[tuple[float, str]]:
        return self._axes[0].ticks(wanted)


def axes_and_grid(curve: Curve, frame: Frame, ticks: Sequence[tuple[float, str]], wanted: int) -> str:
    rules = "".join(f"M{spelt(frame.left)} {spelt(frame.y(value))}H{spelt(frame.right)}" for value, _ in ticks)
    across = frame.ticks_x(wanted)
    feet = "".join(f"M{spelt(frame.x(value))} {spelt(frame.bottom)}v4" for value, _ in across)
    texts = [label(frame.left - 6, frame.y(value) + 4, text, "end") for value, text in ticks]
    texts += [label(frame.x(value), frame.bottom + 16, text, "middle") for value, text in across]
    texts.append(label(2, 12, curve.y_label, "start"))
    texts.append(label(frame.right, frame.bottom + 33, curve.x_label, "end"))
    line = "var(--line,currentColor)"
    return (
        f'<path d="{rules}" fill="none" stroke="{line}" stroke-dasharray="2 4"/>'
        f'<path d="M{spelt(frame.left)} {spelt(frame.top)}V{spelt(frame.bottom)}H{spelt(frame.right)}{feet}" '
        f'fill="none" stroke="{line}"/>' + "".join(texts)
    )


def hue(k: int) -> str:
    return f"var(--series-{k % _COLOURS + 1},currentColor)"


def label(x: float, y: float, text: str, anchor: str, colour: str = "var(--quiet,currentColor)") -> str:
    style = f'font-size="12" font-family="var(--sans,sans-serif)" fill="{colour}"'
    return f'<text x="{spelt(x)}" y="{spelt(y)}" text-anchor="{anchor}" {style}>{escape(text)}</text>'


def shortened(name: str, width: int) -> str:
    most = max(8, int(width * 0.34 / _LETTER))
    return name if len(name) <= most else name[: most - 1] + "…"


def text_width(text: str) -> float:
    return sum(_LETTER * (1.9 if ord(letter) > 0x2E80 else 1) for letter in text)


def spelt(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def plain(text: str) -> str:
    """Text for plotly, which reads tags in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
