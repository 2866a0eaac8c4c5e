"""The experiment of deer: its checks hold, and they notice wrong states and gradients."""

from __future__ import annotations

import pytest

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import deer as experiment

PARAMETERS = {"length": 128, "width": 2}


def held(report) -> dict[str, bool]:
    return {check.name: check.passed for check in report.checks}


@pytest.mark.slow
def test_all_checks_hold_and_the_claim_has_its_limit(monkeypatch):
    monkeypatch.setattr(experiment, "_GAINS", (0.5, 3.0))
    monkeypatch.setattr(experiment, "_BIASES", (0.0, 4.0))
    report = experiment.run(seed=0, **PARAMETERS)
    assert all(held(report).values())
    assert report.state == "caveat"
    assert load_catalogue()["deer"].parse(PARAMETERS) == PARAMETERS


@pytest.mark.slow
def test_states_and_gradients_that_are_off_are_caught(monkeypatch):
    def off(*args, **options):
        y, info = experiment_deer(*args, **options)
        return y * (1 + 1e-5), info

    experiment_deer = experiment.deer
    monkeypatch.setattr(experiment, "deer", off)
    monkeypatch.setattr(experiment, "_GAINS", (3.0,))
    monkeypatch.setattr(experiment, "_BIASES", (0.0,))
    found = held(experiment.run(seed=0, **PARAMETERS))
    assert not found["States against the loop, float64, three cells"]
    assert not found["Gradients against backpropagation through time"]
    assert not found["States of the GRU in float32 against the loop in float64"]
    assert not found["and gives the loop's states"]


def test_the_committed_result_is_that_of_the_card():
    card, result = load_catalogue()["deer"], load_catalogue().result("deer")
    assert result.parameters == card.parse({})
