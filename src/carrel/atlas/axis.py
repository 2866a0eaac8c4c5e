"""An axis of a figure: its range, its ticks, and where on the paper a value falls."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from carrel.atlas.parts import number

_FAR = 1e150  # beyond this a value is as good as infinite: squares and ranges overflow
_SAME = 1e-12  # a range narrower than this share of its ends is a point


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to 0..1. On a logarithmic axis ``low`` and ``high`` are still values, and above 0."""

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Iterable[float], log: bool) -> Axis | None:
        """The axis that shows all these values; those it cannot show are left out. None if nothing is left."""
        shown = [value for value in values if _shows(value, log)]
        if not shown:
            return None
        low, high = min(shown), max(shown)
        if high - low <= _SAME * max(abs(low), abs(high)):
            pad = 2.0 if log else (abs(low) * 0.1 or 1.0)
            return cls(low / pad, high * pad, log) if log else cls(low - pad, high + pad, log)
        return cls(low, high, log)

    def widened(self, share: float) -> Axis:
        """A little room beyond the outermost values."""
        if self.log:
            more = (self.high / self.low) ** share
            return Axis(self.low / more, self.high * more, True)
        more = (self.high - self.low) * share
        # a range that starts at zero keeps its foot there
        return Axis(self.low if self.low == 0 else self.low - more, self.high + more, False)

    def ends(self) -> list[float]:
        """Both ends as plotly wants them: exponents of ten on a logarithmic axis."""
        return [math.log10(self.low), math.log10(self.high)] if self.log else [self.low, self.high]

    def powers(self) -> int:
        """How many powers of ten lie on a logarithmic axis."""
        return math.floor(math.log10(self.high)) - math.ceil(math.log10(self.low)) + 1 if self.log else 0

    def place(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``; NaN for what the axis cannot show."""
        if not math.isfinite(value) or (self.log and value <= 0):
            return math.nan
        if self.log:
            place = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        else:
            place = (value - self.low) / (self.high - self.low)
        return place if -0.5 <= place <= 1.5 else math.nan  # far off: one of those that were left out

    def ticks(self, wanted: int) -> list[tuple[float, str]]:
        """About ``wanted`` round values within the range, with their texts."""
        values = self._decades(wanted) if self.log else []
        if len(values) < 2:
            values = self._even(wanted)
        if self.log and all(_is_power(value) for value in values):
            # all in one spelling: plain while every one is short, powers of ten otherwise
            short = all(1e-3 <= value <= 1e4 for value in values)
            return [(value, number(value) if short or value in (1, 10) else _power(value)) for value in values]
        # neighbours must not read the same
        gap = min((b - a for a, b in pairwise(values)), default=0.0)
        digits = 4 if gap <= 0 else max(4, math.ceil(math.log10(max(map(abs, values)) / gap)) + 2)
        return [(value, number(value, digits)) for value in values]

    def _decades(self, wanted: int) -> list[float]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if last - first < 1:  # within a decade or so: 1, 2, 5
            found = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
        step = max(1, math.ceil((last - first) / max(1, wanted)))
        return [10.0**e for e in range(first, last + 1, step)]

    def _even(self, wanted: int) -> list[float]:
        rough = (self.high - self.low) / max(1, wanted)
        exponent = math.floor(math.log10(rough))
        power = 10.0**exponent
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        # a tick is a whole multiple of the step: rounding keeps 0.30000000000000004 away
        return [float(f"{k * step:.{max(0, -exponent)}f}") for k in range(first, last + 1)]


def _shows(value: float, log: bool) -> bool:
    return abs(value) < _FAR and (value > 1 / _FAR or not log)  # false for NaN


def _is_power(value: float) -> bool:
    return value > 0 and math.isclose(math.log10(value), round(math.log10(value)), abs_tol=1e-9)


def _power(value: float) -> str:
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
