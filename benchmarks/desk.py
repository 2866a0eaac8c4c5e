"""Time the desk on papers of your own: start, import, search, a list page, memory.

    python -m benchmarks.desk FILE… [--json OUT]

FILE… are what ``carrel import`` takes. Everything happens in a scratch folder. Queries are drawn from the titles of
the imported papers: one to four words each, seeded, so that every run asks the same.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carrel import __version__
from carrel.desk import Desk, open_desk

_QUERIES = 400


def milliseconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return (time.perf_counter() - start) * 1e3


def spread(times: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(times), 3),
        "p95_ms": round(statistics.quantiles(times, n=20)[-1], 3),
        "count": len(times),
    }


def start_cost(runs: int = 20) -> dict[str, float]:
    """``import carrel`` against a bare interpreter, the two interleaved."""
    sides: dict[str, list[float]] = {"pass": [], "import carrel": []}
    for _ in range(runs):
        for code, times in sides.items():
            times.append(milliseconds(lambda code=code: subprocess.run([sys.executable, "-c", code], check=True)))
    bare, ours = (statistics.median(times) for times in sides.values())
    return {"python_ms": round(bare, 1), "with_carrel_ms": round(ours, 1), "added_ms": round(ours - bare, 1)}


def import_cost(desk: Desk, files: list[Path]) -> dict[str, Any]:
    """Rows read, and new papers put into store and index, per second; then the same files again, backwards."""
    start = time.perf_counter()
    first = desk.import_files(files)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    again = desk.import_files(files[::-1])
    seconds_again = time.perf_counter() - start
    rows, new = sum(report.read for report in first), sum(report.new for report in first)
    return {
        "rows": rows,
        "new": new,
        "seconds": round(seconds, 2),
        "rows_per_s": round(rows / seconds),
        "new_per_s": round(new / seconds),
        "changed_again": sum(report.new + report.updated for report in again),
        "seconds_again": round(seconds_again, 2),
    }


def search_cost(desk: Desk) -> dict[str, float]:
    """Queries of one to four words of one title each, the whole of `Index.search` with its later passes."""
    chance = random.Random(0)
    with desk.store.begin() as papers:
        keys = list(papers.all_keys())
        titles = [paper.title for paper in papers.get_many(chance.sample(keys, min(len(keys), _QUERIES)))]
    times = []
    for title in titles:
        words = re.findall(r"\w{3,}", title) or ["attention"]
        query = " ".join(chance.sample(words, min(len(words), chance.randint(1, 4))))
        times.append(milliseconds(lambda query=query: desk.index.search(query, limit=20)))
    return spread(times)


def page_cost(data: Path) -> dict[str, Any]:
    """A list page of at least 100 papers asked of a running server, and the server's memory before any experiment."""
    server = subprocess.Popen(
        [sys.executable, "-m", "carrel", "serve", "--port", "0", "--data", str(data)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        started = time.perf_counter()
        assert server.stdout is not None
        address = next(m[0] for line in server.stdout if (m := re.search(r"http://[\d.:]+/", line)))
        first = milliseconds(lambda: fetch(address))
        opened = time.perf_counter() - started
        lists = {}
        for category in ("cs.CL", "cs"):  # a day of one category, and of a whole archive; 100 of its papers on the page
            page = f"{address}arxiv/{category}?per=100"
            cold = milliseconds(lambda page=page: fetch(page))
            times = [milliseconds(lambda page=page: fetch(page)) for _ in range(30)]
            lists[category] = {"cards": fetch(page).count(b"<article"), "cold_ms": round(cold, 1), **spread(times)}
        status = Path(f"/proc/{server.pid}/status")
        resident = re.search(r"VmRSS:\s+(\d+)", status.read_text())[1] if status.exists() else "0"  # type: ignore[index]
    finally:
        server.terminate()
        server.wait()
    return {
        "start_to_first_page_s": round(opened, 2),
        "first_page_ms": round(first, 1),
        "lists": lists,
        "resident_mb": round(int(resident) / 1024, 1),
    }


def fetch(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:  # our own server on the loopback
        return bytes(answer.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch)
        figures: dict[str, Any] = {"start": start_cost()}
        with open_desk(data) as desk:
            desk.refill()
            figures["import"] = import_cost(desk, options.files)
            figures["search"] = search_cost(desk)
        figures["page"] = page_cost(data)
    about = {"carrel": __version__, "python": platform.python_version(), "machine": platform.machine()}
    report = {"case": "desk", "about": about | {"cores": os.cpu_count()}, "figures": figures}
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
