"""A curve drawn with letters, for terminals: dots of braille, two by four to a letter."""

from __future__ import annotations

import math
from itertools import pairwise

from rich.text import Text

from carrel.atlas.axis import Axis
from carrel.atlas.parts import Curve, Series

STYLES = ("cyan", "yellow", "magenta", "green", "blue", "red")
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # the bit of the dot in row 0..3, column 0..1
_EMPTY = 0x2800


def plot(curve: Curve, *, width: int = 80, height: int = 10) -> Text:
    """The curve in at most ``width`` columns: title, labels, ``height`` rows, axes; names at the lines' ends."""
    head = Text(curve.title, style="bold")
    axes = _axes(curve)
    if axes is None:
        return Text.assemble(head, "\n  nothing to draw: no finite values")
    across, up = axes
    ticks = up.ticks(max(2, height // 3))
    margin = max(len(text) for _, text in ticks) + 1 if ticks else 1
    names = [_cut(line.name, width // 3) for line in curve.series]
    room = max((len(name) + 1 for name in names if name), default=0)
    columns = max(16, width - margin - room - 3)
    canvas = _Canvas(columns, height, across, up)
    for k in reversed(range(len(curve.series))):  # the first line on top
        canvas.draw(curve.series[k], STYLES[k % len(STYLES)])
    labels = _ends(curve, names, height, up)
    marks = {_row(up.place(value), height): text for value, text in ticks}
    lines = [head, Text(f"  {curve.y_label}", style="dim")]
    for row in range(height):
        line = Text(f"  {marks.get(row, ''):>{margin - 1}} ", style="dim", end="")
        line.append("┤" if row in marks else "│", style="dim")
        line.append_text(canvas.row(row))
        if row in labels:
            k = labels[row]
            line.append(f" {names[k]}", style=STYLES[k % len(STYLES)])
        lines.append(line)
    lines += _foot(across, columns, width, margin + 2, curve.x_label)
    return Text("\n").join(lines)


class _Canvas:
    def __init__(self, columns: int, rows: int, across: Axis, up: Axis) -> None:
        self._bits = [[0] * columns for _ in range(rows)]
        self._styles = [[""] * columns for _ in range(rows)]
        self._across, self._up = across, up
        self._wide, self._tall = columns * 2 - 1, rows * 4 - 1

    def draw(self, line: Series, style: str) -> None:
        points = [
            (self._across.place(x) * self._wide, (1 - self._up.place(y)) * self._tall)
            for x, y in zip(line.x, line.mean, strict=True)
        ]
        for x, y in points:
            self._dot(x, y, style)
        for (x0, y0), (x1, y1) in pairwise(points):
            if not math.isfinite(x0 + y0 + x1 + y1):
                continue
            steps = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
            for k in range(1, steps):
                self._dot(x0 + (x1 - x0) * k / steps, y0 + (y1 - y0) * k / steps, style)

    def _dot(self, x: float, y: float, style: str) -> None:
        if not math.isfinite(x + y):
            return
        column, row = min(self._wide, max(0, round(x))), min(self._tall, max(0, round(y)))
        self._bits[row // 4][column // 2] |= _DOTS[row % 4][column % 2]
        self._styles[row // 4][column // 2] = style

    def row(self, row: int) -> Text:
        text = Text(end="")
        for bits, style in zip(self._bits[row], self._styles[row], strict=True):
            text.append(chr(_EMPTY + bits) if bits else " ", style=style)
        return text


def _axes(curve: Curve) -> tuple[Axis, Axis] | None:
    across = Axis.over((x for line in curve.series for x in line.x), "x" in curve.log)
    up = Axis.over((y for line in curve.series for y in line.mean), "y" in curve.log)
    return None if across is None or up is None else (across, up.widened(0.04))


def _row(place: float, height: int) -> int:
    return min(height - 1, max(0, round((1 - place) * (height * 4 - 1)) // 4))


def _ends(curve: Curve, names: list[str], height: int, up: Axis) -> dict[int, int]:
    """Row -> the line whose name stands there: the row of its end, or the nearest free one."""
    taken: dict[int, int] = {}
    for k, line in enumerate(curve.series):
        ends = [place for y in line.mean if math.isfinite(place := up.place(y))]
        if not names[k] or not ends:
            continue
        wanted = _row(ends[-1], height)
        free = sorted((row for row in range(height) if row not in taken), key=lambda row: abs(row - wanted))
        if free:
            taken[free[0]] = k
    return taken


def _foot(across: Axis, columns: int, width: int, margin: int, label: str) -> list[Text]:
    room = width - margin - 1  # a text may stand out beyond the last column
    rule, texts, at = ["─"] * columns, [" "] * room, -1
    for value, text in across.ticks(max(2, columns // 12)):
        column = min(columns - 1, max(0, round(across.place(value) * (columns * 2 - 1)) // 2))
        start = max(0, min(column - len(text) // 2, room - len(text)))
        if start <= at:
            continue
        rule[column] = "┬"
        texts[start : start + len(text)] = text
        at = start + len(text)
    return [
        Text(" " * margin + "└" + "".join(rule), style="dim"),
        Text(" " * (margin + 1) + "".join(texts).rstrip(), style="dim"),
        Text(" " * (margin + 1) + f"{label:>{columns}}", style="dim"),
    ]


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
