"""The experiment of perturb-max: its checks hold, and notice broken weights and draws."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import perturb_max

SMALL = {"entries": 20, "size": 3.0, "points": 128, "draws": 20_000}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_the_checks_hold():
    report = perturb_max.run(seed=0, **SMALL)
    assert not failed(report)
    assert report.state == "caveat"


def test_softmax_in_place_of_every_noise_is_noticed(monkeypatch):
    def plain(x, noise="normal", scale=1.0, points=256, dim=-1, *, normalized=True):
        return torch.softmax(x / scale, dim)

    monkeypatch.setattr(perturb_max, "perturb_max", plain)
    assert failed(perturb_max.run(seed=0, **SMALL)) == {"Largest distance from draws, standard errors"}


def test_draws_that_know_their_piece_only_are_noticed(monkeypatch):
    right = perturb_max.gumbel_max

    def forgetful(x, generator=None, k=1):
        if isinstance(x, torch.Tensor):
            return right(2 * x, generator, k)
        return right([piece.flip(-1) for piece in x], generator, k)

    monkeypatch.setattr(perturb_max, "gumbel_max", forgetful)
    assert failed(perturb_max.run(seed=0, **SMALL)) == {
        "Gumbel-max draws against softmax, standard errors",
        "Draws that change when rows come in pieces",
    }
