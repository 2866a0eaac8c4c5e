"""Kept results: found again by the same question, never half written, never wrong after the code changed."""

from __future__ import annotations

import os

import pytest

from carrel.atlas.cache import ResultCache, cache_key, code_version, cores, machine, versions, write_whole
from carrel.atlas.report import Report, Result


@pytest.fixture
def result() -> Result:
    report = Report("made-up")
    report.check("one", 1, low=1)
    report.verdict("holds", "It does.")
    return Result.of([report], title="T", claim="C", seconds=1.0, seeds=(0,), parameters={"size": 4})


def test_what_is_put_is_got_and_nothing_else(tmp_path, result):
    cache = ResultCache(tmp_path / "a" / "b")
    assert cache.get("made-up", "k") is None
    cache.put("k", result)
    assert cache.get("made-up", "k").to_json() == result.to_json()
    assert cache.get("made-up", "other") is None
    assert cache.get("other", "k") is None


@pytest.mark.parametrize("text", [b"", b"{", b'{"slug": 3}', b"\xff\xfe"])
def test_a_damaged_file_counts_as_absent(tmp_path, result, text):
    cache = ResultCache(tmp_path)
    cache.put("k", result).write_bytes(text)
    assert cache.get("made-up", "k") is None


def test_the_oldest_leave_when_there_are_too_many(tmp_path, result):
    cache = ResultCache(tmp_path, keep=2)
    for age, key in enumerate("abc"):
        path = cache.put(key, result)
        os.utime(path, (age, age))
    cache.put("d", result)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == ["made-up-c", "made-up-d"]


def test_a_write_that_fails_leaves_the_old_text_and_no_litter(tmp_path):
    path = tmp_path / "x.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_every_part_of_the_question_is_in_the_key():
    asked = ("lru", {"a": 1, "b": 2}, (0, 1), False, "v1")
    key = cache_key(*asked)
    assert key == cache_key("lru", {"b": 2, "a": 1}, (0, 1), False, "v1")
    others = [
        ("gau", {"a": 1, "b": 2}, (0, 1), False, "v1"),
        ("lru", {"a": 1, "b": 3}, (0, 1), False, "v1"),
        ("lru", {"a": 1, "b": 2}, (0, 1, 2), False, "v1"),
        ("lru", {"a": 1, "b": 2}, (0, 1), True, "v1"),
        ("lru", {"a": 1, "b": 2}, (0, 1), False, "v2"),
    ]
    assert len({key, *(cache_key(*other) for other in others)}) == 6


def test_the_code_version_changes_with_an_experiment_and_only_with_contents(workshop):
    workshop.add("made-up")
    folder = workshop.catalogue.experiments
    first = code_version(folder)
    (folder / "made_up.py").touch()
    assert code_version(folder) == first
    (folder / "made_up.py").write_text("# changed\n")
    assert code_version(folder) != first


def test_facts_about_the_machine_name_no_host():
    assert cores() >= 1
    assert machine().endswith(("core", "cores"))
    assert os.uname().nodename not in machine()
    assert {"carrel", "python", "numpy"} <= set(versions())
