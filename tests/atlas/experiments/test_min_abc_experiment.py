"""The experiment of min-abc: its checks hold, and they notice a wrong algorithm."""

from __future__ import annotations

import numpy as np
import pytest

from carrel.algorithms import MinABCBatch
from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import min_abc as experiment

PARAMETERS = {"samples": 400, "decades": 16, "exhaustive": 1000}


def checks(report) -> dict[str, bool]:
    return {check.name.split(",")[0]: check.passed for check in report.checks}


def test_all_checks_hold_and_the_claim_is_seen():
    report = experiment.run(seed=0, **PARAMETERS)
    assert all(checks(report).values())
    assert report.state == "holds"
    assert load_catalogue()["min-abc"].parse(PARAMETERS) == PARAMETERS


def test_sizes_beyond_64_bits_are_drawn_and_solved_in_python_integers():
    size = experiment._Size(21, 8, np.random.default_rng(0))
    assert (size.broken, size.unlike) == (0, 0)
    assert size.steps.mean() > 500


def by_the_obvious_guess(N) -> MinABCBatch:
    """a and b at the square root: right for squares, wrong for most."""
    N = np.asarray(N)
    a = np.array([int(n**0.5) for n in N.ravel().tolist()], dtype=np.int64)
    return MinABCBatch(a + a + N - a * a, a, a, N - a * a, np.ones_like(N))


def test_the_obvious_guess_is_caught(monkeypatch):
    monkeypatch.setattr(experiment, "min_abc_batch", by_the_obvious_guess)
    report = experiment.run(seed=0, **PARAMETERS)
    held = checks(report)
    assert not held["Wrong sums among all N below 1000"]
    assert not held["Compiled answers unlike those in exact integers"]
    assert not held["Power of N in the mean steps"]
    assert held["Answers that do not make up their N"]
    assert report.state == "not-shown"


def test_the_committed_result_is_that_of_the_card():
    card, result = load_catalogue()["min-abc"], load_catalogue().result("min-abc")
    assert result is not None
    assert result.passed
    assert dict(result.parameters) == card.parse({})
    assert result.claim == card.claim
    slope = next(check for check in result.checks if check.name.startswith("Power of N"))
    assert all(abs(value - 1 / 6) <= 0.01 for value in slope.values)
    assert slope.worst == pytest.approx(1 / 6, abs=0.01)
