"""The experiments of s4d and s5: where rates start, tuned alike on every side."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn", reason="the experiments read scikit-learn's digits (pip install 'carrel[lab]')")

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import digit_training, s4d, s5
from carrel.recurrent import S4D

SMALL = {"width": 4, "state_dim": 8, "steps": 20, "sweep": 5}
EXPERIMENTS = {"s4d": s4d, "s5": s5}


@pytest.mark.parametrize("slug", EXPERIMENTS)
def test_checks_hold_even_where_hardly_anything_was_learnt(slug):
    report = EXPERIMENTS[slug].run(seed=0, **SMALL)
    assert [check.name for check in report.checks if not check.passed] == []
    assert load_catalogue()[slug].parse(SMALL) == SMALL
    assert len(report.tables[0].rows) == (4 if slug == "s4d" else 3)


@pytest.mark.parametrize("slug", EXPERIMENTS)
def test_the_committed_result_is_that_of_the_card(slug):
    card, result = load_catalogue()[slug], load_catalogue().result(slug)
    assert result is not None
    assert result.passed
    assert dict(result.parameters) == card.parse({})


def test_the_parts_of_the_digits_do_not_meet():
    digits = digit_training.Digits(3)
    parts = [part[0].flatten(1) for part in (digits.unseen, digits.held, digits.seen)]
    assert [len(part) for part in parts] == [360, 200, 1237]
    assert torch.cdist(parts[0], torch.cat(parts[1:])).min() > 0  # and no image is there twice
    assert torch.cdist(parts[1], parts[2]).min() > 0


def test_a_side_takes_the_pair_of_rates_that_is_best_on_the_held_out_part(monkeypatch):
    digits = digit_training.Digits(0)
    seen = []
    monkeypatch.setattr(digits, "train", lambda model, steps, rate, slow: seen.append((steps, rate, slow)) or [0.0])
    scores = iter([0.2, 0.5, 0.4, 0.1, 0.9])
    monkeypatch.setattr(digits, "right", lambda model, part: next(scores))
    side = digits.tuned(lambda dim: S4D(dim, 4), 4, steps=7, sweep=3)
    pairs = [(rate, slow) for rate in digit_training.RATES for slow in digit_training.SLOW]
    assert seen == [(3, *pair) for pair in pairs] + [(7, *pairs[1])]
    assert (side.right, side.rate, side.slow, side.swept) == (0.9, *pairs[1], 0.5)


def test_rates_and_steps_learn_at_their_own_rate_and_without_decay():
    """A step with learning rate 0 for them moves everything else and nothing of theirs."""
    digits = digit_training.Digits(0)
    model = digits.model(lambda dim: S4D(dim, 4), 4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    digits.train(model, 3, 1e-2, 1e-30)
    for name, p in model.named_parameters():
        own = name.rpartition(".")[2] in {"log_dt", "A_log", "A_imag"}
        assert torch.equal(p, before[name]) == own, name
