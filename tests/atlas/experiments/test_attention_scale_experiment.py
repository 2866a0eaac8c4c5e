"""The experiment of attention-scale: its checks hold, and they notice a wrong closed form and a wrong gradient."""

from __future__ import annotations

import pytest

from carrel.atlas.experiments import attention_scale as experiment

PARAMETERS = {"rows": 100, "longest": 32768, "planted": 5.0}


def test_the_checks_hold_and_the_exact_average_is_set_beside_the_estimate():
    report = experiment.run(seed=0, **PARAMETERS)
    assert all(check.passed for check in report.checks)
    assert report.state == "caveat"


@pytest.mark.parametrize(
    ("name", "broken"), [("attention_scale", "Closed form"), ("gradient_size", "Gradient against")]
)
def test_a_wrong_formula_is_noticed(name, broken, monkeypatch):
    right = getattr(experiment, name)
    monkeypatch.setattr(experiment, name, lambda *args, **options: 1.001 * right(*args, **options))
    report = experiment.run(seed=0, **PARAMETERS | {"rows": 50, "longest": 2048})
    assert [check.name for check in report.checks if not check.passed and check.name.startswith(broken)]
