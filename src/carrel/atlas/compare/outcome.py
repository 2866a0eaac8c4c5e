"""What a comparison found: one side a mixer, every seed's number kept; and the tables and figures made of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from carrel.atlas.parts import Cell, Curve, ReportError, Series, Table, cell, finite, number


@dataclass(frozen=True, slots=True)
class Side:
    """One mixer. Shares are of answers, from 0 to 1; ``sweep`` is rate and loss (None: no number came out)."""

    label: str
    module: str
    options: Mapping[str, Any]
    mlp: float
    right: tuple[float, ...]  # by seed, on fresh sequences
    rate: float
    sweep: tuple[tuple[float, float | None], ...]
    parameters: int
    training_tokens_per_s: float
    decoding_tokens_per_s: float
    state_bytes: int
    peak_bytes: int | None
    step_s: float
    at: tuple[int, ...] = ()  # steps at which it was looked at
    on_the_way: tuple[tuple[float, ...], ...] = ()  # by seed, the share right then
    token_bytes: int = 0  # that a further token adds to the state

    @property
    def mean(self) -> float:
        return sum(self.right) / len(self.right)

    @property
    def worst(self) -> float:
        return min(self.right)

    @property
    def edge(self) -> str:
        """ "smaller" or "larger" where the chosen rate is the last of the sweep on that side, else empty."""
        rates = [rate for rate, _ in self.sweep]
        return {rates[0]: "smaller", rates[-1]: "larger"}.get(self.rate, "") if len(rates) > 1 else ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """All sides of one comparison, with what was asked and where it ran."""

    plan: Mapping[str, Any]
    chance: float
    sides: tuple[Side, ...]
    seconds: float
    date: str
    machine: str
    versions: Mapping[str, str]

    @property
    def title(self) -> str:
        return f"{self.plan['task']}, length {self.plan['length']}"

    @property
    def seeds(self) -> int:
        return int(self.plan["seeds"])

    @property
    def cautions(self) -> tuple[str, ...]:
        """What a reader must know before trusting the table."""
        found = [
            f"The rate chosen for {side.label}, {number(side.rate)}, lies at the edge of the sweep: "
            f"a {side.edge} one might do better."
            for side in self.sides
            if side.edge
        ]
        if any(side.peak_bytes is None for side in self.sides):
            found.append("Peak memory was not measured: this system does not tell a process its peak anew.")
        return tuple(found)

    @property
    def facts(self) -> str:
        """Size of the runs and the machine, in a line."""
        p = self.plan
        return (
            f"{p['dim']} wide, {p['depth']} blocks, {cell(p['steps'])} steps of {p['batch']} sequences, "
            f"{p['schedule']} schedule. Guessing is right in {100 * self.chance:.3g}% of answers. "
            f"Speeds and memory are those of this machine, one thread: {self.machine}.{self._growth}"
        )

    @property
    def _growth(self) -> str:
        grown = ", ".join(f"{side.label} by {side.token_bytes} bytes" for side in self.sides if side.token_bytes)
        return f" States that grow with every token: {grown}." if grown else ""

    def tables(self) -> tuple[Table, ...]:
        """The table, every seed by itself, and the choice of the learning rates."""
        found = [self._main()]
        if self.seeds > 1:
            seeds = (f"seed {seed}" for seed in range(self.seeds))
            rights: tuple[tuple[Cell, ...], ...] = tuple(
                (side.label, *(_percent(share) for share in side.right)) for side in self.sides
            )
            found.append(Table("Right answers by seed (%)", ("mixer", *seeds), rights))
        return (*found, self._rates())

    def _main(self) -> Table:
        columns = (
            *("mixer", "right (%)", "worst (%)", "parameters", "training (tokens/s)"),
            *("decoding (tokens/s)", "state (bytes)", "memory (MB)"),
        )
        mean = f": mean of {self.seeds} seeds" if self.seeds > 1 else ", one seed"
        return Table(f"Mixers on {self.title}{mean}", columns, tuple(tuple(_row(side)) for side in self.sides))

    def _rates(self) -> Table:
        quarter = cell(max(1, self.plan["steps"] // 4))
        rates = (number(rate) for rate, _ in self.sides[0].sweep)
        rows = (
            (side.label, *(loss for _, loss in side.sweep), number(side.rate) + (", edge" if side.edge else ""))
            for side in self.sides
        )
        title = f"Learning rates: loss after {quarter} steps with a seed of its own (nats)"
        return Table(title, ("mixer", *rates, "chosen"), tuple(rows))

    def curves(self) -> tuple[Curve, ...]:
        """Accuracy against steps, one line per mixer; accuracy against the time of a seed, and against state."""
        lines = [
            Series(side.label, tuple(float(step) for step in side.at), side.on_the_way)
            for side in self.sides
            if side.at
        ]
        share = "share of answers right"
        way = Curve(f"Learning {self.title}", "training steps", share, "", (*lines, *self._guessing(lines)))
        steps = self.plan["steps"]
        costs = (
            ("Accuracy against the time of training", "training one seed (s, one thread)", lambda s: s.step_s * steps),
            ("Accuracy against the size of the state", "state of one sequence (bytes)", lambda s: float(s.state_bytes)),
        )
        return (
            way,
            *(
                Curve(title, label, share, "x", tuple(_point(side, cost(side)) for side in self.sides), points=True)
                for title, label, cost in costs
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data, each mean and worst beside its seeds."""
        sides = []
        for side in self.sides:
            d = asdict(side)
            d["right"] = {"seeds": list(side.right), "mean": side.mean, "worst": side.worst}
            d["sweep"] = [{"rate": rate, "loss": loss} for rate, loss in side.sweep]
            sides.append({**d, "edge": side.edge or None})
        facts = {name: getattr(self, name) for name in ("chance", "seconds", "date", "machine")}
        return {**self.plan, **facts, "versions": dict(self.versions), "cautions": list(self.cautions), "mixers": sides}

    def text(self) -> str:
        return json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | Mapping[str, Any]) -> Outcome:
        """Read ``to_json`` or its text back. Raises ReportError if it is none."""
        try:
            d = dict(json.loads(text) if isinstance(text, str) else text)
            del d["cautions"]
            facts = {name: d.pop(name) for name in ("chance", "seconds", "date", "machine", "versions")}
            return cls(sides=tuple(_side(side) for side in d.pop("mixers")), plan=d, **facts)
        except (KeyError, TypeError, ValueError) as error:
            raise ReportError(f"not a comparison: {type(error).__name__} {error}") from error

    def _guessing(self, lines: list[Series]) -> Iterator[Series]:
        if lines:
            ends = (lines[0].x[0], lines[0].x[-1])
            yield Series("guessing", ends, ((self.chance, self.chance),))


