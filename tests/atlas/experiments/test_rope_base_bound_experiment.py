"""The experiment of rope-base-bound: its checks hold, and they notice a bound that is too high or too low."""

from __future__ import annotations

import pytest

from carrel.atlas.experiments import rope_base_bound as experiment

PARAMETERS = {"longest": "4096", "dim": 128, "tried": 20}


def test_the_checks_hold_and_the_finding_says_where_the_table_is_too_high():
    report = experiment.run(seed=0, **PARAMETERS)
    assert all(check.passed for check in report.checks)
    assert report.state == "caveat"


@pytest.mark.parametrize(("factor", "broken"), [(0.9, "Context served"), (3.0, "Random smaller bases")])
def test_a_wrong_bound_is_noticed(factor, broken, monkeypatch):
    right = experiment.rope_base_bound

    def wrong(*args, **options):
        found = right(*args, **options)
        return found._replace(base=found.base * factor)

    monkeypatch.setattr(experiment, "rope_base_bound", wrong)
    report = experiment.run(seed=0, **PARAMETERS)
    assert [check.name for check in report.checks if not check.passed and check.name.startswith(broken)]
