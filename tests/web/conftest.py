"""A small desk for the pages: forty-five made-up papers over three days, one method whose experiment takes no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
from lxml import html
from starlette.testclient import TestClient

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.report import Report, Result
from carrel.atlas.runner import Runner
from carrel.desk import Desk
from carrel.papers.model import Paper
from carrel.papers.search import open_index
from carrel.papers.store import open_store
from carrel.web.app import create_app

ADDRESS = "http://127.0.0.1:8477"
CARD = """\
slug = "ring-memory"
title = "Ring memory"
family = "recurrent"
module = "carrel.recurrent.ring:Ring"
aliases = ["ring memory"]
summary = "A made-up memory with $h_t$ on a ring."
equation = 'h_t = \\\\lambda \\\\odot h_{t-1} + x_t'
claim = "A ring of width $d$ remembers."
usage = '''
from carrel.recurrent import Ring

y, state = Ring(8)(x)   # "same" numbers
'''
seconds = 3

[[papers]]
id = "2303.06349"
title = "On rings"
author = "A. Author"
year = 2023
remark = "Says that rings remember."

[[references]]
url = "https://example.org/rings"
title = "A page on rings"
year = 2022

[parameters.width]
type = "int"
default = 8
quick = 4
low = 2
high = 64
unit = "numbers"
help = "how wide the ring is"

[parameters.kind]
type = "choice"
default = "ring"
choices = ["ring", "dense"]
help = "how it is drawn"

[parameters.seconds]
type = "float"
default = 0.0
low = 0.0
high = 60.0
unit = "s"
help = "how long to dawdle"

