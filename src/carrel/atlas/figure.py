"""A curve as a picture: our own SVG, which needs no script, and the same as data for plotly.

The SVG takes its colours from the page's custom properties (``--series-1`` …, ``--quiet``, ``--line``), else the colour
of the text around it, so that it fits any page in both themes. It holds no style, script or identifier.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

from carrel.atlas.axis import Axis
from carrel.atlas.drawing import Frame, axes_and_grid, hue, label, or_none, plain, shortened, spelt, text_width
from carrel.atlas.parts import Curve, Series
from carrel.atlas.scatter import named_points, point_axes, points

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_POWERS = 6  # of ten, whose texts fit side by side
_MARKED = 16  # a line of up to so many points shows them as dots
_DENSE = 2  # points per pixel beyond which a line is thinned


def svg(curve: Curve, *, width: int = 640, height: int = 280, thumbnail: bool = False) -> str:
    """The curve as an ``<svg>`` element, ``width`` by ``height`` units, to be scaled by the page.

    A thumbnail has no text and no axes. Lines carry their names at their ends; the range of the seeds is a light band.
    """
    axes = _axes(curve)
    title = escape(curve.title)
    head = f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"'
    if thumbnail:
        head += ' preserveAspectRatio="none" aria-hidden="true">'
        frame = Frame(axes, 2, 3, width - 2, height - 3) if axes else None
        return head + "".join(_line(k, s, frame, True) for k, s in _numbered(curve) if frame) + "</svg>"
    head += f' role="img" aria-label="{title}: {escape(curve.y_label)} against {escape(curve.x_label)}">'
    if axes is None:
        nothing = label(width / 2, height / 2, "nothing to draw: no finite values", "middle")
        return f"{head}{nothing}</svg>"
    named = [] if curve.points else [(k, line) for k, line in _numbered(curve) if line.name]
    right = max((text_width(shortened(line.name, width)) for _, line in named), default=0.0)
    ticks = axes[1].ticks(max(2, height // 55))
    left = 12 + max((text_width(text) for _, text in ticks), default=0.0)
    frame = Frame(axes, left, 26, width - (right + 14 if named else 12), height - 40)
    grid = axes_and_grid(curve, frame, ticks, max(2, int(frame.width // 80)))
    if curve.points:
        return head + grid + "".join(points(curve, frame, width)) + "</svg>"
    lines = "".join(_line(k, line, frame, False) for k, line in _numbered(curve))
    return head + grid + lines + "".join(_names(named, frame, width)) + "</svg>"


def plotly(curve: Curve) -> dict[str, Any]:
    """The curve as a plotly figure, ``{"data", "layout"}``; colours are left to the page, unknown values are None."""
    axes = _axes(curve)
    data: list[dict[str, Any]] = named_points(curve, axes) if curve.points and axes else []
    for k, line in [] if curve.points else _numbered(curve):
        name = plain(line.name or curve.y_label)
        if _has_band(line):
            for run in _runs(_shown(curve, line)):
                xs, lows, highs = (list(column) for column in zip(*run, strict=True))
                data.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "x": xs + xs[::-1],
                        "y": highs + lows[::-1],
                        "fill": "toself",
                        "line": {"width": 0},
                        "hoverinfo": "skip",
                        "legendgroup": f"s{k}",
                        "showlegend": False,
                    }
                )
        few = len(line.x) <= _MARKED
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if few else "lines",
                "x": [or_none(value) for value in line.x],
                "y": [or_none(value) for value in line.mean],
                "name": name,
                "legendgroup": f"s{k}",
                "line": {"dash": ("solid", "dash", "dot", "dashdot")[k % 4]},
            }
        )
    layout: dict[str, Any] = {
        "title": {"text": plain(curve.title)},
        "xaxis": {"title": {"text": plain(curve.x_label)}, "type": "log" if "x" in curve.log else "linear"},
        "yaxis": {"title": {"text": plain(curve.y_label)}, "type": "log" if "y" in curve.log else "linear"},
    }
    for name, axis in zip(("xaxis", "yaxis"), axes or (), strict=False):
        if 2 <= axis.powers() <= _POWERS:
            layout[name]["dtick"] = 1  # powers of ten alone: plotly's 2s and 5s between them run together on a phone
    if curve.points and axes is not None:
        layout["xaxis"]["range"], layout["yaxis"]["range"] = (axis.ends() for axis in axes)
    return {"data": data, "layout": layout}


def _axes(curve: Curve) -> tuple[Axis, Axis] | None:
    x = Axis.over((value for line in curve.series for value in line.x), "x" in curve.log)
    y = Axis.over((value for line in curve.series for ys in line.seeds for value in ys), "y" in curve.log)
    if x is None or y is None:
        return None
    return point_axes(x, y) if curve.points else (x, y.widened(0.04))


def _line(k: int, line: Series, frame: Frame, thumbnail: bool) -> str:
    colour = hue(k)
    parts = []
    if _has_band(line) and not thumbnail:
        for run in _runs(
            (frame.x(x), frame.y(a), frame.y(b)) for x, a, b in zip(line.x, line.low, line.high, strict=True)
        ):
            there = "L".join(f"{spelt(x)} {spelt(b)}" for x, _, b in run)
            back = "L".join(f"{spelt(x)} {spelt(a)}" for x, a, _ in reversed(run))
            parts.append(f'<path d="M{there}L{back}Z" fill="{colour}" fill-opacity="0.16" stroke="none"/>')
    runs = list(_runs((frame.x(x), frame.y(y)) for x, y in zip(line.x, line.mean, strict=True)))
    path = "".join("M" + "L".join(f"{spelt(x)} {spelt(y)}" for x, y in _thinned(run, frame.width)) for run in runs)
    if path:
        dash = _DASHES[k % len(_DASHES)]
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        steady = ' vector-effect="non-scaling-stroke"' if thumbnail else ""
        parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dashes} '
            f'stroke-linejoin="round" stroke-linecap="round"{steady}/>'
        )
    if not thumbnail and (len(line.x) <= _MARKED or any(len(run) == 1 for run in runs)):
        dots = (point for run in runs if len(line.x) <= _MARKED or len(run) == 1 for point in run)
        parts.append("".join(f'<circle cx="{spelt(x)}" cy="{spelt(y)}" r="2.6" fill="{colour}"/>' for x, y in dots))
    return "".join(parts)


def _names(named: Sequence[tuple[int, Series]], frame: Frame, width: int) -> Iterator[str]:
    """Each line's name at its right end, pushed apart where ends are close."""
    ends = []
    for k, line in named:
        known = [(frame.x(x), frame.y(y)) for x, y in zip(line.x, line.mean, strict=True)]
        last = max(((x, y) for x, y in known if math.isfinite(x + y)), default=(frame.right, frame.bottom))
        ends.append((last[1] + 4, k, line.name))
    ends.sort()
    gap = min(14.0, (frame.bottom - frame.top) / max(1, len(ends)))
    places: list[float] = []
    for y, _, _ in ends:
        places.append(max(y, places[-1] + gap) if places else max(y, frame.top + 4))
    over = places[-1] - (frame.bottom + 4) if places else 0.0
    for i in range(len(places) - 1, -1, -1):  # too far down: push back up
        if over > 0:
            places[i] = min(places[i], frame.bottom + 4 - (len(places) - 1 - i) * gap)
    for place, (_, k, name) in zip(places, ends, strict=True):
        yield label(frame.right + 8, place, shortened(name, width), "start", hue(k))


