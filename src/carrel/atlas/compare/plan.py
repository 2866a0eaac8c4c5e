"""What one comparison is: who, on what, how large, how long; and the pieces of work that it comes to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrel.atlas.catalogue import Catalogue
from carrel.atlas.compare.contender import Contender, contenders
from carrel.atlas.compare.problems import Problem, problem
from carrel.atlas.parameter import Parameter
from carrel.atlas.work import Work

RATES = (0.001, 0.003, 0.01, 0.03, 0.1)  # the sweep, the same for every mixer
SWEEP_SEED = 1000  # of none of the runs that count
_HERE = Path(__file__).parent

# What can be set besides mixers and task. Length, steps and batch default to the task's own (0 here).
SIZES: Mapping[str, Parameter] = {
    parameter.name: parameter
    for parameter in (
        Parameter("length", "int", 0, "tokens that the problem is about", low=1, high=4096, unit="tokens"),
        Parameter("seeds", "int", 3, "how many seeds each mixer is trained with", low=1, high=20),
        Parameter("steps", "int", 0, "training steps of one seed", low=4, high=100_000),
        Parameter("batch", "int", 0, "sequences in a training step", low=1, high=1024),
        Parameter("dim", "int", 32, "width of the residual stream", low=4, high=512),
        Parameter("depth", "int", 2, "blocks", low=1, high=12),
        Parameter("schedule", "choice", "cosine", "learning rate after the warm-up", choices=("cosine", "constant")),
    )
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A comparison, every number decided."""

    contenders: tuple[Contender, ...]
    task: str
    length: int
    seeds: int
    steps: int
    batch: int
    dim: int
    depth: int
    schedule: str

    @classmethod
    def of(cls, mixers: Iterable[str], task: str, given: Mapping[str, Any], catalogue: Catalogue) -> Plan:
        """The plan meant by words and numbers; what is not in ``given`` (or None there) is the task's own.

        Raises BadParameter with one sentence.
        """
        asked = problem(task)
        own = {"length": asked.length, "steps": asked.steps, "batch": asked.batch}
        values: dict[str, Any] = {}
        for name, parameter in SIZES.items():
            said = given.get(name)
            values[name] = own.get(name, parameter.default) if said in (None, "") else parameter.parse(said)
        asked.check(values["length"])
        return cls(contenders(mixers, catalogue), task, **values)

    @property
    def problem(self) -> Problem:
        return problem(self.task)

    @property
    def quarter(self) -> int:
        """Steps of a run of the sweep."""
        return max(1, self.steps // 4)

    def speed(self, side: Contender) -> Work:
        """Measuring one mixer: parameters, speeds, state, memory."""
        common = self._common(side)
        return Work(
            "compare-speed", f"Speed of {side.label}", "One token at a time gives what the whole sequence gives.",
            _HERE / "speed.py", common, seeds=(0,), estimate_s=6.0,
        )  # fmt: skip

    def sweep(self, side: Contender, rate: float) -> Work:
        """One learning rate tried, on the fixed seed at a quarter of the steps."""
        return self._trial(side, rate, self.quarter, SWEEP_SEED, looks=0)

    def trial(self, side: Contender, rate: float, seed: int) -> Work:
        """One seed trained in full."""
        return self._trial(side, rate, self.steps, seed, looks=12)

    def to_json(self) -> dict[str, Any]:
        """The same numbers as data."""
        names = ("task", "length", "seeds", "steps", "batch", "dim", "depth", "schedule")
        return {name: getattr(self, name) for name in names}

    def _trial(self, side: Contender, rate: float, steps: int, seed: int, looks: int) -> Work:
        given = {**self._common(side), "rate": rate, "steps": steps, "schedule": self.schedule, "looks": looks}
        given["held_out"] = seed != SWEEP_SEED
        title, claim = f"{side.label} on {self.task}", "It learns the task better than by guessing."
        return Work("compare-trial", title, claim, _HERE / "trial.py", given, seeds=(seed,))

    def _common(self, side: Contender) -> dict[str, Any]:
        built = side.to_json()
        del built["label"]  # another way to ask for the same is the same work
        return {
            "mixer": built, "task": self.task, "length": self.length, "dim": self.dim, "depth": self.depth,
            "batch": self.batch,
        }  # fmt: skip
