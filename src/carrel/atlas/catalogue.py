"""The catalogue: one card per method, read from TOML and checked as it is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrel.atlas.card import FAMILIES as FAMILIES
from carrel.atlas.card import Card as Card
from carrel.atlas.card import CardError as CardError
from carrel.atlas.card import Comparable as Comparable
from carrel.atlas.card import PaperReference as PaperReference
from carrel.atlas.card import Peer as Peer
from carrel.atlas.card import Reference as Reference
from carrel.atlas.cardreader import read_card
from carrel.atlas.parameter import BadParameter as BadParameter
from carrel.atlas.parameter import Parameter as Parameter
from carrel.atlas.result import Result

_HERE = Path(__file__).parent


class UnknownMethod(LookupError):
    """A slug without a card."""

    def __init__(self, slug: str, known: tuple[str, ...]) -> None:
        near = difflib.get_close_matches(slug.lower().replace("_", "-"), known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "carrel methods lists them all"
        super().__init__(f"there is no method called {slug!r}; {hint}")
        self.slug, self.near = slug, tuple(near)


@dataclass(frozen=True, slots=True)
class Group:
    """The methods of one family, by title."""

    family: str
    title: str
    cards: tuple[Card, ...]


class Catalogue(Mapping[str, Card]):
    """All cards by slug, each read when it is first asked for (0.7 ms) and then kept.

    ``experiments`` and ``results`` are the folders that hold the other files of each method. Asking for a card that is
    not right raises CardError, which names file and line; ``values()`` reads them all.
    """

    def __init__(self, cards: Path, *, experiments: Path, results: Path) -> None:
        self._paths = {path.stem: path for path in sorted(cards.glob("*.toml"))}
        self._read: dict[str, Card] = {}
        self.experiments, self.results = experiments, results

    def __getitem__(self, slug: str) -> Card:
        if slug not in self._paths:
            raise UnknownMethod(slug, tuple(self._paths))
        if slug not in self._read:
            self._read[slug] = read_card(self._paths[slug])
        return self._read[slug]

    def __contains__(self, slug: object) -> bool:
        return slug in self._paths

    def get(self, slug: str, default: Any = None) -> Any:
        """The card, or ``default``. Said again because Mapping.get waits for a KeyError."""
        if slug not in self._paths:
            return default
        return self[slug]

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def groups(self) -> tuple[Group, ...]:
        """Families that have methods, always in the same order."""
        by_title = sorted(self.values(), key=lambda card: card.title.casefold())
        groups = (
            Group(family, title, tuple(card for card in by_title if card.family == family))
            for family, title in FAMILIES.items()
        )
        return tuple(group for group in groups if group.cards)

    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Slug -> the phrases that name the method in a text, and ``arxiv:<id>`` for each of its papers."""
        return {slug: card.aliases + tuple(f"arxiv:{paper.id}" for paper in card.papers) for slug, card in self.items()}

    def experiment(self, slug: str) -> Path:
        """The file whose ``run`` shows the method's claim."""
        return self.experiments / f"{self[slug].slug.replace('-', '_')}.py"

    def result(self, slug: str) -> Result | None:
        """The committed result of the method, or None if there is none yet."""
        try:
            text = (self.results / f"{self[slug].slug}.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return Result.from_json(text)


def load_catalogue(
    folder: Path | None = None, *, experiments: Path | None = None, results: Path | None = None
) -> Catalogue:
    """The catalogue of a folder of cards, Carrel's own by default.

    ``experiments`` and ``results`` default to the folders of those names beside ``folder``.
    """
    folder = folder or _HERE / "cards"
    return Catalogue(
        folder,
        experiments=experiments or folder.parent / "experiments",
        results=results or folder.parent / "results",
    )
