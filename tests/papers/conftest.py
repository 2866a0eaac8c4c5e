"""Real records for the tests of `papers`, read from the folder beside the checkout."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def daily_rows(shared: Path) -> list[dict[str, Any]]:
    """The rows of the three daily listings, in order: day, id, categories, authors, title, comment, summary."""
    rows: list[dict[str, Any]] = []
    for path in sorted((shared / "data/papers/arxiv/daily").glob("*.jsonl.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            rows.extend(json.loads(line) for line in lines)
    return rows
