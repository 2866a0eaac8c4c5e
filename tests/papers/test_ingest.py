"""Files become papers, their faults become remarks, and nothing is lost in between."""

from __future__ import annotations

import gzip
import json
import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from carrel.papers.ingest import Format, ImportProgress, UnreadableFile, detect, import_file, starter_papers
from carrel.papers.ingest.arxiv import withdrawn
from carrel.papers.model import Paper
from carrel.papers.store import Store, open_store


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path / "data")
    yield store
    store.close()


def lines(path: Path, *rows: Any) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def listed(identifier: str, day: str = "2024-01-02", **more: Any) -> dict[str, Any]:
    return {
        "day": day,
        "id": identifier,
        "categories": ["cs.LG"],
        "authors": ["Ada Lovelace"],
        "title": f"On {identifier}",
        "comment": None,
        "summary": "An abstract.",
        **more,
    }


SNAPSHOT = {
    "id": "0704.0001",
    "submitter": "Pavel N.",
    "authors": "C. Bal\\'azs, E. L. Berger Jr.",
    "title": "Calculation of prompt\n  diphoton production",
    "comments": "37 pages",
    "journal-ref": "Phys.Rev.D76:013009,2007",
    "doi": "10.1103/PhysRevD.76.013009",
    "report-no": "ANL-HEP-PR-07-12",
    "categories": "hep-ph cs.NA",
    "license": None,
    "abstract": "  A fully differential calculation\nis presented.\n  A second paragraph.\n",
    "versions": [
        {"version": "v1", "created": "Mon, 2 Apr 2007 19:18:42 GMT"},
        {"version": "v2", "created": "Tue, 24 Jul 2007 20:10:27 GMT"},
    ],
    "update_date": "2008-11-26",
    "authors_parsed": [["Bal\\'azs", "C.", ""], ["Berger", "E. L.", "Jr."]],
}


def get(store: Store, key: str) -> Paper:
    with store.begin() as papers:
        return papers.get(key)


def remarks(report: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in report.rejects_file.read_text(encoding="utf-8").splitlines()]


def test_a_daily_row_becomes_a_paper(store: Store, tmp_path: Path) -> None:
    row = listed("2401.00001", categories=["cs.NA", "cs.LG"], comment="9 pages", title="Caf\\'e")
    report = import_file(lines(tmp_path / "f", row), store)
    assert (report.format, report.read, report.new, report.rejects_file) == (Format.DAILY, 1, 1, None)
    assert get(store, "arxiv:2401.00001") == Paper(
        key="arxiv:2401.00001",
        source="daily",
        as_of="2024-01-02",
        title="Café",
        abstract="An abstract.",
        authors=("Ada Lovelace",),
        categories=("math.NA", "cs.LG"),
        comment="9 pages",
        announced=date(2024, 1, 2),
    )


def test_a_paper_keeps_the_first_day_it_was_listed_and_the_newest_text(store: Store, tmp_path: Path) -> None:
    rows = [
        listed("2401.00001"),
        listed("2401.00002"),
        listed("2401.00003", day="2024-01-03"),
        listed("2401.00002", day="2024-01-03", summary="Changed."),
    ]
    report = import_file(lines(tmp_path / "f", *rows[::-1]), store)
    assert (report.read, report.new, report.updated, report.unchanged) == (4, 3, 0, 1)
    paper = get(store, "arxiv:2401.00002")
    assert (paper.announced, paper.announced_seq, paper.abstract) == (date(2024, 1, 2), 0, "Changed.")
    with store.begin() as papers:
        assert [p.arxiv_id for p in papers.on(date(2024, 1, 2), "cs.LG")] == ["2401.00002", "2401.00001"]
        assert [p.arxiv_id for p in papers.on(date(2024, 1, 3), "cs.LG")] == ["2401.00003"]


def test_a_row_of_the_snapshot_becomes_a_paper(store: Store, tmp_path: Path) -> None:
    report = import_file(lines(tmp_path / "f", SNAPSHOT), store)
    assert (report.format, report.new) == (Format.KAGGLE, 1)
    assert get(store, "arxiv:0704.0001") == Paper(
        key="arxiv:0704.0001",
        source="kaggle",
        as_of="2008-11-26",
        title="Calculation of prompt diphoton production",
        abstract="A fully differential calculation is presented.\n\nA second paragraph.",
        authors=("C. Balázs", "E. L. Berger Jr."),
        categories=("hep-ph", "math.NA"),
        version=2,
        submitted=datetime(2007, 4, 2, 19, 18, 42, tzinfo=UTC),
        updated=datetime(2007, 7, 24, 20, 10, 27, tzinfo=UTC),
        announced=date(2007, 4, 4),  # Monday 15:18 in New York: after the deadline
        announced_seq=7040001,
        announced_estimated=True,
        comment="37 pages",
        journal_ref="Phys.Rev.D76:013009,2007",
        doi="10.1103/PhysRevD.76.013009",
    )


