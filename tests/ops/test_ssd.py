"""ssd: h_t = exp(Δ_t A) h_{t-1} + B_t (Δ_t x_t)', y_t = h_t' C_t, one rate A per head."""

from __future__ import annotations

import re

import pytest
import torch

from carrel.ops import selective_scan, ssd

REAL = torch.float64


def problem(batch=2, heads=4, length=9, width=3, state=5, groups=2):
    torch.manual_seed(0)
    return {
        "x": torch.randn(batch, heads, length, width, dtype=REAL),
        "dt": torch.rand(batch, heads, length, dtype=REAL),
        "A": -torch.rand(heads, dtype=REAL) - 0.1,
        "B": torch.randn(batch, groups, length, state, dtype=REAL),
        "C": torch.randn(batch, groups, length, state, dtype=REAL),
        "h0": torch.randn(batch, heads, state, width, dtype=REAL),
    }


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_is_masked_attention_and_the_recurrence(groups):
    p = problem(groups=groups) | {"h0": None}
    y, last = ssd(**p)
    k, q = (p[name].repeat_interleave(4 // groups, 1) for name in ("B", "C"))
    b = (p["dt"] * p["A"][:, None]).cumsum(-1)
    mask = torch.exp((b.unsqueeze(-1) - b.unsqueeze(-2)).masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf))
    torch.testing.assert_close(y, (q @ k.mT * mask) @ (p["dt"].unsqueeze(-1) * p["x"]), atol=1e-12, rtol=0)
    h = torch.zeros_like(last)
    for t in range(9):
        decay = torch.exp(p["dt"][:, :, t] * p["A"])[..., None, None]
        h = decay * h + k[:, :, t, :, None] * (p["dt"][:, :, t, None] * p["x"][:, :, t])[:, :, None]
    torch.testing.assert_close(last, h, atol=1e-12, rtol=0)


def test_it_is_the_selective_scan_with_one_rate_and_one_step_per_head():
    p = problem(groups=1)
    y, last = ssd(**p)
    beside = (v.transpose(1, 2).flatten(2) for v in (p["x"], p["dt"].unsqueeze(-1).expand_as(p["x"])))
    A = p["A"].repeat_interleave(3).unsqueeze(1).expand(-1, 5)
    h0 = p["h0"].transpose(2, 3).flatten(1, 2)
    wanted, h = selective_scan(*beside, A, p["B"][:, 0], p["C"][:, 0], h0=h0, delta_softplus=False)
    torch.testing.assert_close(y.transpose(1, 2).flatten(2), wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(last.transpose(2, 3).flatten(1, 2), h, atol=1e-12, rtol=0)


def test_a_step_of_0_leaves_the_state_and_an_endless_one_replaces_it():
    p = problem(length=1)
    _, kept = ssd(**p | {"dt": torch.zeros(2, 4, 1, dtype=REAL)})
    torch.testing.assert_close(kept, p["h0"], atol=0, rtol=0)
    long = torch.full((2, 4, 1), 1e4, dtype=REAL)
    _, replaced = ssd(**p | {"dt": long})
    k = p["B"].repeat_interleave(2, 1)[:, :, 0, :, None]
    torch.testing.assert_close(replaced, k * 1e4 * p["x"][:, :, 0, None], atol=1e-10, rtol=0)


def test_gradients_of_every_input():
    inputs = [x.requires_grad_() for x in problem(1, 2, 4, 2, 2, 1).values()]
    assert torch.autograd.gradcheck(ssd, inputs)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x must be (batch, heads, length, P), got (2, 3, 4)"),
        ({"A": torch.tensor([-1.0, -1, 0, -1], dtype=REAL)}, "A must be negative everywhere, its largest entry is 0"),
        ({"A": -torch.ones(3, dtype=REAL)}, "A must have shape (4,), got (3,)"),
        ({"dt": -torch.ones(2, 4, 9, dtype=REAL)}, "every step dt must be at least 0, the least is -1"),
        ({"dt": torch.ones(2, 9, 4, dtype=REAL)}, "dt must have shape (2, 4, 9), got (2, 9, 4)"),
        ({"B": torch.zeros(2, 3, 9, 5, dtype=REAL)}, "groups that divide the 4 heads, got (2, 3, 9, 5)"),
        ({"C": torch.zeros(2, 2, 9, 4, dtype=REAL)}, "C must have shape (2, 2, 9, 5), got (2, 2, 9, 4)"),
        ({"C": torch.zeros(2, 2, 9, 5).long()}, "C must be a real floating-point tensor, got one of torch.int64"),
        ({"B": None}, "B must be a real floating-point tensor, got NoneType"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(wrong, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        ssd(**problem() | wrong)
