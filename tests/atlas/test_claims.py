"""The results in the repository: written by a full run whose checks hold, and by nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from carrel.atlas.claims import run_claims
from carrel.atlas.committed import write_committed
from carrel.atlas.report import Report, Result


def test_a_result_is_committed_only_if_it_is_whole_and_its_checks_hold(tmp_path):
    report = Report("made-up")
    report.check("one", 1, low=1)
    report.verdict("holds", "It does.")
    result = Result.of([report], title="T", claim="C", seconds=1.0, seeds=(0,), parameters={"size": 4})
    path = write_committed(result, tmp_path)
    assert path.name == "made-up.json"
    assert Result.from_json(path.read_text()).to_json() == result.to_json()
    with pytest.raises(ValueError, match="made-up: a quick result is not committed"):
        write_committed(replace(result, quick=True), tmp_path)
    (check,) = result.checks
    with pytest.raises(ValueError, match="made-up: checks do not hold: one"):
        write_committed(replace(result, checks=(replace(check, low=2.0),)), tmp_path)


def test_claims_are_run_and_their_results_shown_by_the_catalogue(workshop, capsys):
    workshop.add("made-up")
    workshop.add("other")
    assert run_claims(["made-up"], catalogue=workshop.catalogue) == []
    assert "✓ made-up: holds" in capsys.readouterr().out
    assert workshop.catalogue.result("made-up").checks[0].values == (4.0, 5.0, 6.0)
    assert workshop.catalogue.result("other") is None


def test_the_quick_form_writes_nothing(workshop):
    workshop.add("made-up")
    assert run_claims(quick=True, catalogue=workshop.catalogue) == []
    assert workshop.catalogue.result("made-up") is None


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_that_fails_is_named_and_the_others_are_still_run(workshop, capsys, jobs):
    workshop.add("a-bad", "def run(*, seed, size):\n    raise ValueError('no')\n")
    workshop.add("b-wrong", workshop.good.replace("low=1", "low=5"))
    workshop.add("c-good")
    assert run_claims(catalogue=workshop.catalogue, jobs=jobs) == [
        "a-bad did not finish",
        "b-wrong: size plus seed is 4, wanted ≥ 5",
    ]
    said = capsys.readouterr().out
    assert "✗ a-bad: a-bad failed with seed 0: no" in said
    assert "✓ c-good" in said
    assert workshop.catalogue.result("b-wrong") is None
    assert workshop.catalogue.result("c-good") is not None


def test_an_unknown_method_is_one_sentence(workshop):
    workshop.add("made-up")
    with pytest.raises(LookupError, match="did you mean made-up"):
        run_claims(["maid-up"], catalogue=workshop.catalogue)
