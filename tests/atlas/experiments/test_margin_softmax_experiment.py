"""The experiment of margin softmax: its checks hold, and notice a broken loss."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import margin_softmax

SMALL = {"dim": 16, "margin": 0.35, "hidden": 32, "steps": 25, "classes": 8000}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_the_checks_hold():
    report = margin_softmax.run(seed=0, **SMALL)
    assert not failed(report)
    assert report.state in ("holds", "caveat", "not-shown")


def test_a_margin_of_the_wrong_sign_and_features_kept_long_are_noticed(monkeypatch):
    right = margin_softmax.margin_softmax_loss

    def broken(z, weight, target, scale=30.0, margin=0.35, kind="cos", **options):
        losses = right(z, weight, target, scale, 0.0, kind, reduction="none") - scale * margin
        losses = losses + 1e-6 * z.square().sum(-1)
        return losses if options.get("reduction") == "none" else losses.mean()

    monkeypatch.setattr(margin_softmax, "margin_softmax_loss", broken)
    assert failed(margin_softmax.run(seed=0, **SMALL)) >= {
        "Loss and gradients against the definition",
        "Least change of a loss as its margin grows",
        "Loss after stretching features and classes, change",
    }
