"""What an experiment returns, and how it says how far it is.

An experiment is called once per seed and fills one ``Report``; ``Result.of`` joins the reports of all seeds. Both are
made of the same parts, ``Check``, ``Curve`` and ``Table``, which keep one value per seed: a report simply has one seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, SupportsFloat, TypeAlias

from carrel.atlas.parts import Cell as Cell
from carrel.atlas.parts import Check as Check
from carrel.atlas.parts import Curve as Curve
from carrel.atlas.parts import ReportError as ReportError
from carrel.atlas.parts import Series as Series
from carrel.atlas.parts import Table as Table
from carrel.atlas.parts import number as number
from carrel.atlas.parts import short
from carrel.atlas.result import VERDICTS as VERDICTS
from carrel.atlas.result import Result as Result
from carrel.atlas.result import Verdict as Verdict

_LOG_AXES = ("", "x", "y", "xy")
_Progress: TypeAlias = Callable[[float, str], None]
_listener: ContextVar[_Progress | None] = ContextVar("carrel_progress", default=None)


def progress(fraction: float, note: str = "") -> None:
    """Say how much of this seed's run is done (0 to 1). Reaches whoever runs the experiment; otherwise does nothing."""
    listener = _listener.get()
    if listener is not None:
        listener(min(1.0, max(0.0, float(fraction))), note)


@contextmanager
def listening(listener: _Progress) -> Iterator[None]:
    """Have ``listener(fraction, note)`` called for every ``progress`` inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


class Report:
    """What one run of an experiment, with one seed, has to say."""

    def __init__(self, slug: str) -> None:
        self.slug = slug
        self.checks: list[Check] = []
        self.curves: list[Curve] = []
        self.tables: list[Table] = []
        self.state: Verdict | None = None
        self.finding = ""

    def check(
        self, name: str, value: SupportsFloat, *, low: SupportsFloat | None = None, high: SupportsFloat | None = None
    ) -> None:
        """Hold ``low <= value <= high``; either bound may be left out, not both. NaN and infinity fail."""
        if low is None and high is None:
            raise ReportError(f"check {name!r} needs a bound: give low, high or both")
        if any(check.name == name for check in self.checks):
            raise ReportError(f"check {name!r} is reported twice")
        bounds = [None if bound is None else float(bound) for bound in (low, high)]
        if any(bound is not None and not math.isfinite(bound) for bound in bounds):
            raise ReportError(f"check {name!r} wants finite bounds, got low={low}, high={high}")
        if low is not None and high is not None and float(low) > float(high):
            raise ReportError(f"check {name!r} wants low <= high, got low={low}, high={high}")
        self.checks.append(Check(name, bounds[0], bounds[1], (float(value),)))

    def curve(self, title: str, *, x: Any, y: Any, x_label: str, y_label: str, log: str = "") -> None:
        """Draw y over x. ``y`` is a sequence, or a mapping from a line's name to its sequence; ``x`` likewise.

        Labels carry the unit, as in "steps" or "time (s)". ``log`` is "", "x", "y" or "xy". All seeds share one x.
        """
        if log not in _LOG_AXES:
            raise ReportError(f'curve {title!r}: log must be "", "x", "y" or "xy", got {log!r}')
        if any(curve.title == title for curve in self.curves):
            raise ReportError(f"curve {title!r} is drawn twice")
        lines = y if isinstance(y, Mapping) else {"": y}
        if not lines:
            raise ReportError(f"curve {title!r} has no lines")
        series = []
        for name, values in lines.items():
            xs, ys = (_plotted(row) for row in (x[name] if isinstance(x, Mapping) else x, values))
            if len(xs) != len(ys) or not xs:
                raise ReportError(f"curve {title!r}, line {name!r}: wants as many y as x, got {len(ys)} and {len(xs)}")
            series.append(Series(str(name), xs, (ys,)))
        self.curves.append(Curve(title, x_label, y_label, log, tuple(series)))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table. Cells are text, numbers, truth values or None; numbers are averaged over seeds."""
        cells = tuple(tuple(_cell(cell) for cell in row) for row in rows)
        for row in cells:
            if len(row) != len(columns):
                raise ReportError(f"table {title!r} has {len(columns)} columns, got a row of {len(row)}: {row}")
        self.tables.append(Table(title, tuple(columns), cells))

    def verdict(self, state: Verdict, finding: str) -> None:
        """Say whether the paper's claim was seen, in one sentence without numbers that differ by seed."""
        if state not in VERDICTS:
            raise ReportError(f"a verdict is one of {', '.join(VERDICTS)}, got {state!r}")
        if not finding.strip():
            raise ReportError("a verdict needs a sentence")
        self.state, self.finding = state, finding.strip()

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        parts = {name: [part.to_json() for part in getattr(self, name)] for name in ("checks", "curves", "tables")}
        return {"slug": self.slug, "verdict": self.state, "finding": self.finding, **parts}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Report:
        report = cls(d["slug"])
        report.state, report.finding = d["verdict"], d["finding"]
        report.checks = [Check.from_json(part) for part in d["checks"]]
        report.curves = [Curve.from_json(part) for part in d["curves"]]
        report.tables = [Table.from_json(part) for part in d["tables"]]
        return report


def _plotted(row: Any) -> tuple[float, ...]:
    values = row.tolist() if hasattr(row, "tolist") else row
    return tuple(short(float(value)) for value in values)


def _cell(cell: Any) -> Cell:
    plain = cell.item() if hasattr(cell, "item") else cell
    if plain is None or isinstance(plain, str | bool | int):
        return plain
    value = float(plain)
    return value if math.isfinite(value) else None
