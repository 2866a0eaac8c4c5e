"""The experiments of sparsemax and entmax: their checks hold, and notice a broken rule."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import entmax, sparsemax

SMALL = {
    sparsemax: {"documents": 60, "topics": 6, "present": 2, "steps": 15},
    entmax: {"rows": 50, "entries": 200, "size": 2.0, "steps": 150},
}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


@pytest.mark.parametrize("experiment", SMALL, ids=lambda e: e.__name__.rpartition(".")[2])
def test_the_checks_hold(experiment):
    report = experiment.run(seed=0, **SMALL[experiment])
    unmet = failed(report) - {"Weights above zero, of 1000 scores of size 2"}
    assert not unmet
    assert report.state in ("holds", "caveat")


def test_a_softmax_in_its_place_is_noticed(monkeypatch):
    monkeypatch.setattr(sparsemax, "sparsemax", lambda x: torch.softmax(x, -1))
    monkeypatch.setattr(sparsemax, "_gradient_outside", lambda x: 0.0)
    assert "Against the threshold found by sorting" in failed(sparsemax.run(seed=0, **SMALL[sparsemax]))


def test_an_alpha_without_gradient_is_noticed(monkeypatch):
    right = entmax.normalize

    def frozen(x, kind="softmax", **options):
        if isinstance(options.get("alpha"), torch.Tensor):
            options["alpha"] = options["alpha"].detach() + 0 * options["alpha"].sum()
        return right(x, kind, **options)

    monkeypatch.setattr(entmax, "normalize", frozen)
    found = failed(entmax.run(seed=0, **SMALL[entmax]))
    assert found == {"Learnt alpha against the teacher's, worst head"}
