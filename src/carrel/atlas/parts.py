"""The parts of a report: checks, curves and tables, each with one value per seed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Cell: TypeAlias = str | int | float | bool | None


class ReportError(ValueError):
    """A report that cannot be shown: a curve of unequal lengths, a check without a bound, seeds that do not match."""


@dataclass(frozen=True, slots=True)
class Check:
    """A bound on a number, with the number each seed gave. Holds if every seed's value is finite and within it."""

    name: str
    low: float | None
    high: float | None
    values: tuple[float, ...]

    def margin(self, value: float) -> float:
        """How far inside the bounds a value lies; negative outside, minus infinity when it is not a finite number."""
        if not math.isfinite(value):
            return -math.inf
        below = math.inf if self.low is None else value - self.low
        above = math.inf if self.high is None else self.high - value
        return min(below, above)

    @property
    def worst(self) -> float:
        """The value closest to a bound from inside or, if any lies outside, the one farthest out."""
        return min(self.values, key=self.margin)

    @property
    def passed(self) -> bool:
        return all(self.margin(value) >= 0 for value in self.values)

    @property
    def bound(self) -> str:
        """The bounds in words and signs, as in ``≥ 0.95`` or ``0.16 to 0.18``."""
        if self.low is None:
            return f"≤ {number(self.high)}"
        if self.high is None:
            return f"≥ {number(self.low)}"
        return f"{number(self.low)} to {number(self.high)}" if self.low != self.high else f"= {number(self.low)}"

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "low": self.low,
            "high": self.high,
            "values": [finite(value) for value in self.values],
            "worst": finite(self.worst),
            "passed": self.passed,
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Check:
        return cls(d["name"], d["low"], d["high"], numbers(d["values"]))


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a curve: y over x, with every seed's y."""

    name: str
    x: tuple[float, ...]
    seeds: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean over seeds; NaN where any seed is, so that a seed that diverged is not averaged away."""
        return tuple(short(sum(ys) / len(ys)) for ys in zip(*self.seeds, strict=True))

    @property
    def low(self) -> tuple[float, ...]:
        return tuple(min(known(ys), default=math.nan) for ys in zip(*self.seeds, strict=True))

    @property
    def high(self) -> tuple[float, ...]:
        return tuple(max(known(ys), default=math.nan) for ys in zip(*self.seeds, strict=True))

    def to_json(self) -> dict[str, Any]:
        rows = {"x": self.x, "mean": self.mean, "low": self.low, "high": self.high}
        lists: dict[str, Any] = {key: [finite(value) for value in row] for key, row in rows.items()}
        return {"name": self.name, **lists, "seeds": [[finite(value) for value in row] for row in self.seeds]}

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Series:
        return cls(d["name"], numbers(d["x"]), tuple(numbers(row) for row in d["seeds"]))


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure: one or more series over the same axes. ``log`` names the logarithmic axes: "", "x", "y" or "xy".

    With ``points`` the series are not lines but single points, each named where it stands.
    """

    title: str
    x_label: str
    y_label: str
    log: str
    series: tuple[Series, ...]
    points: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "x_label": self.x_label,
            "y_label": self.y_label,
            "log": self.log,
            **({"points": True} if self.points else {}),
            "series": [line.to_json() for line in self.series],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Curve:
        series = tuple(Series.from_json(line) for line in d["series"])
        return cls(d["title"], d["x_label"], d["y_label"], d["log"], series, d.get("points", False))


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells. Numbers are means over seeds; ``spread`` holds half their range where the seeds differ."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    spread: tuple[tuple[float | None, ...], ...] = ()

    def to_json(self) -> dict[str, Any]:
        rows = [[finite(cell) if isinstance(cell, float) else cell for cell in row] for row in self.rows]
        return {
            "title": self.title,
            "columns": list(self.columns),
            "rows": rows,
            "spread": [list(r) for r in self.spread],
        }

    @classmethod
    def from_json(cls, d: Mapping[str, Any]) -> Table:
        spread = tuple(tuple(row) for row in d.get("spread", ()))
        return cls(d["title"], tuple(d["columns"]), tuple(tuple(row) for row in d["rows"]), spread)


def number(value: float | None, digits: int = 4) -> str:
    """A number for a reader: at most so many significant digits, powers of ten for the very large and small."""
    if value is None or math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e6:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
        return text.replace("-", "−")
    mantissa, exponent = f"{value:.{max(1, digits - 2)}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return {"1": power, "-1": f"−{power}"}.get(mantissa, f"{mantissa}·{power}".replace("-", "−"))


def cell(value: object) -> str:
    """A table's cell for a reader: numbers as ``number`` writes them, counts with their thousands set off."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**12:
        return f"{value:,}".replace("-", "−")
    return number(float(value)) if isinstance(value, int | float) else str(value)


def rough(value: float) -> str:
    """A spread or a guess for a reader: two significant digits."""
    return number(float(f"{value:.2g}"))


def short(value: float) -> float:
    """Six significant digits: as much as any figure shows, and half the size on disk."""
    return float(f"{value:.6g}")


def known(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)
