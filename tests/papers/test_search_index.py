"""The index on disk: it follows the store, survives being killed, damaged or deleted, and is made anew when needed."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from carrel.papers import documents
from carrel.papers.model import Paper
from carrel.papers.search import IndexBusy, IndexDamaged, open_index
from carrel.papers.store import open_store


def paper(number: int, title: str = "") -> Paper:
    return Paper(
        key=f"arxiv:2401.{number:05d}", source="daily", title=title or f"common word{number}", as_of="2024-01-01"
    )


@pytest.fixture
def shelf(new_shelf):
    shelf = new_shelf()
    shelf.put(*(paper(number) for number in range(1, 21)))
    return shelf


def generation(folder):
    return folder / (folder / "CURRENT").read_text()


def test_an_index_follows_what_is_put_changed_and_removed(tmp_path, shelf):
    index = open_index(tmp_path / "index")
    assert index.search("common").notices == ["The search index is not ready yet."]
    assert index.update(shelf) == 20
    assert shelf.waiting == []
    assert index.search("common").total == 20
    shelf.put(paper(1, "changed"), paper(21), paper(21))
    shelf.remove(paper(2).key)
    assert index.update(shelf) == 2
    assert index.search("common").total == 19
    assert index.search("changed").keys == [paper(1).key]
    assert index.search("word1", sort="newest").total == 0
    assert index.search("word21").keys == [paper(21).key]


def test_days_that_the_engine_cannot_tell_are_indexed_at_the_ends_of_its_clock(tmp_path, shelf):
    old, far = date(1000, 1, 2), date(9999, 12, 31)
    shelf.put(replace(paper(31, "ancient"), announced=old, submitted=datetime(1000, 1, 1, tzinfo=UTC)))
    shelf.put(replace(paper(32, "distant"), announced=far, submitted=datetime(9999, 12, 31, 23, 59, tzinfo=UTC)))
    index = open_index(tmp_path / "index")
    assert index.update(shelf) == 22
    assert index.search("announced:..1700").keys == [paper(31).key]
    assert index.search("submitted:2200..").keys == [paper(32).key]


def test_taking_up_a_change_twice_changes_nothing(tmp_path, shelf):
    index = open_index(tmp_path)
    index.update(shelf)
    shelf.put(paper(1, "changed"))
    before = list(shelf.waiting)
    index.update(shelf)
    shelf.waiting = before  # as if killed after the index was committed and before the store forgot
    assert index.update(shelf) == 1
    assert index.search("changed").total == 1
    assert index.search("common").total == 19


def test_an_update_without_changes_writes_nothing(tmp_path, shelf):
    index = open_index(tmp_path)
    index.update(shelf)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in generation(tmp_path).iterdir())
    assert index.update(shelf) == 0
    assert sorted((file.name, file.stat().st_mtime_ns) for file in generation(tmp_path).iterdir()) == before


def test_a_reader_sees_what_another_index_object_committed(tmp_path, shelf):
    writer, reader = open_index(tmp_path), open_index(tmp_path)
    writer.update(shelf)
    assert reader.search("common").total == 20
    shelf.put(paper(30))
    writer.update(shelf)
    assert reader.search("common").total == 21
    writer.rebuild(shelf)
    shelf.remove(paper(30).key)
    writer.update(shelf)
    assert reader.search("common").total == 20


def test_rebuilding_gives_the_same_answers_and_keeps_one_generation_before(tmp_path, shelf):
    index = open_index(tmp_path)
    index.update(shelf)
    before = index.search("common word7")
    seen = []
    for _ in range(3):
        assert index.rebuild(shelf, lambda done, total: seen.append((done, total))) == 20
    assert index.search("common word7") == before
    assert seen == [(20, 20)] * 3
    assert len([entry for entry in tmp_path.iterdir() if entry.is_dir()]) == 2


def test_a_deleted_index_is_made_again(tmp_path, shelf):
    index = open_index(tmp_path / "index")
    index.update(shelf)
    shutil.rmtree(tmp_path / "index")
    assert index.search("common").notices == ["The search index is not ready yet."]
    assert index.update(shelf) == 20
    assert index.search("common").total == 20


DAMAGES = {
    "CURRENT names nothing": lambda folder: (folder / "CURRENT").write_text("gone"),
    "CURRENT is no text": lambda folder: (folder / "CURRENT").write_bytes(b"\xff\xfe\x00"),
    "CURRENT leads out": lambda folder: (folder / "CURRENT").write_text("../../etc"),
    "meta.json is cut": lambda folder: os.truncate(generation(folder) / "meta.json", 20),
    "meta.json is gone": lambda folder: (generation(folder) / "meta.json").unlink(),
    **{
        f"{kind} files are {how}": (lambda folder, kind=kind, how=how: damage(generation(folder), kind, how))
        for kind in ("term", "idx", "pos", "store", "fast", "fieldnorm")
        for how in ("gone", "cut")
    },
}


def damage(folder, kind, how):
    files = list(folder.glob(f"*.{kind}"))
    assert files
    for file in files:
        if how == "gone":
            file.unlink()
        else:
            os.truncate(file, 10)


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_index_is_made_again_and_no_search_fails(tmp_path, shelf, kind):
    open_index(tmp_path).update(shelf)
    DAMAGES[kind](tmp_path)
    index = open_index(tmp_path)
    assert index.search('common "common word7"').total in (0, 1)
    index.update(shelf)
    assert index.search("common").total == 20
    assert index.search('"common word7"').keys == [paper(7).key]


@pytest.mark.parametrize("kind", ["term", "idx", "store", "fieldnorm"])
def test_overwritten_bytes_lead_to_a_new_index_after_the_search_that_met_them(tmp_path, shelf, kind):
    open_index(tmp_path).update(shelf)
    for file in generation(tmp_path).glob(f"*.{kind}"):
        content = bytearray(file.read_bytes())
        for place in range(len(content) // 3):
            content[place] ^= 0xFF
        file.write_bytes(content)
    index = open_index(tmp_path)
    index.search("common word7")
    index.search('"common word7"')
    index.update(shelf)
    assert index.search("common").total == 20
    assert index.search('"common word7"').keys == [paper(7).key]


def test_an_index_of_another_store_is_made_again(tmp_path, shelf, new_shelf):
    open_index(tmp_path).update(shelf)
    other = new_shelf()
    other.put(paper(99, "elsewhere"))
    other.waiting = []
    index = open_index(tmp_path)
    index.update(other)
    assert index.search("common").total == 0
    assert index.search("elsewhere").total == 1


def test_an_index_of_another_schema_is_made_again(tmp_path, shelf, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(documents, "_RULES", -1)
        open_index(tmp_path).update(shelf)
        old = generation(tmp_path)
    index = open_index(tmp_path)
    assert index.search("common").total == 0
    assert index.update(shelf) == 20
    assert generation(tmp_path) != old


def test_a_new_index_that_lost_papers_is_not_put_in_use(tmp_path, shelf, monkeypatch):
    index = open_index(tmp_path)
    index.update(shelf)
    old = generation(tmp_path)
    monkeypatch.setattr("carrel.papers.search._add", lambda writer, papers, keys: len(keys))
    with pytest.raises(IndexDamaged, match="holds 0 of 20 papers"):
        index.rebuild(shelf)
    assert generation(tmp_path) == old
    assert index.search("common").total == 20


def test_changes_made_while_rebuilding_are_not_lost(tmp_path, shelf):
    index = open_index(tmp_path)
    index.update(shelf)
    index.rebuild(shelf, lambda done, total: shelf.put(paper(50, "latecomer")))
    assert [key for _, key in shelf.waiting] == [paper(50).key]
    index.update(shelf)
    assert index.search("latecomer").total == 1


HOLD = """
import sys, time
from pathlib import Path
from carrel.papers.generations import Generations
with Generations(Path(sys.argv[1])).writing():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writing_process_is_refused_in_one_sentence_and_the_lock_dies_with_its_process(tmp_path, shelf):
    index = open_index(tmp_path)
    index.update(shelf)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        shelf.put(paper(60))
        with pytest.raises(IndexBusy, match="another process is writing to the search index"):
            index.update(shelf)
        assert index.search("common").total == 20
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    index.update(shelf)
    assert index.search("common").total == 21


