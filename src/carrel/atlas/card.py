"""A method's card: what is written about it once, from which page, command line, tests and docs all draw."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carrel.atlas.parameter import BadParameter, Parameter, Value

# The order in which the atlas shows families.
FAMILIES: Mapping[str, str] = {
    "attention": "Attention",
    "recurrent": "Recurrent networks",
    "diffusion": "Diffusion and flows",
    "quantize": "Quantisation",
    "density": "Densities",
    "decoding": "Decoding",
    "tokenize": "Tokenisation",
    "optim": "Optimisation",
    "metrics": "Measures",
    "theory": "Theory",
    "algorithms": "Algorithms",
}


class CardError(ValueError):
    """A card that is not right; the message starts with ``file:line:``."""

    def __init__(self, path: Path, line: int, sentence: str) -> None:
        super().__init__(f"{path}:{line}: {sentence}")
        self.path, self.line = path, line


@dataclass(frozen=True, slots=True)
class PaperReference:
    """A paper on arXiv that the method comes from; ``author`` is the first one, ``remark`` our sentence about it."""

    id: str
    title: str
    author: str
    year: int
    remark: str


@dataclass(frozen=True, slots=True)
class Reference:
    """A source outside arXiv."""

    url: str
    title: str
    year: int
    author: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Peer:
    """Another implementation and its speed as a share of ours."""

    name: str
    ratio: float


@dataclass(frozen=True, slots=True)
class Comparable:
    """How a mixer stands in ``carrel compare``.

    ``options`` go to its constructor besides ``dim``; ``mlp`` is the hidden width of the gated MLP in its block as a
    multiple of dim, 0 for none: a mixer without a nonlinearity of its own needs one.
    """

    options: Mapping[str, Value]
    mlp: float = 0.0


@dataclass(frozen=True, slots=True)
class Card:
    """Everything written about one method."""

    slug: str
    title: str
    family: str
    module: str
    aliases: tuple[str, ...]
    summary: str
    equation: str
    claim: str
    usage: str
    seconds: float
    papers: tuple[PaperReference, ...]
    references: tuple[Reference, ...]
    parameters: tuple[Parameter, ...]
    peers: tuple[Peer, ...]
    path: Path
    compare: Comparable | None = None

    def parse(self, values: Mapping[str, Any], quick: bool = False) -> dict[str, Value]:
        """Values for every parameter: those given (texts or values), checked, and the card's own for the rest.

        Raises BadParameter with one sentence, as in "length must be between 16 and 4096 tokens, got 5".
        """
        names = [parameter.name for parameter in self.parameters]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names) or 'none'}"
                raise BadParameter(f"{self.slug} has no parameter {name!r}; {hint}", name)
        return {
            parameter.name: parameter.parse(values[parameter.name])
            if parameter.name in values
            else parameter.value(quick)
            for parameter in self.parameters
        }
