"""p_i = P[argmax_j (x_j + sigma e_j) = i] as an integral."""

from __future__ import annotations

import math
import re

import pytest
import torch

from carrel.attention import NOISES, perturb, perturb_max

REAL = torch.float64
SMOOTH = ("gumbel", "normal", "logistic", "exponential")
X = torch.tensor([1.2, 0.3, -0.5, 2.0, 0.0], dtype=REAL)
every_noise = pytest.mark.parametrize("noise", NOISES)


def rows(n=6, count=4, size=1.0):
    return size * torch.randn(count, n, generator=torch.Generator().manual_seed(0), dtype=REAL)


def inverse(noise, w):
    """The quantile function of a noise."""
    return {
        "gumbel": lambda: -torch.log(-torch.log(w)),
        "normal": lambda: torch.special.ndtri(w),
        "logistic": lambda: torch.logit(w),
        "uniform": lambda: w,
        "exponential": lambda: -torch.log1p(-w),
        "laplace": lambda: torch.where(w < 0.5, torch.log(2 * w), -torch.log(2 * (1 - w))),
    }[noise]()


def below(noise, z):
    """The distribution function of a noise."""
    return {
        "gumbel": lambda: torch.exp(-torch.exp(-z)),
        "normal": lambda: torch.special.ndtr(z),
        "logistic": lambda: torch.sigmoid(z),
        "uniform": lambda: z.clamp(0, 1),
        "exponential": lambda: -torch.expm1(-z.clamp(min=0)),
        "laplace": lambda: torch.where(z < 0, torch.exp(z) / 2, 1 - torch.exp(-z) / 2),
    }[noise]()


def by_quantiles(x, noise, count):
    """E over the own noise of the chance that no other score is above: the mean over its quantiles."""
    e = inverse(noise, (torch.arange(count, dtype=REAL) + 0.5) / count)
    apart = x[..., :, None, None] - x[..., None, :, None] + e
    chance = below(noise, apart)
    own = torch.eye(x.shape[-1], dtype=torch.bool)[:, :, None]
    return torch.where(own, 1.0, chance).prod(-2).mean(-1)


@every_noise
def test_it_is_the_mean_over_the_quantiles_of_the_own_noise(noise):
    x = rows()
    wanted = by_quantiles(x, noise, 20_000)
    atol = {"uniform": 1e-5, "laplace": 1e-5, "normal": 1e-6}.get(noise, 1e-7)  # corners; and what the mean misses
    torch.testing.assert_close(perturb_max(x, noise), wanted / wanted.sum(-1, keepdim=True), atol=atol, rtol=0)


def test_gumbel_noise_makes_softmax_to_rounding():
    for size in (1.0, 30.0):
        x = rows(n=50, size=size)
        torch.testing.assert_close(perturb_max(x, "gumbel"), torch.softmax(x, -1), atol=1e-14, rtol=0)
    torch.testing.assert_close(perturb_max(X, "gumbel", 3.0), torch.softmax(X / 3, -1), atol=1e-14, rtol=0)


def test_known_values_of_normal_noise():
    known = torch.tensor([0.2461, 0.0616, 0.0129, 0.6437, 0.0357], dtype=REAL)
    torch.testing.assert_close(perturb_max(X), known, atol=5e-5, rtol=0)
    wide = torch.tensor([0.2598, 0.0910, 0.0294, 0.5588, 0.0610], dtype=REAL)
    torch.testing.assert_close(perturb_max(X, scale=math.pi / math.sqrt(6)), wide, atol=5e-5, rtol=0)


def test_two_scores_have_closed_forms():
    d = torch.linspace(-6, 6, 25, dtype=REAL)
    two = torch.stack([d, torch.zeros_like(d)], -1)
    torch.testing.assert_close(perturb_max(two)[:, 0], torch.special.ndtr(d / math.sqrt(2)), atol=1e-14, rtol=0)
    tail = torch.exp(-d.abs()) / 2
    exponential = torch.where(d > 0, 1 - tail, tail)  # the difference of two exponentials is Laplace's
    torch.testing.assert_close(perturb_max(two, "exponential")[:, 0], exponential, atol=1e-13, rtol=0)
    laplace = torch.where(d > 0, 1 - tail * (1 + d.abs() / 2), tail * (1 + d.abs() / 2))
    torch.testing.assert_close(perturb_max(two, "laplace")[:, 0], laplace, atol=3e-5, rtol=0)
    triangle = (1 - d.abs()).clamp(min=0).square() / 2
    uniform = torch.where(d > 0, 1 - triangle, triangle)
    torch.testing.assert_close(perturb_max(two, "uniform")[:, 0], uniform, atol=1e-5, rtol=0)


@every_noise
def test_draws_agree(noise):
    generator, draws = torch.Generator().manual_seed(1), 400_000
    e = inverse(noise, torch.rand(draws, 5, generator=generator, dtype=REAL).clamp(min=1e-300))
    found = torch.bincount((X + 0.7 * e).argmax(-1), minlength=5) / draws
    p = perturb_max(X, noise, 0.7)
    assert ((found - p).abs() <= 4 * (p * (1 - p) / draws).sqrt() + 1e-6).all()


