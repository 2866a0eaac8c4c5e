"""The experiment of concentration: its checks hold, and notice broken measures."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import concentration

SMALL = {"keys": 4096, "dim": 16, "draws": 10_000}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_the_checks_hold():
    report = concentration.run(seed=0, **SMALL)
    assert not failed(report)
    assert report.state == "caveat"


def test_a_wrong_formula_and_measures_that_forget_a_block_are_noticed(monkeypatch):
    right, formula = concentration.attention_concentration, concentration.sparsity

    def forgetful(q, k, kind="exp", **options):
        return right(q, k, kind, **(options | {"causal": False}))

    monkeypatch.setattr(concentration, "attention_concentration", forgetful)
    monkeypatch.setattr(concentration, "sparsity", lambda kind, b, g, n=None: 1.001 * formula(kind, b, g, n))
    assert failed(concentration.run(seed=0, **SMALL)) == {
        "Closed forms against integrals, relative",
        "Running sums against the matrix, relative",
    }
