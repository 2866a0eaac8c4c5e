"""What a worker is asked to do: one experiment, with which parameters, for which seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from carrel.atlas.cache import cache_key, code_version, machine, versions
from carrel.atlas.catalogue import Catalogue
from carrel.atlas.report import Report, Result


@dataclass(frozen=True, slots=True)
class Work:
    """One experiment to be run. ``title`` and ``claim`` go into the result; ``estimate_s`` is for all seeds."""

    slug: str
    title: str
    claim: str
    experiment: Path
    parameters: Mapping[str, Any]
    seeds: tuple[int, ...] = (0, 1, 2)
    quick: bool = False
    estimate_s: float | None = None

    @classmethod
    def of(
        cls, catalogue: Catalogue, slug: str, parameters: Mapping[str, Any], seeds: int = 3, quick: bool = False
    ) -> Work:
        """The experiment of a method's card, with seeds 0, 1, …

        Raises UnknownMethod, CardError, BadParameter, ValueError for seeds outside 1..100.
        """
        card = catalogue[slug]
        values = card.parse(parameters, quick)
        if isinstance(seeds, bool) or not isinstance(seeds, int) or not 1 <= seeds <= 100:
            raise ValueError(f"seeds must be between 1 and 100, got {seeds}")
        estimate = None if quick else card.seconds * seeds / 3
        return cls(
            slug, card.title, card.claim, catalogue.experiment(slug), values, tuple(range(seeds)), quick, estimate
        )

    @property
    def key(self) -> str:
        """Under which its result is kept: what is asked, and the code that would answer now."""
        return cache_key(self.slug, self.parameters, self.seeds, self.quick, self.code)

    @property
    def code(self) -> str:
        """The version of the code that this would run now."""
        return code_version(self.experiment.parent)

    def order(self) -> dict[str, Any]:
        """What the worker process is sent."""
        return {
            "slug": self.slug,
            "experiment": str(self.experiment),
            "seeds": list(self.seeds),
            "parameters": dict(self.parameters),
        }

    def result(self, reports: Sequence[Report], seconds: float) -> Result:
        """The reports of all seeds joined. Raises ReportError if they do not fit together."""
        return Result.of(
            reports,
            title=self.title,
            claim=self.claim,
            seconds=round(seconds, 2),
            seeds=self.seeds,
            parameters=dict(self.parameters),
            versions=versions(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            quick=self.quick,
        )
