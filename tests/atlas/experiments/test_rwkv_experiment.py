"""The experiment of rwkv: its checks notice broken code, and the verdict follows the times and the accuracies."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import rwkv as experiment
from carrel.atlas.report import listening
from carrel.recurrent import rwkv4

SMALL = {"context": 256, "length": 4, "heads": 1, "steps": 80}


def test_a_short_run_says_how_far_it_is_and_measures_every_side():
    told = []
    threads = torch.get_num_threads()
    with listening(lambda fraction, note: told.append(fraction)):
        report = experiment.run(seed=0, **load_catalogue()["rwkv"].parse(SMALL))
    assert torch.get_num_threads() == threads
    held = {check.name: check.passed for check in report.checks}
    assert all(passed for name, passed in held.items() if not name.startswith("Right by")), held
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    sides = {"RWKV-4", "RWKV-6", "attention"}
    assert [{curve.to_json()["series"][i]["name"] for i in range(3)} for curve in report.curves] == [sides] * 3
    assert [row[1:3] for row in report.tables[0].rows] == [(4096, 66560)] * 5


def test_a_layer_that_forgets_the_token_before_is_noticed(monkeypatch):
    side = experiment._Side("RWKV-4", 0, 4, 1)
    assert side.streaming_error() < 1e-12
    right = rwkv4.token_before
    monkeypatch.setattr(rwkv4, "token_before", lambda x, last: right(x, None))
    assert side.streaming_error() > 1e-3


def test_a_wrong_rate_is_noticed(monkeypatch):
    side = experiment._Side("RWKV-4", 0, 4, 1)
    assert side.sums_error() < 1e-12
    right = rwkv4.wkv
    monkeypatch.setattr(rwkv4, "wkv", lambda w, *others: right(1.01 * w, *others))
    assert side.sums_error() > 1e-6


def judged(decoding=(1.0, 1.1, 1.0, 4.0), training=(1.0, 1.0), right=(0.9, 1.0)):
    """RWKV's least decoding time early and late, attention's; training of RWKV and attention; both accuracies."""
    one = SimpleNamespace(decoding=list(decoding[:2]), training=[training[0]])
    other = SimpleNamespace(decoding=list(decoding[2:]), training=[training[1]])
    sides = {name: SimpleNamespace(final=(share, 0.0)) for name, share in zip(("RWKV-4", "RWKV-6"), right, strict=True)}
    return experiment._judge({"RWKV-4": one, "RWKV-6": one, "attention": other}, sides)[0]


def test_the_verdict_follows_times_and_accuracies():
    assert judged() == "holds"
    assert judged(decoding=(1.0, 1.6, 1.0, 4.0)) == "not-shown"
    assert judged(decoding=(1.0, 1.0, 1.0, 1.9)) == "not-shown"
    assert judged(training=(2.1, 1.0)) == "caveat"
    assert judged(right=(0.7, 1.0)) == "caveat"