def test_a_row_of_the_snapshot_without_what_it_should_have_is_kept_with_a_remark(store: Store, tmp_path: Path) -> None:
    bare = {
        "id": "math/0601001",
        "title": "Bare",
        "versions": [{"version": "v1", "created": "once"}],
        "authors": "A, B",
    }
    report = import_file(lines(tmp_path / "f", bare), store)
    assert (report.new, report.rejected, report.noted) == (1, 0, 1)
    assert "the date of version 1 cannot be read: 'once'" in remarks(report)[0]["reason"]
    paper = get(store, "arxiv:math/0601001")
    assert (paper.version, paper.submitted, paper.announced, paper.authors) == (1, None, None, ("A", "B"))


@pytest.mark.parametrize(
    ("entries", "number", "reason"),
    [
        ([("v1", "Mon, 2 Apr 2007 19:18:42 GMT"), ("v1", "x")], 1, "the date of version 1 cannot be read: 'x'"),
        ([("v1", "Fri, 31 Dec 9999 23:00:00 -0500")], 1, "the date of version 1 cannot be read"),
        ([("v1", "Wed, 01 Jan 1000 00:00:00 GMT")], 1, "the date of version 1 cannot be read"),
        ([("v99999999999999999999", "Mon, 2 Apr 2007 19:18:42 GMT")], None, "a version is called"),
        ([("v-3", "Mon, 2 Apr 2007 19:18:42 GMT")], None, "a version is called"),
    ],
)
def test_versions_that_cannot_be_leave_the_paper_with_a_remark(
    store: Store, tmp_path: Path, entries: list[tuple[str, str]], number: int | None, reason: str
) -> None:
    versions = [{"version": version, "created": created} for version, created in entries]
    report = import_file(
        lines(tmp_path / "f", {**SNAPSHOT, "versions": versions}, SNAPSHOT | {"id": "0704.0002"}), store
    )
    assert (report.new, report.rejected, report.noted) == (2, 0, 1)
    assert reason in remarks(report)[0]["reason"]
    assert get(store, "arxiv:0704.0001").version == number


def test_files_of_several_sources_make_one_paper(store: Store, tmp_path: Path) -> None:
    bib = tmp_path / "b"
    bib.write_text("@article{k, title={From a bib}, eprint={0704.0001}, booktitle={A venue}}", encoding="utf-8")
    daily = lines(tmp_path / "d", listed("0704.0001", day="2026-01-05", title="Newest"))
    for path in (bib, daily, lines(tmp_path / "k", SNAPSHOT)):
        import_file(path, store)
    paper = get(store, "arxiv:0704.0001")
    assert (paper.title, paper.venue, paper.version) == ("Newest", "A venue", 2)
    assert paper.announced == date(2007, 4, 4)  # not the day it was listed again, nineteen years later


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("[1, 2]", "wanted a JSON object, not a list"),
        ("17", "wanted a JSON object, not a number"),
        ("null", "wanted a JSON object, not null"),
        ('{"day": "2024-01-02", "id": "2401.00', "not valid JSON"),
        ("\x00\x01", "not valid JSON"),
        ({"day": "2024-01-02", "title": "t"}, "it has no id"),
        (listed("2401.00001") | {"id": 2401.1}, "lost the zeros"),
        (listed("not an id"), "is no arXiv id"),
        (listed("2401.00001", title="  "), "it has no title"),
        (listed("2401.00001", title=5), "it has no title"),
        (listed("2401.00001", day="yesterday"), "its day is no date such as 2024-01-31: 'yesterday'"),
        (listed("2401.00001") | {"day": 3}, "its day is no date"),
        (listed("2401.00001", day="0001-01-01"), "its day is no date such as 2024-01-31: '0001-01-01'"),
        (listed("2401.00001", day="9999-12-31"), "its day is no date such as 2024-01-31: '9999-12-31'"),
        ({"id": "2401.00001", "title": "t"}, "it has no day"),
    ],
)
def test_a_line_that_cannot_be_used_is_written_down_with_its_reason(
    store: Store, tmp_path: Path, row: Any, reason: str
) -> None:
    path = lines(tmp_path / "list.jsonl", listed("2401.00009"), row, listed("2401.00008"))
    report = import_file(path, store)
    assert (report.read, report.new, report.rejected) == (3, 2, 1)
    assert report.rejects_file == tmp_path / "data" / "list.jsonl.rejects.jsonl"
    (remark,) = remarks(report)
    assert reason in remark["reason"]
    assert remark["line"] == 2
    assert remark["kept"] is False
    assert remark["text"] == (row if isinstance(row, str) else json.dumps(row))[:200]


