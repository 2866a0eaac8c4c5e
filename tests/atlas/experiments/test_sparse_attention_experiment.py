"""The experiment of sparse-attention: its checks hold, and notice a pattern that is not the mask's."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import sparse_attention as experiment
from carrel.attention import SparsePattern

SMALL = {"length": 64, "rounds": 1, "longest": 512}


@pytest.fixture(autouse=True)
def _threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_the_checks_hold():
    assert not failed(experiment.run(seed=0, **SMALL))


def test_a_pattern_that_forgets_is_noticed(monkeypatch):
    right = SparsePattern.__call__

    def short(self, batch, head, i, j):
        return right(self, batch, head, i, j) & (i - j < 20)

    monkeypatch.setattr(SparsePattern, "__call__", short)
    found = failed(experiment.run(seed=0, **SMALL))
    assert "Against a mask over all pairs, float64" in found
    assert "Pairs that two strided layers join, share" in found
