"""The comparisons that the docs show: written between their marks, and the same as the outcomes that come along."""

from __future__ import annotations

from pathlib import Path

import pytest

from carrel.atlas.compare.outcome import Outcome, Side
from carrel.atlas.compare.plan import RATES
from carrel.atlas.compare.record import SHOWN, markdown, written
from carrel.atlas.compare.running import committed

DOCS = Path(__file__).parents[2] / "docs" / "compare.md"


def outcome() -> Outcome:
    sweep = tuple((rate, 1.5) for rate in RATES)
    mamba = Side("mamba", "m:M", {}, 0.0, (1.0, 0.5), 0.1, sweep, 17448, 123456.0, 1234.0, 5632, None, 0.01)
    facts = {"task": "mqar", "length": 64, "seeds": 2, "steps": 800, "batch": 64, "dim": 32, "depth": 2}
    return Outcome({**facts, "schedule": "cosine"}, 0.03, (mamba,), 312.0, "2026-01-02T03:04:05", "A processor", {})


def test_an_outcome_becomes_tables_of_markdown_with_its_command_and_cautions():
    text = markdown(outcome(), ("mamba",))
    assert text.startswith("`carrel compare mamba --task mqar`\n\n| mixer | right (%) |")
    assert "| mamba | 75 | 50 | 17,448 | 123,000 | 1,230 | 5,632 | – |" in text
    assert "| --- | --: | --: |" in text
    assert "a larger one might do better" in text
    assert "It took 5 minutes on 2026-01-02." in text


def test_a_section_is_put_between_its_marks_and_nothing_else_changes():
    page = "a\n<!-- begin mqar -->\nold\n<!-- end mqar -->\nb\n<!-- begin x -->\n<!-- end x -->\n"
    once = written(page, "mqar", "new")
    assert once == "a\n<!-- begin mqar -->\n\nnew\n\n<!-- end mqar -->\nb\n<!-- begin x -->\n<!-- end x -->\n"
    assert written(once, "mqar", "new") == once
    with pytest.raises(ValueError, match=r"docs/compare\.md has no place for copying"):
        written(page, "copying", "new")


@pytest.mark.parametrize("task", SHOWN)
def test_the_docs_show_the_outcomes_that_come_along_whole_and_over_three_seeds(task: str):
    kept = committed(task)
    assert kept is not None, f"make compare TASKS={task}"
    assert kept.seeds >= 3
    assert tuple(side.label for side in kept.sides) == SHOWN[task]
    text = DOCS.read_text(encoding="utf-8")
    assert written(text, task, markdown(kept, SHOWN[task])) == text


def test_selection_is_worth_at_least_a_tenth_in_the_outcome_that_comes_along():
    kept = committed("selective-copying")
    assert kept is not None
    sides = {side.label: side for side in kept.sides}
    assert sides["mamba"].mean >= sides["mamba:selective=false"].mean + 0.1


def test_a_task_without_an_outcome_has_none(tmp_path: Path):
    assert committed("mqar", tmp_path) is None