def _runs(points: Any) -> Iterator[list[Any]]:
    """Stretches of points whose coordinates are all finite; a gap parts two of them."""
    for known, run in groupby(points, key=lambda point: all(math.isfinite(value) for value in point)):
        if known:
            yield list(run)


def _thinned(run: list[tuple[float, float]], width: float) -> list[tuple[float, float]]:
    """The lowest and highest point of every stretch, where there are more points than pixels."""
    size = math.ceil(len(run) / max(1.0, width * _DENSE))
    if size <= 2:
        return run
    kept = []
    for start in range(0, len(run), size):
        stretch = run[start : start + size]
        kept += sorted({min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}, key=stretch.index)
    return kept if kept[-1] == run[-1] else [*kept, run[-1]]


def _shown(curve: Curve, line: Series) -> Iterator[tuple[float, float, float]]:
    """The band's points, NaN where a logarithmic axis has no place for them."""
    for x, low, high in zip(line.x, line.low, line.high, strict=True):
        lost = ("x" in curve.log and x <= 0) or ("y" in curve.log and low <= 0)
        yield (math.nan, low, high) if lost else (x, low, high)


def _has_band(line: Series) -> bool:
    return len(line.seeds) > 1 and line.low != line.high


def _numbered(curve: Curve) -> Iterator[tuple[int, Series]]:
    return enumerate(curve.series)
