"""The experiment of mamba: its checks notice broken code, both sides get the same data, the verdict follows the bar."""

from __future__ import annotations

import pytest
import torch

import carrel.recurrent.mamba
from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import mamba as experiment
from carrel.atlas.report import listening

SMALL = {"length": 8, "symbols": 1, "width": 8, "state_dim": 2, "steps": 80}


def parameters(**values):
    return load_catalogue()["mamba"].parse(SMALL | values)


def checks(report) -> dict[str, bool]:
    return {check.name.split(",")[0]: check.passed for check in report.checks}


def test_a_short_run_says_how_far_it_is_draws_both_sides_and_shows_the_sweep():
    told = []
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with listening(lambda fraction, note: told.append(fraction)):
        report = experiment.run(seed=0, **parameters())
    held = checks(report)
    assert held["Whole against pieces"]
    assert held["Fused kernel against the equations in torch"]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert {series.name for series in report.curves[0].series} == {"selection on", "selection off", "guessing"}
    assert [len(table.rows) for table in report.tables] == [2, 2]
    assert report.state in ("holds", "caveat", "not-shown")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_the_same_seed_gives_the_same_report_and_another_another():
    first, again, other = (experiment.run(seed=seed, **parameters()) for seed in (3, 3, 4))
    assert (first.checks, first.curves, first.tables) == (again.checks, again.curves, again.tables)
    assert first.curves != other.curves
    assert first.tables[1] == other.tables[1], "the learning rates are chosen on a seed of their own"


def test_both_sides_read_the_same_data():
    sides = [experiment._Side(0, selective, 8, 2, 8, 2) for selective in (True, False)]
    for _ in range(2):
        batches = [side._sequences(4) for side in sides]
        assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))


def test_a_scan_that_is_wrong_is_noticed(monkeypatch):
    side = experiment._Side(0, True, 8, 2, 8, 2)
    assert side.kernel_error() < 1e-12
    real = carrel.recurrent.mamba.selective_scan

    def slow(x, delta, *rest):
        return real(x, delta + 0.01, *rest)

    monkeypatch.setattr(carrel.recurrent.mamba, "selective_scan", slow)
    assert side.kernel_error() > 1e-6


@pytest.mark.parametrize(
    ("on", "off", "state"),
    [((0.99, 0.1), (0.7, 0.8), "holds"), ((0.6, 1), (0.4, 1.2), "caveat"), ((0.99, 0.1), (0.95, 0.2), "not-shown")],
)
def test_the_verdict_follows_the_gap(on, off, state, monkeypatch):
    def train(self, steps, rate, *, looks):
        self.rate, self.at, self.accuracy = rate, [steps], [0.5]
        self.final = on if any("x_proj" in name for name, _ in self.model.named_parameters()) else off

    monkeypatch.setattr(experiment._Side, "train", train)
    assert experiment.run(seed=0, **parameters()).state == state
