"""c(n) in softmax(c q·k): 1/sqrt d, ln n / ln m / sqrt d, and the maxima of an estimate of the gradient."""

from __future__ import annotations

import math

import pytest
import torch

from carrel.attention import SCALE_RULES, attention_scale, gradient_size
from carrel.attention.scale import _moments, lambert_w

COUNTS = torch.tensor([8, 40, 128, 512, 2048, 4096, 8192, 20000, 131072])


def test_entropy_is_standard_at_its_base_and_never_below_its_floor():
    assert attention_scale(512, 64, "entropy").item() == attention_scale(512, 64).item() == 0.125
    n = torch.arange(1, 2000)
    c = attention_scale(n, 64, "entropy", floor=1.0)
    assert (c[:512] == 0.125).all()
    assert (c[512:] > 0.125).all()
    assert attention_scale(1, 64, "entropy").item() == attention_scale(2, 64, "entropy").item() > 0
    ratio = attention_scale(n[2:], 64, "entropy", base=100.0) / torch.log(n[2:].double())
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1 / math.log(100) / 8), atol=1e-14, rtol=0)


def test_the_normal_rule_solves_its_equation_and_has_the_known_values():
    a = attention_scale(COUNTS, 1, "gradmax-normal")
    torch.testing.assert_close(torch.exp(a**2) * (1 + 2 * a**2), COUNTS.double(), rtol=1e-12, atol=0)
    known = [0.99424, 1.43420, 1.71089, 2.00839, 2.27867, 2.40546, 2.52745, 2.67819, 2.97565]
    torch.testing.assert_close(a, torch.tensor(known, dtype=torch.float64), atol=5e-6, rtol=0)
    assert attention_scale(1, 1, "gradmax-normal").item() == 0
    assert torch.isfinite(attention_scale(torch.tensor([10**18]), 1, "gradmax-normal")).all()


@pytest.mark.parametrize("rule", ["gradmax-normal", "gradmax-cosine"])
def test_the_rules_maximise_the_estimate_found_by_trying(rule):
    for n in (2, 40, 4096):
        dim = 16
        best = attention_scale(n, dim, rule).item() * (math.sqrt(dim) if rule == "gradmax-normal" else 1)
        around = torch.linspace(0.9 * best, 1.1 * best, 20_001, dtype=torch.float64)
        if rule == "gradmax-normal":
            g = around - around * torch.exp(around**2) / n
        else:
            g = around * (1 - torch.exp(_moments(2 * around, dim)[0] - 2 * _moments(around, dim)[0]) / n)
        assert abs(around[g.argmax()].item() / best - 1) < 2e-5


@pytest.mark.parametrize(
    ("dim", "known"),
    [
        (32, [11.66, 14.53, 17.54, 19.11, 22.88]),
        (64, [15.05, 18.21, 21.31, 22.85, 26.38]),
        (128, [20.31, 24.21, 27.91, 29.70, 33.68]),
        (256, [28.05, 33.18, 37.95, 40.23, 45.21]),
    ],
)
def test_the_cosine_rule_has_the_known_values(dim, known):
    found = attention_scale(torch.tensor([128, 512, 2048, 4096, 20000]), dim, "gradmax-cosine")
    torch.testing.assert_close(found, torch.tensor(known, dtype=torch.float64), atol=5.1e-3, rtol=0)


def test_the_moments_of_cosines_are_integrals():
    s = torch.linspace(-1, 1, 400_001, dtype=torch.float64)
    for dim, a in ((3, 700.0), (5, 2.0), (64, 30.0), (64, 900.0)):
        weight = (1 - s**2).clamp(min=0) ** ((dim - 3) / 2)
        up = weight * torch.exp(a * (s - 1))
        mean = torch.trapezoid(up, s) / torch.trapezoid(weight, s)
        total, slope = _moments(torch.tensor([a], dtype=torch.float64), dim)
        assert abs(total.item() - (math.log(mean.item()) + a)) < 2e-5
        assert abs(slope.item() - (torch.trapezoid(up * s, s) / torch.trapezoid(up, s)).item()) < 1e-6


def test_for_many_channels_a_cosine_is_a_normal_score():
    ratios = [
        attention_scale(100, d, "gradmax-cosine").item() / (d * attention_scale(100, d, "gradmax-normal").item())
        for d in (16, 64, 256, 1024)
    ]
    gaps = [abs(r - 1) for r in ratios]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.01


def test_the_gradient_is_half_the_jacobian_without_sign_and_ends_at_nothing():
    s = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a in (0.3, 2.0):
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row, a=a: torch.softmax(a * row, -1)))(s)
        torch.testing.assert_close(gradient_size(s, a), jacobian.abs().sum((1, 2)) / 2, rtol=1e-10, atol=0)
    assert (gradient_size(s, 0.0) == 0).all()
    assert (gradient_size(s, 1e4) < 1e-10).all()


def test_lambert_w_undoes_its_definition_over_all_sizes():
    y = torch.linspace(-30, 700, 5001, dtype=torch.float64)
    w = lambert_w(y)
    torch.testing.assert_close(w + torch.log(w), y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", SCALE_RULES)
def test_a_tensor_of_counts_is_its_numbers_one_by_one(rule):
    n = torch.tensor([[1, 2, 3], [700, 5, 2]])
    each = torch.tensor([[attention_scale(int(k), 16, rule).item() for k in row] for row in n], dtype=torch.float64)
    torch.testing.assert_close(attention_scale(n, 16, rule), each, atol=1e-12, rtol=1e-12)
    assert attention_scale(n[:, :0], 16, rule).shape == (2, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: attention_scale(0, 8), "n of at least 1, not 0"),
        (lambda: attention_scale(4, 0), "dim of at least 1, not 0"),
        (lambda: attention_scale(4, 2, "gradmax-cosine"), "dim of at least 3, not 2"),
        (lambda: attention_scale(4, 8, "entropy", base=1.0), "finite base above 1, not 1.0"),
        (lambda: attention_scale(4, 8, "entropy", base=math.nan), "finite base above 1, not nan"),
        (lambda: attention_scale(4, 8, "best"), "a rule among standard, entropy"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
