"""What the reports of several seeds add up to, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from carrel.atlas.parts import Cell, Check, Curve, ReportError, Series, Table, short

if TYPE_CHECKING:
    from carrel.atlas.report import Report

Verdict: TypeAlias = Literal["holds", "caveat", "not-shown"]
VERDICTS: Mapping[str, str] = {
    "holds": "holds",
    "caveat": "holds with a caveat",
    "not-shown": "does not show",
}


@dataclass(frozen=True, slots=True)
class Result:
    """All seeds of one run: every value, the worst of each check, and what the paper's claim came to."""

    slug: str
    title: str
    claim: str
    verdict: Verdict
    finding: str
    seconds: float
    seeds: tuple[int, ...]
    parameters: Mapping[str, Any]
    checks: tuple[Check, ...]
    tables: tuple[Table, ...]
    curves: tuple[Curve, ...]
    verdicts: tuple[Verdict, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    machine: str = ""
    quick: bool = False

    @property
    def passed(self) -> bool:
        """Whether every check held for every seed; the verdict has no part in it."""
        return all(check.passed for check in self.checks)

    @classmethod
    def of(cls, reports: Sequence[Report], *, title: str, claim: str, **facts: Any) -> Result:
        """Join the reports of several seeds. Raises ReportError if they do not report the same things."""
        if not reports:
            raise ReportError("a result needs the report of at least one seed")
        first = reports[0]
        if any(report.state is None for report in reports):
            raise ReportError(f"experiment {first.slug!r} gave no verdict")
        for kind, names in (("checks", _check_names), ("curves", _curve_names), ("tables", _table_shapes)):
            if any(names(report) != names(first) for report in reports):
                raise ReportError(f"experiment {first.slug!r}: the {kind} differ from seed to seed")
        verdict, finding = _agree(reports)
        return cls(
            slug=first.slug,
            title=title,
            claim=claim,
            verdict=verdict,
            finding=finding,
            verdicts=tuple(cast(Verdict, report.state) for report in reports),
            checks=tuple(_join_checks(same) for same in zip(*(r.checks for r in reports), strict=True)),
            tables=tuple(_join_tables(same) for same in zip(*(r.tables for r in reports), strict=True)),
            curves=tuple(_join_curves(same) for same in zip(*(r.curves for r in reports), strict=True)),
            **facts,
        )

    def to_json(self) -> dict[str, Any]:
        """The shape of ``carrel run --json``; every number finite, unknown ones None."""
        return {
            "slug": self.slug,
            "title": self.title,
            "claim": self.claim,
            "verdict": self.verdict,
            "finding": self.finding,
            "passed": self.passed,
            "seconds": self.seconds,
            "seeds": list(self.seeds),
            "parameters": dict(self.parameters),
            "checks": [part.to_json() for part in self.checks],
            "tables": [part.to_json() for part in self.tables],
            "curves": [part.to_json() for part in self.curves],
            "versions": dict(self.versions),
            "verdicts": list(self.verdicts),
            "date": self.date,
            "machine": self.machine,
            "quick": self.quick,
        }

    def text(self) -> str:
        """``to_json`` as text with one fact, check, table or curve per line, so that a committed result diffs well."""
        return "{\n" + ",\n".join(_json_member(key, value) for key, value in self.to_json().items()) + "\n}\n"

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any]) -> Result:
        """Read ``to_json`` or its text back. Raises ReportError if it is not a result."""
        try:
            d = text if isinstance(text, Mapping) else json.loads(text)
            return cls(
                **{key: d[key] for key in ("slug", "title", "claim", "verdict", "finding", "seconds", "parameters")},
                **{key: d[key] for key in ("versions", "date", "machine", "quick")},
                seeds=tuple(d["seeds"]),
                verdicts=tuple(d["verdicts"]),
                checks=tuple(Check.from_json(part) for part in d["checks"]),
                tables=tuple(Table.from_json(part) for part in d["tables"]),
                curves=tuple(Curve.from_json(part) for part in d["curves"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"not a result: {type(error).__name__} {error}") from error


def _agree(reports: Sequence[Report]) -> tuple[Verdict, str]:
    states = [cast(Verdict, report.state) for report in reports]
    if len(set(states)) == 1:
        return states[0], reports[0].finding
    counts = [
        f"{states.count(state)} of {len(states)} seeds: {VERDICTS[state]}" for state in VERDICTS if state in states
    ]
    most = max(VERDICTS, key=lambda state: states.count(cast(Verdict, state)))
    finding = reports[states.index(cast(Verdict, most))].finding
    return "caveat", f"The seeds disagree ({'; '.join(counts)}). {finding}"


def _check_names(report: Report) -> list[tuple[str, float | None, float | None]]:
    return [(check.name, check.low, check.high) for check in report.checks]


def _curve_names(report: Report) -> list[tuple[str, list[tuple[str, str]]]]:
    # repr, because a NaN in x is not equal to itself
    return [(curve.title, [(line.name, repr(line.x)) for line in curve.series]) for curve in report.curves]


def _table_shapes(report: Report) -> list[tuple[str, tuple[str, ...], int]]:
    return [(table.title, table.columns, len(table.rows)) for table in report.tables]


def _join_checks(same: Sequence[Check]) -> Check:
    values = tuple(value for check in same for value in check.values)
    return Check(same[0].name, same[0].low, same[0].high, values)


def _join_curves(same: Sequence[Curve]) -> Curve:
    lines = tuple(
        Series(line[0].name, line[0].x, tuple(ys for one in line for ys in one.seeds))
        for line in zip(*(curve.series for curve in same), strict=True)
    )
    return Curve(same[0].title, same[0].x_label, same[0].y_label, same[0].log, lines)


def _join_tables(same: Sequence[Table]) -> Table:
    joined = [
        [_join_cells(cells) for cells in zip(*rows, strict=True)]
        for rows in zip(*(table.rows for table in same), strict=True)
    ]
    rows = tuple(tuple(cell for cell, _ in row) for row in joined)
    spread = tuple(tuple(half for _, half in row) for row in joined)
    return Table(same[0].title, same[0].columns, rows, spread)


def _join_cells(cells: Sequence[Cell]) -> tuple[Cell, float | None]:
    """The cell all seeds share, else the mean of numbers with half their range, else the texts side by side."""
    if all(cell == cells[0] and type(cell) is type(cells[0]) for cell in cells):
        return cells[0], None
    if all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in cells):
        numbers = [float(cast(float, cell)) for cell in cells]
        return short(sum(numbers) / len(numbers)), short((max(numbers) - min(numbers)) / 2)
    return " / ".join("–" if cell is None else str(cell) for cell in cells), None


def _json_member(key: str, value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        lines = ",\n".join("  " + json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value)
        return f" {json.dumps(key)}: [\n{lines}\n ]"
    return f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