def test_a_rejected_line_still_takes_its_place_in_the_day(store: Store, tmp_path: Path) -> None:
    import_file(lines(tmp_path / "f", listed("2401.00009"), listed("bad"), listed("2401.00008")), store)
    assert get(store, "arxiv:2401.00008").announced_seq == 2


def test_an_id_is_repaired(store: Store, tmp_path: Path) -> None:
    report = import_file(lines(tmp_path / "f", listed("2401.6769")), store)
    assert (report.new, report.rejected) == (1, 0)
    assert get(store, "arxiv:2401.06769").title == "On 2401.6769"


def test_an_unknown_category_is_kept_and_noted_and_what_is_none_is_left_out(store: Store, tmp_path: Path) -> None:
    row = listed("2401.00001", categories=["cs.QQ", "cs.LG", 7, "no such thing"])
    report = import_file(lines(tmp_path / "f", row), store)
    assert (report.read, report.new, report.rejected, report.noted) == (1, 1, 0, 1)
    (remark,) = remarks(report)
    assert remark["kept"] is True
    assert "'cs.QQ' is a category that is not known here; it was kept" in remark["reason"]
    assert "'no such thing' is no category and was left out" in remark["reason"]
    assert get(store, "arxiv:2401.00001").categories == ("cs.QQ", "cs.LG")


def test_an_import_without_faults_removes_the_rejects_of_the_one_before(store: Store, tmp_path: Path) -> None:
    path = lines(tmp_path / "f", listed("2401.00001"), "{")
    rejects = import_file(path, store, rejects=tmp_path / "new" / "folder").rejects_file
    assert rejects is not None
    assert rejects.parent == tmp_path / "new" / "folder"
    lines(path, listed("2401.00001"))
    assert import_file(path, store, rejects=rejects.parent).rejects_file is None
    assert not rejects.exists()