@every_noise
def test_it_sums_to_one_ignores_shifts_and_keeps_the_order(noise):
    x = rows(n=40, size=2.0)
    p = perturb_max(x, noise)
    torch.testing.assert_close(p.sum(-1), torch.ones(4, dtype=REAL), atol=1e-14, rtol=0)
    torch.testing.assert_close(perturb_max(x + 100, noise), p, atol=1e-12, rtol=0)
    falling = p.gather(-1, x.argsort(-1, descending=True))
    assert (falling.diff() <= 0).all()
    torch.testing.assert_close(perturb_max(5 * x, noise, 5.0), p, atol=1e-12, rtol=0)
    torch.testing.assert_close(perturb_max(x.T, noise, dim=0), p.T, atol=1e-14, rtol=0)


@every_noise
def test_many_equal_scores_share_alike_and_the_sum_tells_the_error(noise):
    for n in (1, 2, 1000):
        x = torch.zeros(1, n, dtype=REAL)
        torch.testing.assert_close(perturb_max(x, noise), torch.full_like(x, 1 / n), atol=1e-14, rtol=0)
        left = abs(1 - float(perturb_max(x, noise, normalized=False).sum()))
        assert left < {"uniform": 5e-3, "laplace": 1e-6}.get(noise, 1e-11)


@pytest.mark.parametrize(("noise", "order"), [("laplace", 2), ("uniform", 2)])
def test_corners_cost_accuracy_that_more_points_buy_back(noise, order):
    x = rows(n=8, count=20, size=0.5)
    exact = perturb_max(x, noise, points=4000)
    errors = [float((perturb_max(x, noise, points=n) - exact).square().mean().sqrt()) for n in (32, 256)]
    assert errors[1] < errors[0] / 8 ** (order - 0.5)


@every_noise
def test_small_blocks_give_the_same(noise, monkeypatch):
    x = rows(n=7, count=9).requires_grad_()
    whole = perturb_max(x, noise)
    g = rows(n=7, count=9).cos()
    (wanted,) = torch.autograd.grad(whole, x, g)
    monkeypatch.setattr(perturb, "_HELD", 300)
    found = perturb_max(x, noise)
    torch.testing.assert_close(found, whole, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.autograd.grad(found, x, g)[0], wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("noise", SMOOTH)
def test_its_gradients_are_those_of_the_function(noise):
    x = rows(n=3, count=1).requires_grad_()
    for normalized in (True, False):
        assert torch.autograd.gradcheck(lambda x, on=normalized: perturb_max(x, noise, 0.7, 128, normalized=on), (x,))
    assert torch.autograd.gradgradcheck(lambda x: perturb_max(x, noise, 0.7, 128), (x,))


@pytest.mark.parametrize("noise", ["laplace", "uniform"])
def test_gradients_at_corners_near_those_of_a_fine_grid(noise):
    x = rows(n=5, count=3, size=0.4).requires_grad_()
    g = rows(n=5, count=3).sin()
    (found,) = torch.autograd.grad(perturb_max(x, noise, points=2000), x, g)
    step = 3e-3
    for i in range(5):
        moved = torch.zeros(5, dtype=REAL)
        moved[i] = step
        slope = (perturb_max(x + moved, noise, points=8000) - perturb_max(x - moved, noise, points=8000)) / (2 * step)
        torch.testing.assert_close(found[:, i], (slope * g).sum(-1).detach(), atol=2e-3, rtol=0)


@every_noise
def test_hidden_entries_get_nothing_and_whole_hidden_rows_are_zero(noise):
    x = torch.cat([X, torch.tensor([-math.inf, -1e6], dtype=REAL)]).requires_grad_()
    p = perturb_max(x, noise)
    torch.testing.assert_close(p[:5], perturb_max(X, noise), atol=1e-12, rtol=0)
    assert p[5:].eq(0).all()
    (dx,) = torch.autograd.grad(p[0], x)
    assert dx.isfinite().all()
    assert dx[5:].eq(0).all()
    none = torch.full((2, 3), -math.inf, requires_grad=True)
    assert perturb_max(none, noise).eq(0).all()
    assert torch.autograd.grad(perturb_max(none, noise).sum(), none)[0].eq(0).all()


@every_noise
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
def test_narrow_types_are_near(noise, dtype, atol):
    x = rows(n=200, size=2.0).to(dtype)
    p = perturb_max(x, noise)
    assert p.dtype == dtype
    torch.testing.assert_close(p.double(), perturb_max(x.double(), noise), atol=atol, rtol=0)


def test_normal_noise_has_lighter_tails_than_softmax():
    gaps = torch.tensor([[0.0, -3.0], [0.0, -6.0], [0.0, -12.0]], dtype=REAL)
    share = perturb_max(gaps, scale=math.pi / math.sqrt(6))[:, 1] / torch.softmax(gaps, -1)[:, 1]
    assert (share.diff() < 0).all()
    assert share[0] > 1  # near ties it leaves more to the smaller score
    assert share[1] < 0.5
    assert share[2] < 1e-5


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: perturb_max(X, "cauchy"), "a noise among gumbel, normal, logistic, uniform, exponential, laplace"),
        (lambda: perturb_max(X, scale=0.0), "a finite scale above 0, not 0.0"),
        (lambda: perturb_max(X, points=7), "at least 8 points, not 7"),
        (lambda: perturb_max(X.long()), "x to be floating point, not torch.int64"),
        (lambda: perturb_max(X, dim=1), "an axis of x of shape (5,), not 1"),
        (lambda: perturb_max(X[:0]), "at least one entry along axis -1, x has shape (0,)"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
