"""The experiment of rope: its check notices broken code, answers stand where asked for, the verdict follows."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import rope


@pytest.mark.parametrize("kind", ["by content", "by place"])
def test_answers_of_rope_stand_where_they_are_asked_for(kind):
    x, y = rope._sequences(kind, 32, 20, torch.Generator().manual_seed(0))
    keys, values = x[..., : rope._KEY], x[..., rope._KEY : -1]
    assert (values[:, -1] == 0).all()
    if kind == "by place":
        found = torch.full((32,), 19 - rope._BACK)
    else:
        found = (keys[:, :-1] @ keys[:, -1:].mT).squeeze(-1).argmax(1)
    assert torch.equal(values[torch.arange(32), found].argmax(-1), y)


@pytest.mark.parametrize(
    ("content", "place", "state"),
    [
        ((0.4, 0.3, 0.6, 0.6), (0.3, 0.3, 0.9, 0.9), "holds"),
        ((0.4, 0.7, 0.5, 0.6), (0.3, 0.3, 0.4, 0.9), "caveat"),
        ((0.4, 0.7, 0.5, 0.6), (0.3, 0.2, 0.3, 0.9), "caveat"),
        ((0.4, 0.4, 0.4, 0.4), (0.3, 0.3, 0.3, 0.3), "caveat"),
    ],
)
def test_the_verdict_of_rope_follows_what_was_found(content, place, state):
    last = {
        kind: dict(zip(rope._NAMES, share, strict=True))
        for kind, share in zip(rope._KINDS, (content, place), strict=True)
    }
    assert rope._judgement(last, {"by content": 0.8, "by place": 1.0})[0] == state
    assert rope._judgement(last, {"by content": 0.3, "by place": 1.0})[0] == "not-shown"


def test_turned_products_that_depend_on_the_place_are_noticed(monkeypatch):
    rules = {"as trained": None}
    assert rope._relative_error(rules) < 1e-12
    real = rope.RoPE.__call__
    monkeypatch.setattr(rope.RoPE, "__call__", lambda self, x, pos: real(self, x, pos) + 1e-4 * pos[:, None])
    assert rope._relative_error(rules) > 1e-6