def test_a_line_beyond_all_measure_is_rejected(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carrel.papers.ingest.streams.LONGEST_LINE", 5000)
    path = lines(tmp_path / "f", listed("2401.00001"), listed("2401.00002", summary="x" * 9000), listed("2401.00003"))
    report = import_file(path, store)
    assert (report.read, report.new, report.rejected) == (3, 2, 1)
    assert remarks(report)[0]["reason"] == "the line is longer than 16 MB"


def test_long_lines_come_in_small_batches_so_that_memory_stays_bounded(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carrel.papers.ingest.files._LARGEST_BATCH", 20_000)
    path = lines(tmp_path / "f", *(listed(f"2401.{n:05}", summary="x" * 9000) for n in range(1, 10)))
    seen: list[ImportProgress] = []
    assert import_file(path, store, on_progress=seen.append).new == 9
    assert [now.read for now in seen] == [3, 6, 9, 9]


def test_a_pipe_is_refused_since_it_can_be_read_but_once(store: Store, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UnreadableFile, match="is no file but a pipe or a device; save it as a file first"):
        import_file(pipe, store)


def test_a_file_that_was_cut_off_is_imported_up_to_there(store: Store, tmp_path: Path) -> None:
    rows = [listed(f"2401.{n:05}", summary=f"{n}" * 100) for n in range(1, 3001)]
    whole = lines(tmp_path / "whole", *rows).read_bytes()
    packed = gzip.compress(whole)
    path = tmp_path / "cut.gz"
    path.write_bytes(packed[: len(packed) // 2])
    report = import_file(path, store)
    assert 1000 < report.new == report.read < 2500
    assert report.broken is not None
    assert report.broken.startswith("cut.gz: its gzip data breaks off at byte")
    assert f"in line {report.new + 1:,};" in report.broken
    with store.begin() as papers:
        assert papers.count() == report.new
    path.write_bytes(packed)
    again = import_file(path, store)
    assert (again.new, again.updated, again.broken) == (3000 - report.new, 0, None)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; wanted a daily listing"),
        (b"\n \n", "is empty"),
        (b"Dear reader,\nthis is a letter.\n", "is of no known format; wanted a daily listing"),
        (b'{"name": "x"}\n', "is of no known format"),
        (b"%PDF-1.5\n\xff\xfe", "is of no known format"),
        (gzip.compress(b"x" * 9)[:6], "nothing in it could be read: .*its gzip data breaks off"),
        (b"\xfd7zXZ\x00rubbish and more rubbish", "nothing in it could be read: .*its xz data is damaged"),
    ],
)
def test_a_file_of_no_known_format_is_refused_in_one_sentence(
    store: Store, tmp_path: Path, content: bytes, sentence: str
) -> None:
    path = tmp_path / "looks-like.jsonl"
    path.write_bytes(content)
    with pytest.raises(UnreadableFile, match=sentence) as raised:
        import_file(path, store)
    assert "\n" not in str(raised.value)
    assert list((tmp_path / "data").glob("*.rejects.jsonl")) == []


def test_the_format_is_found_in_the_content_behind_bad_lines(tmp_path: Path) -> None:
    assert detect(lines(tmp_path / "x.bib", "[]", "{", listed("2401.00001"))) is Format.DAILY
    assert detect(lines(tmp_path / "x.gz", SNAPSHOT)) is Format.KAGGLE
    assert detect(lines(tmp_path / "x.json", "% a comment", " @Book { k, title = 1 }")) is Format.BIBTEX


def test_progress_is_told_after_each_batch(store: Store, tmp_path: Path) -> None:
    path = lines(tmp_path / "f", *(listed(f"2401.{n:05}") for n in range(1, 4501)))
    told: list[ImportProgress] = []
    import_file(path, store, on_progress=told.append)
    assert [(p.read, p.new) for p in told] == [(2000, 2000), (4000, 4000), (4500, 4500)]
    assert told[-1].bytes_read == told[-1].bytes_total == path.stat().st_size


def test_a_report_can_be_written_as_json(store: Store, tmp_path: Path) -> None:
    report = import_file(lines(tmp_path / "f", listed("2401.00001"), "{"), store)
    told = json.loads(json.dumps(report.to_json()))
    assert (told["format"], told["read"], told["new"], told["rejected"]) == ("daily", 2, 1, 1)
    assert Path(told["rejects_file"]) == report.rejects_file


@pytest.mark.parametrize(
    ("comment", "expected"),
    [
        ("This paper has been withdrawn by the author due to an error in Lemma 2", True),
        ("This article has been withdrawn", True),
        ("The paper was temporarily withdrawn", True),
        ("Withdrawn due to a crucial error", True),
        ("this submission is withdrawn", True),
        ("12 pages; supersedes the withdrawn 1201.00001", False),
        ("We study withdrawn liquidity", False),
        (None, False),
    ],
)
def test_a_withdrawal_is_read_from_the_comment(comment: str | None, expected: bool) -> None:
    assert withdrawn(comment) is expected


def test_the_starter_shelf_goes_on_the_shelf(store: Store) -> None:
    shelf = list(starter_papers())
    assert len({p.key for p in shelf}) == len(shelf) > 100
    with store.begin() as papers:
        assert papers.put(shelf).new == len(shelf)
        assert papers.put(shelf).unchanged == len(shelf)
        told = papers.get("arxiv:1706.03762")
    assert told.remark
    assert told.authors[0] == "Ashish Vaswani"


@pytest.mark.slow
def test_the_daily_listings_come_in_whole_and_again_in_any_order_change_nothing(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data/papers/arxiv/daily").glob("*.jsonl.xz"))
    store = open_store(tmp_path)
    reports = [import_file(path, store) for path in files]
    assert sum(r.read for r in reports) == 36_209
    assert sum(r.new for r in reports) == 20_437
    assert sum(r.rejected + r.noted for r in reports) == 0
    with store.begin() as papers:
        assert papers.count() == 20_437
        papers.outbox_done(10**9)
    for path in files[::-1]:
        again = import_file(path, store)
        assert (again.new, again.updated) == (0, 0)
    with store.begin() as papers:
        assert papers.outbox() == []
    store.close()
