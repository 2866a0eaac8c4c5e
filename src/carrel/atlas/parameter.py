"""A parameter of an experiment: type, range, unit, and how a text from a form or command line becomes a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["int", "float", "choice", "bool"]
Value: TypeAlias = int | float | str | bool
_TRUE, _FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}


class BadParameter(ValueError):
    """A value that a parameter cannot take; the message is one sentence for the person who gave it."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass(frozen=True, slots=True)
class Parameter:
    """One knob of an experiment, as its card describes it."""

    name: str
    type: Kind
    default: Value
    help: str
    low: int | float | None = None
    high: int | float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    quick: Value | None = None

    def value(self, quick: bool = False) -> Value:
        """The value used when none is given."""
        return self.quick if quick and self.quick is not None else self.default

    @property
    def range(self) -> str:
        """What may be given, in words: "16 to 4096 tokens", "ring or dense", "yes or no"."""
        if self.type == "choice":
            return _either(self.choices)
        if self.type == "bool":
            return "yes or no"
        return f"{self.low} to {self.high} {self.unit}".rstrip()

    def parse(self, given: Any) -> Value:
        """The value meant by a text, or a value checked. Raises BadParameter with a sentence."""
        if self.type == "choice":
            if given not in self.choices:
                raise BadParameter(f"{self.name} must be {_either(self.choices)}, got {_shown(given)}", self.name)
            return str(given)
        if self.type == "bool":
            return self._truth(given)
        number = self._number(given)
        if self.low is not None and self.high is not None and not self.low <= number <= self.high:
            unit = f" {self.unit}" if self.unit else ""
            raise BadParameter(
                f"{self.name} must be between {self.low} and {self.high}{unit}, got {_shown(given)}", self.name
            )
        return number

    def _truth(self, given: Any) -> bool:
        word = str(given).strip().lower()
        if word in _TRUE | _FALSE:
            return word in _TRUE
        raise BadParameter(f"{self.name} must be yes or no, got {_shown(given)}", self.name)

    def _number(self, given: Any) -> int | float:
        kind = "a whole number" if self.type == "int" else "a number"
        bad = BadParameter(f"{self.name} must be {kind}, got {_shown(given)}", self.name)
        if isinstance(given, bool) or not isinstance(given, str | int | float):
            raise bad
        try:
            # Decimal reads "1e9" exactly, so that it can be a whole number
            exact = Decimal(given.strip() if isinstance(given, str) else str(given))
        except InvalidOperation:
            raise bad from None
        if not exact.is_finite() or abs(exact.adjusted()) > 400:
            raise bad
        if self.type == "float":
            number = float(exact)
            if not math.isfinite(number):
                raise bad
            return number
        if exact != exact.to_integral_value():
            raise bad
        return int(exact)


def _either(choices: tuple[str, ...]) -> str:
    return " or ".join(choices) if len(choices) < 3 else f"{', '.join(choices[:-1])} or {choices[-1]}"


def _shown(given: Any) -> str:
    """What was given, short enough for a sentence."""
    text = str(given) if isinstance(given, int | float) and not isinstance(given, bool) else repr(given)
    if isinstance(given, str):
        text = given if given.strip() and given.isprintable() else repr(given)
    return text if len(text) <= 60 else text[:57] + "…"
