"""BibTeX entries become papers: of arXiv where they say so, else by DOI or citation key."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.papers.fold import Record
from carrel.papers.ingest import import_file
from carrel.papers.ingest.bibtex import read
from carrel.papers.ingest.report import Remark
from carrel.papers.ingest.streams import Line
from carrel.papers.model import Paper
from carrel.papers.store import open_store


def parse(text: str) -> list[Paper | Remark]:
    items = read(Line(n, line.encode()) for n, line in enumerate(text.splitlines(), 1))
    return [item.build() if isinstance(item, Record) else item for item in items]


def one(text: str) -> Paper:
    (paper,) = parse(text)
    assert isinstance(paper, Paper)
    return paper


def test_an_entry_of_arxiv_joins_the_papers_of_arxiv() -> None:
    assert one(r"""
@string{nips = "Advances in Neural Information Processing Systems"}
@inproceedings{vaswani2017,
  title = {Attention Is {All} You {N}eed --- with $\alpha_{1}$ \& more},
  author = "Vaswani, Ashish and Shazeer, Noam and {The \& Team} and van der Berg, Jr., J{\"o}rg and others",
  booktitle = nips, year = 2017, eprint = {1706.03762v5}, archivePrefix = {arXiv}, primaryClass = {cs.CL},
  abstract = {First.

  Second.}, note = {Best paper}, date-modified = {2020-02-03 10:00:00 +0100}
}""") == Paper(
        key="arxiv:1706.03762",
        source="bibtex",
        as_of="2020-02-03",
        title=r"Attention Is All You Need — with $\alpha_{1}$ & more",
        abstract="First.\n\nSecond.",
        authors=("Ashish Vaswani", "Noam Shazeer", "The & Team", "Jörg van der Berg Jr."),
        categories=("cs.CL",),
        version=5,
        year=2017,
        venue="Advances in Neural Information Processing Systems",
        comment="Best paper",
    )


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ("eprint={hep-th/9901001}", "arxiv:hep-th/9901001"),
        ("eprint={1706.3762}, eprinttype={arxiv}", "arxiv:1706.03762"),
        ("journal={arXiv preprint arXiv:1706.03762}", "arxiv:1706.03762"),
        ("journal={CoRR}, volume={abs/1706.03762}", "arxiv:1706.03762"),
        ("url={https://arxiv.org/abs/1706.03762v2}", "arxiv:1706.03762"),
        ("doi={10.48550/arXiv.1706.03762}", "arxiv:1706.03762"),
        ("doi={https://doi.org/10.1000/ABC.1}", "doi:10.1000/abc.1"),
        ("eprint={PMC12345}, eprinttype={pubmed}", "bibtex:k"),
        ("eprint={nonsense}, doi={10.1/x}", "doi:10.1/x"),
        ("journal={Journal of Things}, volume={1706.03762}", "bibtex:k"),
        ("year={2001}", "bibtex:k"),
    ],
)
def test_the_key_is_the_best_name_there_is(fields: str, key: str) -> None:
    assert one(f"@article{{k, title={{T}}, {fields}}}").key == key


def test_a_preprint_server_is_no_venue() -> None:
    assert one("@article{k, title={T}, journal={arXiv preprint arXiv:1706.03762}}").venue is None
    assert one("@article{k, title={T}, journal={Annals of {T}hings}}").venue == "Annals of Things"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (r"{\'E}tude of Schr{\"o}dinger", "Étude of Schrödinger"),
        (r"de{N}oising {{BERT}} and $\mathbb{R}^{n}$", r"deNoising BERT and $\mathbb{R}^{n}$"),
        (r"pages 1--2, 50\% of~it", "pages 1–2, 50% of it"),
        (r"\emph{so} {\o}re", r"\emph{so} øre"),
    ],
)
def test_a_title_loses_the_braces_and_escapes_of_bibtex_but_not_its_math(written: str, shown: str) -> None:
    assert one(f"@misc{{k, title={{{written}}}}}").title == shown


def test_bad_entries_are_written_down_and_the_others_kept() -> None:
    found = parse("""@article{a, year={2001}}
@article{b, title={Two}}
@article{b, title={Another Two}}
@article{b, title={By its doi}, doi={10.1/b}}
@article{broken, title={Never closed
@article{c, title={First}, title={Last}}
@comment{not an entry}
""")
    reasons = [(item.line, item.reason, item.kept) for item in found if isinstance(item, Remark)]
    assert [p.title for p in found if isinstance(p, Paper)] == ["Two", "By its doi", "Last"]
    assert reasons[0] == (1, "it has no title", False)
    assert reasons[1] == (3, "an entry before it has the citation key 'b' too", False)
    assert (5, True) in [(line, reason.startswith("not valid BibTeX")) for line, reason, _ in reasons]
    assert (6, "it has a field twice; the last one was taken", True) in reasons
    assert len(reasons) == 4


def test_a_file_in_an_old_encoding_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.bib"
    path.write_bytes("@book{k, title={Möbius}}\r\n".encode("latin-1"))
    store = open_store(tmp_path / "data")
    report = import_file(path, store)
    assert (report.format, report.read, report.new) == ("bibtex", 1, 1)
    with store.begin() as papers:
        assert papers.get("bibtex:k").title == "Möbius"
    store.close()
