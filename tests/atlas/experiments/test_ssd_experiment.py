"""The experiment of ssd: its checks notice broken code, every side gets the same data, the verdict follows the bar."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import ssd as experiment
from carrel.atlas.experiments.selective_training import Side
from carrel.atlas.report import listening
from carrel.recurrent import SSD

SMALL = {"length": 8, "symbols": 1, "width": 8, "state_dim": 2, "steps": 80, "longest": 256}


def parameters(**values):
    return load_catalogue()["ssd"].parse(SMALL | values)


def test_a_short_run_says_how_far_it_is_and_draws_every_side():
    told = []
    threads = torch.get_num_threads()
    with listening(lambda fraction, note: told.append(fraction)):
        report = experiment.run(seed=0, **parameters())
    held = {check.name.split(",")[0]: check.passed for check in report.checks}
    assert held["Recurrence against masked attention"]
    assert held["Whole against pieces"]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    names = [{series.name for series in curve.series} for curve in report.curves]
    assert names == [{"SSD", "Mamba", "SSD without selection", "guessing"}, {"recurrence", "matrix"}]
    assert [len(table.rows) for table in report.tables] == [3, 3]
    assert report.state in ("holds", "caveat", "not-shown")
    assert torch.get_num_threads() == threads


def test_a_recurrence_that_is_wrong_is_noticed(monkeypatch):
    side = Side(0, lambda dim: SSD(dim, 2, head_dim=4), 8, 2, 8)
    assert experiment._duality_error(side) < 1e-12
    real = experiment.ssd
    monkeypatch.setattr(experiment, "ssd", lambda x, dt, *rest: real(x, dt + 0.01, *rest))
    assert experiment._duality_error(side) > 1e-6


@pytest.mark.parametrize(
    ("right", "state"),
    [
        ((0.99, 0.99, 0.7), "holds"),
        ((0.92, 1.0, 0.5), "holds"),
        ((0.8, 0.99, 0.5), "caveat"),
        ((0.99, 0.99, 0.95), "not-shown"),
    ],
)
def test_the_verdict_follows_the_gaps(right, state, monkeypatch):
    def train(self, steps, rate, *, looks):
        self.rate, self.at, self.accuracy = rate, [steps], [0.5]
        kinds = {type(m).__name__: m for m in self.model.modules()}
        which = 1 if "Mamba" in kinds else 0 if kinds["SSD"].selective else 2
        self.final = right[which], 1.0

    monkeypatch.setattr(Side, "train", train)
    monkeypatch.setattr(experiment, "_times", lambda longest, seed: ([64], [1.0], [2.0]))
    assert experiment.run(seed=0, **parameters()).state == state