[parameters.broken]
type = "bool"
default = false
help = "fail on purpose"
"""
EXPERIMENT = '''\
"""Takes as long as it is told."""

import time

from carrel.atlas.report import Report, progress


def run(*, seed, width, kind, seconds, broken):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        progress(1 - (end - time.monotonic()) / seconds, f"seed {seed}")
        time.sleep(0.02)
    if broken:
        raise RuntimeError("it broke on purpose")
    report = Report("ring-memory")
    report.check("width", width, low=1)
    memory = {"ring": [0.9**k for k in range(20)], "dense": [0.5**k for k in range(20)]}
    report.curve("Memory over time", x=list(range(20)), y=memory, x_label="steps", y_label="memory")
    report.table("Sizes", ["kind", "width"], [[kind, width]])
    report.verdict("holds", "The ring remembers.")
    return report
'''


def paper(number: int, **fields: object) -> Paper:
    """A made-up paper of June 2026."""
    known = {
        "key": f"arxiv:2606.{number:05d}",
        "source": "daily",
        "as_of": "2026-06-18",
        "title": f"Paper {number} on $h_t = \\lambda h_{{t-1}}$",
        "abstract": f"We study case {number} with \\(x_{number}\\) and a cost of $5 to $6.",
        "authors": ("Ada Byron", "Li Wei"),
        "categories": ("cs.LG", "stat.ML"),
        "announced": date(2026, 6, 18),
        "announced_seq": number,
        "submitted": datetime(2026, 6, 17, tzinfo=UTC),
        "version": 1,
    }
    return Paper(**(known | fields))  # type: ignore[arg-type]


def shelf() -> list[Paper]:
    """What lies on the small desk."""
    papers = [paper(n) for n in range(1, 46)]
    papers[2] = paper(3, title="A ring memory for long sequences")
    papers[3] = paper(4, title="在更长的上下文里，注意力的尺度该是多少", authors=("王小明",))
    papers += [paper(n, announced=date(2026, 6, 17), categories=("cs.CL",)) for n in range(50, 53)]
    papers += [paper(60, announced=date(2026, 5, 29), categories=("cs.CL", "cs.LG"))]
    papers += [Paper(key="doi:10.1000/182", source="bibtex", title="A book", authors=("C. Ex",), year=1999)]
    papers += [
        Paper(
            key="arxiv:2303.06349", source="starter", title="On rings", year=2023, categories=("cs.LG",), remark="Ours."
        )
    ]
    return papers


def result() -> Result:
    """A committed result of the made-up method."""
    reports = []
    for seed in range(3):
        report = Report("ring-memory")
        report.check("remembers", 0.9 + seed / 100, low=0.8)
        report.check("forgets", 0.1, high=0.05 if seed < 0 else 0.3)
        report.curve(
            "Memory over time",
            x=[1, 2, 3],
            y={"ring": [1, 0.9, 0.8 - seed / 50], "dense": [1, 0.3, 0.1]},
            x_label="steps",
            y_label="memory",
        )
        report.curve("A second figure", x=[1, 2], y=[2, 1], x_label="a", y_label="b")
        report.table("Sizes", ["kind", "size"], [["ring", 1.5 + seed]])
        report.verdict("holds", "Rings remember where dense ones forget.")
        reports.append(report)
    facts = {"seconds": 41.0, "seeds": (0, 1, 2), "parameters": {"width": 8}, "versions": {}, "machine": "a laptop"}
    return Result.of(
        reports,
        title="Ring memory",
        claim="A ring of width $d$ remembers.",
        date="2026-06-01T10:00:00+00:00",
        quick=False,
        **facts,
    )


def build_desk(folder: Path, papers: list[Paper]) -> Desk:
    """A desk of its own in ``folder``."""
    for name in ("cards", "experiments", "results", "index"):
        (folder / name).mkdir()
    (folder / "cards/ring-memory.toml").write_text(CARD.replace("\\\\", "\\"), encoding="utf-8")
    (folder / "experiments/ring_memory.py").write_text(EXPERIMENT, encoding="utf-8")
    (folder / "results/ring-memory.json").write_text(result().text(), encoding="utf-8")
    catalogue = load_catalogue(folder / "cards")
    store = open_store(folder / "carrel.sqlite3", aliases=catalogue.aliases())
    index = open_index(folder / "index")
    with store.begin() as shelved:
        shelved.put(papers)
    index.update(store)
    return Desk(folder, store, index, catalogue, Runner(catalogue, cache=folder / "runs"))


def client_of(desk: Desk, **options: object) -> TestClient:
    """A browser without JavaScript, on this machine."""
    return TestClient(create_app(desk), base_url=ADDRESS, follow_redirects=False, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="package")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    with build_desk(tmp_path_factory.mktemp("desk"), shelf()) as made:
        yield made


@pytest.fixture(scope="package")
def client(desk: Desk) -> Iterator[TestClient]:
    with client_of(desk) as made:
        yield made


@pytest.fixture
def page(client: TestClient) -> Callable[..., html.HtmlElement]:
    """``page(path)`` as a tree; the status must be the one given."""

    def read(path: str, status: int = 200) -> html.HtmlElement:
        answer = client.get(path)
        assert answer.status_code == status, answer.text[:600]
        return html.document_fromstring(answer.content)

    return read


@pytest.fixture
def words(page: Callable[..., html.HtmlElement]) -> Callable[..., str]:
    """``words(path)``: what a reader without JavaScript sees, blanks made single."""

    def read(path: str, status: int = 200) -> str:
        return " ".join(page(path, status).body.text_content().split())

    return read


@pytest.fixture(scope="session")
def paper_of() -> Callable[..., Paper]:
    """``paper_of(number, **fields)``: a made-up paper."""
    return paper


@pytest.fixture
def client_with(tmp_path: Path) -> Iterator[Callable[[list[Paper]], TestClient]]:
    """``client_with(papers)``: a browser before a desk that holds these papers alone."""
    desks: list[Desk] = []

    def make(papers: list[Paper]) -> TestClient:
        desks.append(build_desk(tmp_path, papers))
        return client_of(desks[-1])

    yield make
    for desk in desks:
        desk.close()
