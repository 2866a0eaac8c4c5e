"""The experiments of the linear road: short runs report what they must, and broken formulas are noticed."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import gla, linear_attention, performer, recent_recall, retention, transnormer

RECALL = {"length": 48, "long": 64, "width": 32, "steps": 60}


def quick(slug, **values):
    return load_catalogue()[slug].parse(values, quick=True)


def held(report):
    return {check.name.split(",")[0]: check.passed for check in report.checks}


@pytest.mark.parametrize(("slug", "experiment"), [("retention", retention), ("gla", gla)])
def test_recall_is_reported_by_distance_for_every_side(slug, experiment):
    threads = torch.get_num_threads()
    report = experiment.run(seed=0, **quick(slug, **RECALL))
    exact = {name: passed for name, passed in held(report).items() if not name.startswith("Right")}
    assert all(exact.values())
    assert len(exact) >= 2
    curve = report.curves[0]
    assert list(curve.series[0].x) == list(recent_recall.DISTANCES)
    assert len(curve.series) == 5
    assert torch.get_num_threads() == threads


def test_the_sparsity_of_a_pure_decay_is_the_known_one_and_a_wrong_formula_is_noticed(monkeypatch):
    found = [retention._sparsity(0.99, n) for n in (100, 1000, 10000)]
    assert found == pytest.approx([0.961, 0.446, 0.141], abs=5e-4)
    right = retention._formula
    assert found == pytest.approx([right(0.99, n) for n in (100, 1000, 10000)], abs=1e-12)
    monkeypatch.setattr(retention, "_formula", lambda g, n: 1.001 * right(g, n))
    assert not held(retention.run(seed=0, **quick("retention", **RECALL)))[
        "Sparsity of a pure decay against its formula"
    ]


def test_a_token_asked_for_lies_as_far_back_as_is_said():
    side = recent_recall.RecallSide(0, lambda dim: retention.Retention(dim), 48, 32)
    x = torch.arange(48).expand(2, 48) % recent_recall.VOCAB
    guesses, truth = side._asked(x)
    assert guesses.shape == (2, 16, 6, recent_recall.VOCAB)
    for i, distance in enumerate(recent_recall.DISTANCES):
        assert (truth[0, :, i] == x[0, 32 - distance : 48 - distance]).all()


def test_both_faults_of_linear_attention_show_and_the_norms_bound_is_its_eps():
    report = transnormer.run(seed=0, **quick("transnormer", keys=512))
    assert all(check.passed for check in report.checks)
    assert report.state == "caveat"


def test_a_wrong_share_is_noticed(monkeypatch):
    monkeypatch.setattr(transnormer, "_share", lambda s: s / (1 + s.sum(-1, keepdim=True)))
    report = transnormer.run(seed=0, **quick("transnormer", keys=512))
    assert not held(report)["Growth of a share's gradient per hundredth of the scores"]


def test_estimates_by_random_features_are_reported_by_kind_and_a_bias_is_noticed(monkeypatch):
    monkeypatch.setattr(performer, "_COUNTS", (16, 64, 256))
    report = performer.run(seed=0, draws=5)
    assert all(check.passed for check in report.checks)
    assert [len(table.rows) for table in report.tables] == [3, 3]
    right = performer.random_features
    monkeypatch.setattr(performer, "random_features", lambda *args: 1.2 * right(*args))
    monkeypatch.setattr(performer, "_errors", lambda *args: performer_errors())
    assert not held(performer.run(seed=0, draws=5))["Mean of the estimates from the kernel"]


def performer_errors():
    flat = {(kind, size): [1.0, 1.0, 1.0] for kind in performer._KINDS for size in performer._SIZES}
    return flat, flat


def test_times_are_taken_at_every_length_and_a_wrong_recurrence_is_noticed(monkeypatch):
    report = linear_attention.run(seed=0, longest=1024, context=2048)
    assert held(report)["Pieces and matrix against the whole"]
    assert list(report.curves[0].series[0].x) == [64, 128, 256, 512, 1024]
    right = linear_attention.linear_attention

    def wrong(q, k, v, state=None, **options):
        return right(q, k, v, None, **options)  # as if nothing had come before

    monkeypatch.setattr(linear_attention, "linear_attention", wrong)
    assert linear_attention._disagreement(torch.Generator().manual_seed(0)) > 1e-3
