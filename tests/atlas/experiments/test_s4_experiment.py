"""The experiment of s4: its ways agree, and a wrong kernel is noticed."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import s4 as experiment

PARAMETERS = {"length": 512, "state_dim": 16, "channels": 2}


def test_all_checks_hold():
    report = experiment.run(seed=0, **PARAMETERS)
    assert [check.name for check in report.checks if not check.passed] == []
    assert report.state in ("holds", "caveat", "not-shown")
    assert load_catalogue()["s4"].parse(PARAMETERS) == PARAMETERS


def test_powers_in_blocks_are_the_powers_step_by_step():
    problem = experiment._Problem(1, 300, 8, 2)
    exact = problem.by_steps(torch.float64)
    torch.testing.assert_close(problem.by_blocks(), exact.float(), atol=1e-5, rtol=0)
    torch.testing.assert_close(problem.by_fractions(torch.float64), exact, atol=1e-10, rtol=0)


def test_a_wrong_kernel_is_caught(monkeypatch):
    right = experiment.dplr_kernel
    monkeypatch.setattr(experiment, "dplr_kernel", lambda *a: right(*a) * (1 + 1e-4))
    report = experiment.run(seed=0, **PARAMETERS)
    failed = [check.name for check in report.checks if not check.passed]
    assert len(failed) == 2
    assert all(name.startswith("Fractions") for name in failed)


def test_the_committed_result_is_that_of_the_card():
    card, result = load_catalogue()["s4"], load_catalogue().result("s4")
    assert result is not None
    assert result.passed
    assert dict(result.parameters) == card.parse({})
    (table,) = result.tables
    assert [row[0] for row in table.rows] == [
        "matrix, step by step",
        "matrix, in blocks",
        "S4, fractions",
        "S4D, powers",
    ]


@pytest.mark.parametrize("length", [16, 130])
def test_short_kernels_are_made_too(length):
    report = experiment.run(seed=2, length=length, state_dim=4, channels=1)
    assert all(check.passed for check in report.checks)