def test_threads_write_one_after_another_while_others_search(tmp_path, shelf):
    index = open_index(tmp_path)
    index.update(shelf)
    failures = []

    def work(write):
        try:
            for _ in range(5):
                if write:
                    index.update(shelf)
                else:
                    assert index.search("common").total >= 20
        except BaseException as failure:
            failures.append(failure)

    shelf.put(*(paper(number) for number in range(100, 140)))
    threads = [threading.Thread(target=work, args=(write,)) for write in (True, True, False, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert index.search("common").total == 60


CHURN = textwrap.dedent("""
    import sys
    from carrel.papers.model import Paper
    from carrel.papers.search import open_index
    from carrel.papers.store import open_store
    store, index = open_store(sys.argv[1] + "/papers.sqlite3"), open_index(sys.argv[1] + "/index")
    print("ready", flush=True)
    while True:
        with store.begin() as papers:
            count = papers.count()
            papers.put([Paper(key=f"arxiv:2401.{n:05d}", source="daily", title=f"common word{n}", as_of="2024-01-01")
                        for n in range(count + 1, count + 40)])
        index.update(store)
        if count % 400 < 40:
            index.rebuild(store)
""")


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(tmp_path):
    chance = random.Random(3)
    for _ in range(6):
        process = subprocess.Popen([sys.executable, "-c", CHURN, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0.05, 0.7))
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    store, index = open_store(tmp_path / "papers.sqlite3"), open_index(tmp_path / "index")
    index.update(store)
    with store.begin() as papers:
        assert papers.outbox(1) == []
        count = papers.count()
    store.close()
    assert count > 0
    assert index.search("common").total == count
    assert index.search(f"word{count}").total == 1


def test_a_real_store_hands_over_its_papers_and_methods(tmp_path):
    store = open_store(tmp_path / "papers.sqlite3", aliases={"lru": ("linear recurrent unit",)})
    index = open_index(tmp_path / "index")
    with store.begin() as papers:
        papers.put([paper(1, "A linear recurrent unit"), paper(2, "Something else")])
    assert index.update(store) == 2
    assert index.search("method:lru").keys == [paper(1).key]
    with store.begin() as papers:
        papers.relink({"other": ("something",)})
    index.update(store)
    assert index.search("method:lru").total == 0
    assert index.search("method:other").keys == [paper(2).key]
    store.close()