def _row(side: Side) -> Iterator[Cell]:
    yield side.label
    yield _percent(side.mean)
    yield _percent(side.worst)
    yield side.parameters
    yield int(float(f"{side.training_tokens_per_s:.3g}"))
    yield int(float(f"{side.decoding_tokens_per_s:.3g}"))
    yield side.state_bytes
    yield None if side.peak_bytes is None else float(f"{side.peak_bytes / 1e6:.3g}")


def _percent(share: float) -> float:
    return round(100 * share, 1)


def _point(side: Side, x: float) -> Series:
    return Series(side.label, (x,), tuple((share,) for share in side.right))


def _side(d: Mapping[str, Any]) -> Side:
    d = dict(d)
    del d["edge"]
    d["right"] = tuple(d["right"]["seeds"])
    d["sweep"] = tuple((row["rate"], row["loss"]) for row in d["sweep"])
    d["at"], d["on_the_way"] = tuple(d["at"]), tuple(tuple(row) for row in d["on_the_way"])
    return Side(**d)


def best_rate(sweep: Mapping[float, float | None]) -> float:
    """The rate whose loss is least; one that gave no number is never chosen while another did."""
    return min(sweep, key=lambda rate: math.inf if (loss := sweep[rate]) is None or finite(loss) is None else loss)
