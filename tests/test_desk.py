"""The desk with others at the same data folder: nobody is turned away because another process writes the index."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from carrel.desk import open_desk
from carrel.papers.ingest import import_file
from carrel.web.serve import index_kept

HOLD = """
import sys, time
from pathlib import Path
from carrel.papers.generations import Generations
with Generations(Path(sys.argv[1])).writing():
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""
ROW = {"day": "2024-01-02", "id": "2401.00001", "categories": ["cs.LG"], "authors": ["A"], "title": "Zebras"}


def hold(index: Path, seconds: float) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(index), str(seconds)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    return holder


def daily(path: Path) -> Path:
    path.write_text(json.dumps(ROW) + "\n", encoding="utf-8")
    return path


def test_a_desk_opens_while_another_process_writes_the_index(tmp_path: Path) -> None:
    with hold(tmp_path / "index", 60) as holder:
        try:
            with open_desk(tmp_path) as desk:
                assert desk.refill() > 100
                assert desk.browse.home().count > 100
        finally:
            holder.kill()


def test_an_import_waits_for_the_process_that_writes_the_index(tmp_path: Path) -> None:
    with hold(tmp_path / "index", 1), open_desk(tmp_path) as desk:
        desk.import_files([daily(tmp_path / "list.jsonl")])
        assert desk.browse.search("zebras").total == 1


def test_a_running_site_makes_a_deleted_index_again_and_takes_up_what_others_left(tmp_path: Path) -> None:
    with open_desk(tmp_path) as desk:
        desk.refill()
        shutil.rmtree(tmp_path / "index")
        assert desk.browse.search("attention").total == 0
        with index_kept(desk, every=0.05):
            until(lambda: desk.browse.search("attention").total > 0)
            import_file(daily(tmp_path / "list.jsonl"), desk.store)  # as one that was killed before the index had it
            until(lambda: desk.browse.search("zebras").total == 1)


def until(condition, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)
