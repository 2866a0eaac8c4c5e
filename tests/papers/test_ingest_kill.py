"""An import killed at any moment leaves a store that opens, and run again ends as if nothing had happened."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from carrel.papers.store import open_store

KILLS = int(
    os.environ.get("CARREL_KILLS", "4")
)  # 30 and more by hand: CARREL_KILLS=30 pytest tests/papers/test_ingest_kill.py
CHILD = """
import sys
from pathlib import Path
from carrel.papers.ingest import import_file
from carrel.papers.store import open_store
aliases = {"gau": ["gated attention unit"], "lru": ["LRU"]}
print("ready", flush=True)
store = open_store(Path(sys.argv[1]), aliases=aliases)
for path in sys.argv[2:]:
    import_file(path, store)
"""


def dump(path: Path, seed: int, rows: int) -> Path:
    """A daily listing with repeats, changes, rejected lines and several days."""
    draw = random.Random(seed)
    asides = ["", "The LRU. ", "A gated attention unit. "]
    lines = []
    for n in range(rows):
        number = draw.randrange(rows)
        row = {
            "day": f"2024-01-{2 + n * 20 // rows:02}",
            "id": f"2401.{number:05}" if draw.random() > 0.01 else "none",
            "categories": draw.sample(["cs.LG", "cs.CL", "cs.CV", "math.CO", "cs.QQ"], 2),
            "authors": ["Ada Lovelace", 'Kurt G\\"odel'],
            "title": f"Paper {number}",
            "comment": None,
            "summary": f"Version {draw.randrange(3)}. " + draw.choice(asides) * 9,
        }
        lines.append(json.dumps(row))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def contents(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """Everything but the outbox; and that, too, by what is in it."""
    engine = sa.create_engine(f"sqlite:///{folder / 'carrel.sqlite3'}")
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
        found = {
            name: sorted(map(tuple, connection.exec_driver_sql(f"SELECT * FROM {name}")), key=repr)
            for name in ("paper", "paper_source", "paper_category", "paper_method", "meta", "alembic_version")
        }
        found["waiting"] = connection.exec_driver_sql("SELECT DISTINCT key FROM index_outbox ORDER BY key").all()
    engine.dispose()
    return found


def start(folder: Path, files: list[Path]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(folder), *map(str, files)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def finish(child: subprocess.Popen[str]) -> int:
    assert child.stdout is not None
    child.stdout.close()
    return child.wait()


@pytest.mark.slow
def test_an_import_killed_again_and_again_ends_as_one_that_was_not(tmp_path: Path) -> None:
    files = [dump(tmp_path / f"{seed}.gz", seed, 6000) for seed in (1, 2)]
    began = time.perf_counter()
    assert finish(start(tmp_path / "undisturbed", files)) == 0
    whole = time.perf_counter() - began
    expected = contents(tmp_path / "undisturbed")
    assert len(expected["paper"]) > 4000
    assert len(expected["paper_method"]) > 1000

    draw = random.Random(3)
    killed = 0
    for attempt in range(10 * KILLS):
        child = start(tmp_path / "killed", files if attempt % 2 else files[::-1])
        time.sleep(draw.uniform(0, whole))
        child.send_signal(signal.SIGKILL)
        killed += finish(child) == -signal.SIGKILL
        store = open_store(tmp_path / "killed")  # opens at once, whatever was left
        with store.begin() as papers:
            assert papers.count() <= len(expected["paper"])
        store.close()
        if killed == KILLS:
            break
    assert killed == KILLS
    assert finish(start(tmp_path / "killed", files)) == 0
    assert contents(tmp_path / "killed") == expected
