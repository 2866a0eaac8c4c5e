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
from carrel.atlas.parts import Curve, Series

_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
_COLOURS = 6
_LETTER = 6.3  # average width of a letter at size 12
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
        frame = _Frame(axes, 2, 3, width - 2, height - 3) if axes else None
        return head + "".join(_line(k, s, frame, True) for k, s in _numbered(curve) if frame) + "</svg>"
    head += f' role="img" aria-label="{title}: {escape(curve.y_label)} against {escape(curve.x_label)}">'
    if axes is None:
        nothing = _text(width / 2, height / 2, "nothing to draw: no finite values", "middle")
        return f"{head}{nothing}</svg>"
    named = [(k, line) for k, line in _numbered(curve) if line.name]
    right = max((_length(_shortened(line.name, width)) for _, line in named), default=0.0)
    ticks = axes[1].ticks(max(2, height // 55))
    left = 12 + max((_length(text) for _, text in ticks), default=0.0)
    frame = _Frame(axes, left, 26, width - (right + 14 if named else 12), height - 40)
    parts = [
        _grid(curve, frame, ticks, max(2, int(frame.width // 80))),
        *(_line(k, line, frame, False) for k, line in _numbered(curve)),
        *_names(named, frame, width),
    ]
    return head + "".join(parts) + "</svg>"


def plotly(curve: Curve) -> dict[str, Any]:
    """The curve as a plotly figure, ``{"data", "layout"}``; colours are left to the page, unknown values are None."""
    data: list[dict[str, Any]] = []
    for k, line in _numbered(curve):
        name = _plain(line.name or curve.y_label)
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
                "x": [_or_none(value) for value in line.x],
                "y": [_or_none(value) for value in line.mean],
                "name": name,
                "legendgroup": f"s{k}",
                "line": {"dash": ("solid", "dash", "dot", "dashdot")[k % 4]},
            }
        )
    return {
        "data": data,
        "layout": {
            "title": {"text": _plain(curve.title)},
            "xaxis": {"title": {"text": _plain(curve.x_label)}, "type": "log" if "x" in curve.log else "linear"},
            "yaxis": {"title": {"text": _plain(curve.y_label)}, "type": "log" if "y" in curve.log else "linear"},
        },
    }


class _Frame:
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


def _axes(curve: Curve) -> tuple[Axis, Axis] | None:
    x = Axis.over((value for line in curve.series for value in line.x), "x" in curve.log)
    y = Axis.over((value for line in curve.series for ys in line.seeds for value in ys), "y" in curve.log)
    return None if x is None or y is None else (x, y.widened(0.04))


def _grid(curve: Curve, frame: _Frame, ticks: Sequence[tuple[float, str]], wanted: int) -> str:
    rules = "".join(f"M{_n(frame.left)} {_n(frame.y(value))}H{_n(frame.right)}" for value, _ in ticks)
    across = frame.ticks_x(wanted)
    feet = "".join(f"M{_n(frame.x(value))} {_n(frame.bottom)}v4" for value, _ in across)
    texts = [_text(frame.left - 6, frame.y(value) + 4, text, "end") for value, text in ticks]
    texts += [_text(frame.x(value), frame.bottom + 16, text, "middle") for value, text in across]
    texts.append(_text(2, 12, curve.y_label, "start"))
    texts.append(_text(frame.right, frame.bottom + 33, curve.x_label, "end"))
    line = "var(--line,currentColor)"
    return (
        f'<path d="{rules}" fill="none" stroke="{line}" stroke-dasharray="2 4"/>'
        f'<path d="M{_n(frame.left)} {_n(frame.top)}V{_n(frame.bottom)}H{_n(frame.right)}{feet}" '
        f'fill="none" stroke="{line}"/>' + "".join(texts)
    )


def _line(k: int, line: Series, frame: _Frame, thumbnail: bool) -> str:
    colour = _colour(k)
    parts = []
    if _has_band(line) and not thumbnail:
        for run in _runs(
            (frame.x(x), frame.y(a), frame.y(b)) for x, a, b in zip(line.x, line.low, line.high, strict=True)
        ):
            there = "L".join(f"{_n(x)} {_n(b)}" for x, _, b in run)
            back = "L".join(f"{_n(x)} {_n(a)}" for x, a, _ in reversed(run))
            parts.append(f'<path d="M{there}L{back}Z" fill="{colour}" fill-opacity="0.16" stroke="none"/>')
    runs = list(_runs((frame.x(x), frame.y(y)) for x, y in zip(line.x, line.mean, strict=True)))
    path = "".join("M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in _thinned(run, frame.width)) for run in runs)
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
        parts.append("".join(f'<circle cx="{_n(x)}" cy="{_n(y)}" r="2.6" fill="{colour}"/>' for x, y in dots))
    return "".join(parts)


def _names(named: Sequence[tuple[int, Series]], frame: _Frame, width: int) -> Iterator[str]:
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
        yield _text(frame.right + 8, place, _shortened(name, width), "start", _colour(k))


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


def _colour(k: int) -> str:
    return f"var(--series-{k % _COLOURS + 1},currentColor)"


def _text(x: float, y: float, text: str, anchor: str, colour: str = "var(--quiet,currentColor)") -> str:
    return (
        f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}" font-size="12" font-family="var(--sans,sans-serif)" '
        f'fill="{colour}">{escape(text)}</text>'
    )


def _shortened(name: str, width: int) -> str:
    most = max(8, int(width * 0.34 / _LETTER))
    return name if len(name) <= most else name[: most - 1] + "…"


def _length(text: str) -> float:
    return sum(_LETTER * (1.9 if ord(letter) > 0x2E80 else 1) for letter in text)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(text: str) -> str:
    """Text for plotly, which reads tags in it."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
