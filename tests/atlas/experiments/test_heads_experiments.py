"""The experiments of mla and gqa: their checks notice broken code."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import gqa, mla
from carrel.attention import MLA


@pytest.fixture(autouse=True)
def _quiet():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def test_bytes_of_mla_are_counted_on_tensors():
    assert mla._bytes_kept() == (1152, 65536)


def test_a_wrong_absorption_is_noticed(monkeypatch):
    assert mla._apart() < 1e-12
    right = MLA._absorbed
    monkeypatch.setattr(MLA, "_absorbed", lambda *given: 1.001 * right(*given))
    assert mla._apart() > 1e-6


def test_shared_heads_that_serve_the_wrong_queries_are_noticed(monkeypatch):
    assert gqa._apart(8) < 1e-12
    real = torch.Tensor.repeat_interleave
    monkeypatch.setattr(torch.Tensor, "repeat_interleave", lambda t, *given: real(t, *given).roll(1, 0))
    assert gqa._apart(8) > 1e-3


def test_a_short_run_of_gqa_halves_the_heads_that_are_kept():
    report = gqa.run(seed=0, **load_catalogue()["gqa"].parse({"heads": 4, "tokens": 4096}))
    assert [row[:2] for row in report.tables[0].rows] == [(4, 2048), (2, 1024), (1, 512)]
    assert {check.name.split(" ")[0]: check.passed for check in report.checks}["Bytes"]
