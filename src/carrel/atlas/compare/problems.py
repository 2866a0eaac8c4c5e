"""What the command line and the site must know of ``carrel.tasks`` without loading it, for it needs torch.

``tests/atlas/test_compare_plan.py`` holds this to the tasks themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from carrel.atlas.parameter import BadParameter


@dataclass(frozen=True, slots=True)
class Problem:
    """A task as one chooses it: its own length, training and batch, and the lengths that it can be made of."""

    name: str
    about: str
    length: int
    steps: int
    batch: int
    low: int
    high: int = 4096
    even: bool = False
    only: tuple[int, ...] = ()

    @property
    def lengths(self) -> str:
        """The lengths it can have, in words: "an even length from 4 to 4096"."""
        if self.only:
            return f"a length of {' or '.join(str(length) for length in self.only)}"
        return f"{'an even' if self.even else 'a'} length from {self.low} to {self.high}"

    def check(self, length: int) -> int:
        """The length again. Raises BadParameter where the task cannot have it."""
        fits = length in self.only if self.only else self.low <= length <= self.high and not (self.even and length % 2)
        if not fits:
            raise BadParameter(f"{self.name} wants {self.lengths}, got {length}", "length")
        return length


PROBLEMS: Mapping[str, Problem] = {
    problem.name: problem
    for problem in (
        Problem("copying", "write down a block of symbols after a fixed delay", 32, 400, 32, 4),
        Problem("selective-copying", "write down symbols scattered among blanks, in order", 32, 1000, 32, 4),
        Problem("induction-heads", "name what followed the special token before", 64, 1000, 32, 3),
        Problem(
            "mqar", "many keys with values; name each key's value when the key returns", 32, 1000, 64, 4, even=True
        ),
        Problem("listops", "work out nested minima, maxima, medians and sums", 64, 1000, 32, 16, 2000),
        Problem(
            "sequential-digits", "name the handwritten digit read pixel by pixel", 64, 1000, 32, 8, 64, only=(8, 64)
        ),
        Problem("copy-first-symbol", "name the first symbol after much noise", 256, 400, 32, 1),
    )
}


def problem(name: str) -> Problem:
    """The task of this name. Raises BadParameter with a near miss."""
    if name not in PROBLEMS:
        near = difflib.get_close_matches(name.lower().replace("_", "-"), PROBLEMS, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(PROBLEMS)}"
        raise BadParameter(f"no task is called {name!r}; {hint}", "task")
    return PROBLEMS[name]
