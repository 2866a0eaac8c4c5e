"""The experiment of lru: its checks notice broken code, both sides get the same start, the verdict follows the bar."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import lru as experiment
from carrel.atlas.report import listening
from carrel.recurrent import LRU

SMALL = {"length": 8, "width": 4, "steps": 20}


def parameters(**values):
    return load_catalogue()["lru"].parse(SMALL | values)


def checks(report) -> dict[str, bool]:
    return {check.name.split(",")[0]: check.passed for check in report.checks}


def test_a_short_run_holds_every_check_says_how_far_it_is_and_draws_both_sides():
    told = []
    state = torch.get_rng_state()
    with listening(lambda fraction, note: told.append(fraction)):
        report = experiment.run(seed=0, **parameters())
    assert all(checks(report).values())
    assert told == sorted(told)
    assert told[-1] == 1
    assert {series.name for series in report.curves[0].series} == {"ring near the circle", "small |λ|", "guessing"}
    assert report.state in ("holds", "caveat", "not-shown")
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_seed_gives_the_same_report_and_another_another():
    first, again, other = (experiment.run(seed=seed, **parameters()) for seed in (3, 3, 4))
    assert (first.checks, first.curves, first.tables) == (again.checks, again.curves, again.tables)
    assert first.curves != other.curves


def test_both_sides_differ_in_the_modulus_of_lambda_alone():
    ring, small = (experiment._Side("", 5, 8, 4, 0.1, inner, outer, 0.3) for inner, outer in ((0.9, 0.999), (0.0, 0.6)))
    for (name, a), (_, b) in zip(ring.model.named_parameters(), small.model.named_parameters(), strict=True):
        assert torch.equal(a, b) != name.endswith(("nu_log", "gamma_log")), name
    assert all(torch.equal(a, b) for a, b in zip(ring.fresh, small.fresh, strict=True))
    assert ring.moduli().min() >= 0.8999
    assert small.moduli().max() <= 0.6001


def test_forgetting_the_state_is_caught(monkeypatch):
    forward = LRU.forward
    monkeypatch.setattr(LRU, "forward", lambda self, x, state=None: forward(self, x, None))
    assert not checks(experiment.run(seed=0, **parameters()))["Whole against pieces"]


def test_a_ring_uniform_in_radius_instead_of_area_is_caught(monkeypatch):
    def reset(self):
        with torch.no_grad():
            radius = self.r_min + (self.r_max - self.r_min) * torch.rand(self.state_dim)
            self.nu_log.copy_(torch.log(-torch.log(radius)))
            self.theta_log.zero_()

    assert experiment._ring_error(0, modes=200_000) < 5
    monkeypatch.setattr(LRU, "reset_parameters", reset)
    assert experiment._ring_error(0, modes=200_000) > 5


@pytest.mark.parametrize(
    ("ring", "small", "verdict"),
    [(0.97, 0.12, "holds"), (0.7, 0.1, "caveat"), (1.0, 0.6, "caveat"), (0.12, 0.1, "not-shown")],
)
def test_verdict_follows_the_bar(monkeypatch, ring, small, verdict):
    monkeypatch.setattr(experiment._Side, "_right", lambda self: ring if "ring" in self.name else small)
    assert experiment.run(seed=0, **parameters()).state == verdict


def test_a_ring_whose_radii_cross_is_told():
    with pytest.raises(ValueError, match="r_min < r_max"):
        experiment.run(seed=0, **parameters(r_min=0.95, r_max=0.9))


def test_the_committed_result_is_that_of_the_card():
    card, result = load_catalogue()["lru"], load_catalogue().result("lru")
    assert result is not None
    assert result.passed
    assert dict(result.parameters) == card.parse({})
    assert result.claim == card.claim
