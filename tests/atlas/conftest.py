"""A small catalogue of experiments that need nothing but the standard library."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from carrel.atlas.catalogue import Catalogue, load_catalogue
from carrel.atlas.runner import Runner

CARD = '''\
slug = "{slug}"
title = "A made-up method"
family = "theory"
module = "carrel.theory.made_up:made_up"
aliases = ["made-up method"]
summary = "Nothing of the kind exists."
equation = "y = x"
claim = "It adds up."
usage = """
made_up(1)
"""
seconds = 3

[[papers]]
id = "2303.06349"
title = "A title"
author = "A. Author"
year = 2023
remark = "It made this up."

[parameters.size]
type = "int"
default = 4
low = 1
high = 100
unit = "things"
help = "how many"
quick = 2
'''

GOOD = """
def run(*, seed, size):
    report = Report("{slug}")
    progress(0.5, "half way")
    report.check("size plus seed", size + seed, low=1)
    report.curve("squares", x=list(range(1, size + 1)), y=[k * k + seed for k in range(size)],
                 x_label="k", y_label="square (units)")
    report.table("sums", ["k", "sum"], [["one", size + seed]])
    report.verdict("holds", "It does.")
    return report
"""


class Workshop:
    """A folder of cards and experiments that a test fills."""

    card = CARD
    good = GOOD

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("cards", "experiments", "results"):
            (folder / name).mkdir()

    def add(self, slug: str, body: str = GOOD, card: str = CARD) -> None:
        (self.folder / "cards" / f"{slug}.toml").write_text(card.replace("{slug}", slug), encoding="utf-8")
        source = "from carrel.atlas.report import Report, progress\n" + body.replace("{slug}", slug)
        (self.folder / "experiments" / f"{slug.replace('-', '_')}.py").write_text(source, encoding="utf-8")

    @property
    def catalogue(self) -> Catalogue:
        return load_catalogue(self.folder / "cards")


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def runner_of(workshop: Workshop, tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """``runner_of(**limits)`` over the workshop; closed at the end."""
    runners: list[Runner] = []

    def make(**limits: float) -> Runner:
        runners.append(Runner(workshop.catalogue, cache=tmp_path / "cache", **limits))
        return runners[-1]

    yield make
    for runner in runners:
        runner.close()
