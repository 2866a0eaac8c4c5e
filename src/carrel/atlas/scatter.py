"""Points named where they stand, instead of lines: for an SVG and for plotly."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from carrel.atlas.axis import Axis
from carrel.atlas.drawing import Frame, hue, label, or_none, plain, shortened, spelt, text_width
from carrel.atlas.parts import Curve, Series

_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
_NEAR = (0.35, 0.12)  # shares of the axes within which names would cover one another
_GAP = 13  # between the feet of two names
_ROOM = 0.16  # of the range, on either side, for the names


def point_axes(x: Axis, y: Axis) -> tuple[Axis, Axis]:
    """Axes with room for the names of the outermost points."""
    return x.widened(_ROOM), y.widened(0.1)


def points(curve: Curve, frame: Frame, width: int) -> Iterator[str]:
    """Every point as a dot with the range of its seeds as a bar, its name above it or where there is room nearby."""
    taken: list[tuple[float, float, float]] = []
    for k, line in enumerate(curve.series):
        for x, y, low, high in zip(line.x, line.mean, line.low, line.high, strict=True):
            at, foot = frame.x(x), frame.y(y)
            if not math.isfinite(at + foot):
                continue
            if low != high and math.isfinite(bar := frame.y(low) + frame.y(high)):
                ends = spelt(frame.y(low)), spelt(bar - frame.y(low))
                yield f'<path d="M{spelt(at)} {ends[0]}V{ends[1]}" stroke="{hue(k)}" stroke-width="1.2"/>'
            yield f'<circle cx="{spelt(at)}" cy="{spelt(foot)}" r="4" fill="{hue(k)}"/>'
            name = shortened(line.name, width)
            wide = text_width(name)
            left = min(max(at - wide / 2, frame.left + 2), max(frame.left + 2, frame.right - wide))
            steps = [foot - 9, foot + 18] + [foot + 18 + sign * n * _GAP for n in range(1, 9) for sign in (1, -1)]
            place = next((step for step in steps if _free(left, wide, step, frame, taken)), steps[0])
            taken.append((left, left + wide, place))
            yield label(left, place, name, "start", hue(k))


def named_points(curve: Curve, axes: tuple[Axis, Axis]) -> list[dict[str, Any]]:
    """The same as traces for plotly; where points lie close together their names go to different sides."""
    traces: list[dict[str, Any]] = []
    seen: list[tuple[float, float]] = []
    for k, line in enumerate(curve.series):
        traces.append(_trace(k, line))
        for x, y in zip(line.x, line.mean, strict=True):
            at = axes[0].place(x), axes[1].place(y)
            near = sum(abs(at[0] - other[0]) < _NEAR[0] and abs(at[1] - other[1]) < _NEAR[1] for other in seen)
            across = "left" if at[0] > 0.7 else "right" if at[0] < 0.3 else "center"  # inwards at the edges
            traces[-1]["textposition"] = f"{('top', 'bottom')[near % 2]} {across}"
            seen.append(at)
    return traces


def _free(left: float, wide: float, place: float, frame: Frame, taken: list[tuple[float, float, float]]) -> bool:
    inside = frame.top + 4 <= place <= frame.bottom - 3
    return inside and not any(left < end and start < left + wide and abs(place - at) < _GAP for start, end, at in taken)


def _trace(k: int, line: Series) -> dict[str, Any]:
    mean = line.mean
    return {
        "type": "scatter",
        "mode": "markers+text",
        "x": [or_none(value) for value in line.x],
        "y": [or_none(value) for value in mean],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [or_none(high - value) for value, high in zip(mean, line.high, strict=True)],
            "arrayminus": [or_none(value - low) for value, low in zip(mean, line.low, strict=True)],
            "thickness": 1.2,
            "width": 3,
        },
        "text": [plain(line.name)] * len(line.x),
        "cliponaxis": False,
        "name": plain(line.name),
        "legendgroup": f"s{k}",
        "showlegend": False,
        "marker": {"size": 9, "symbol": _SYMBOLS[k % len(_SYMBOLS)]},
    }
