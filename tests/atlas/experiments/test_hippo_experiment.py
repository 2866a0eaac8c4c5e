"""The experiment of hippo: its checks hold, and they notice a wrong memory."""

from __future__ import annotations

import pytest

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import hippo as experiment
from carrel.recurrent import HiPPO, HiPPOState

PARAMETERS = {"length": 400, "size": 24, "window": 0.25}


def held(report) -> dict[str, bool]:
    return {check.name: check.passed for check in report.checks}


def test_all_checks_hold_and_the_claim_is_seen():
    report = experiment.run(seed=0, **PARAMETERS)
    assert all(held(report).values())
    assert report.state == "holds"
    assert load_catalogue()["hippo"].parse(PARAMETERS) == PARAMETERS


def test_a_memory_that_forgets_is_caught(monkeypatch):
    class Forgetful(HiPPO):
        def forward(self, f, state=None, *, return_last=False):
            c, after = super().forward(f, state, return_last=return_last)
            fade = 0.9
            return c * fade, HiPPOState(after.x * fade, after.pos)

    monkeypatch.setattr(experiment, "HiPPO", Forgetful)
    report = experiment.run(seed=0, **PARAMETERS)
    assert not held(report)["Zero-order hold against the projection of the staircase"]
    assert not held(report)["Whole against pieces"]
    assert report.state != "holds"


def test_the_committed_result_is_that_of_the_card():
    card, result = load_catalogue()["hippo"], load_catalogue().result("hippo")
    assert result is not None
    assert dict(result.parameters) == card.parse({})
    error = next(check for check in result.checks if check.name.startswith("RMS error of bilinear"))
    assert error.worst == pytest.approx(5.88e-4, rel=1e-2)
