"""docs/benchmarks.md says what benchmarks/results/ holds, losses too."""

from __future__ import annotations

import pytest
from benchmarks.page import PAGE, page, results

RESULT = {
    "case": "scan",
    "about": "forward and backward",
    "date": "2026-01-02",
    "threads": 1,
    "machine": {"processor": "A processor"},
    "versions": {"torch": "2.0", "mambapy": "1.2", "numpy": "2"},
    "sides": [
        {"name": "carrel", "median_ms": 1.234, "ratio": 1.0},
        {"name": "mambapy pscan", "median_ms": 9.87, "ratio": 7.9},
    ],
    "absent": {},
    "bars": [{"peer": "mambapy pscan", "low": 8, "ratio": 7.9, "passed": False}],
}


def test_the_page_is_that_of_the_results_that_are_kept():
    if PAGE.read_text(encoding="utf-8") != page(results()):
        pytest.fail("docs/benchmarks.md is not what benchmarks/results/ says: run python -m benchmarks.page")


def test_a_missed_promise_is_told_at_the_top_and_in_its_row():
    written = page([RESULT])
    top, _, below = written.partition("## A processor")
    assert "Of 1 promises 0 hold. Missed:" in top
    assert "scan: mambapy pscan takes 7.9 times as long, promised 8" in top
    assert "| mambapy pscan | 9.87 | 7.9 | 8, missed |" in below
    assert "One thread, 2026-01-02, torch 2.0, mambapy 1.2." in below


def test_no_missed_promise_no_list():
    kept = RESULT | {"bars": [RESULT["bars"][0] | {"passed": True}]}
    assert "Missed" not in page([kept])
    assert "| mambapy pscan | 9.87 | 7.9 | 8 |" in page([kept])
