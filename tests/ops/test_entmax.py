"""p_i = max((alpha - 1) x_i - tau, 0)^(1 / (alpha - 1)), sum p = 1: sparsemax (2), entmax15 (1.5), entmax."""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.ops import entmax, entmax15, sparsemax

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
BACKENDS = ["gpu"] if TRITON else ["reference", "cpu"]
INTERPRETED = TRITON and DEVICE == "cpu"  # which takes a hundred times as long
ALPHAS = [1.25, 1.5, 2.0, 2.5] if INTERPRETED else [1.05, 1.25, 1.5, 1.75, 2.0, 2.5, 4.0]
SIZES = [1, 31] if INTERPRETED else [1, 2, 31, 200]
REAL = torch.float64

every_backend = pytest.mark.parametrize("backend", BACKENDS)
not_interpreted = pytest.mark.skipif(INTERPRETED, reason="hundreds of calls; the backward is compared above")


def scores(*shape, dtype=REAL, size=2.0):
    torch.manual_seed(0)
    return (size * torch.randn(*shape, dtype=REAL)).to(DEVICE, dtype)


def mass(x, alpha, tau):
    return ((alpha - 1) * x - tau).clamp(min=0).pow(1 / (alpha - 1)).sum(-1)


def threshold(p, x, alpha):
    """The tau that every positive entry agrees on."""
    return ((alpha - 1) * x - p ** (alpha - 1))[p > 0]


@every_backend
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", SIZES)
def test_every_positive_entry_has_one_threshold_and_no_other_is_above_it(backend, alpha, n):
    x = scores(4, n)
    p = entmax(x, alpha, backend=backend)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(4, dtype=REAL, device=DEVICE), atol=1e-12, rtol=0)
    for row, values in zip(p, x, strict=True):
        taus = threshold(row, values, alpha)
        # a power of 1 / (alpha - 1) < 1 near 0 loses its last digits when it is undone
        torch.testing.assert_close(taus, taus[:1].expand_as(taus), atol=1e-10, rtol=0)
        assert ((alpha - 1) * values[row == 0] <= taus.max() + 1e-10).all()


@every_backend
@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_backends_agree_forward_and_backward(backend, alpha):
    x = scores(3, 65).requires_grad_()
    g = torch.randn_like(x)
    p, wanted = entmax(x, alpha, backend=backend), entmax(x, alpha, backend="reference")
    torch.testing.assert_close(p, wanted, atol=1e-12, rtol=0)
    (found,), (right,) = (torch.autograd.grad(y, x, g) for y in (p, wanted))
    torch.testing.assert_close(found, right, atol=1e-10, rtol=0)


@every_backend
def test_the_slope_in_alpha_is_the_same_on_every_backend(backend):
    x, alpha = scores(4, 33), torch.tensor([[1.2], [1.6], [2.5], [2.0]], dtype=REAL, device=DEVICE).requires_grad_()
    g = torch.randn_like(x)
    found, right = (torch.autograd.grad(entmax(x, alpha, backend=name), alpha, g) for name in (backend, "reference"))
    torch.testing.assert_close(found, right, atol=1e-10, rtol=0)


@every_backend
def test_the_closed_forms_are_the_family_at_two_and_at_one_and_a_half(backend):
    x = scores(5, 40)
    near = torch.full((1,), 1.5, dtype=REAL, device=DEVICE)  # as a tensor, it takes the general road
    torch.testing.assert_close(entmax15(x, backend=backend), entmax(x, near, backend=backend), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        sparsemax(x, backend=backend), entmax(x, near + 0.5, backend=backend), atol=1e-12, rtol=0
    )


@every_backend
def test_sparsemax_is_the_nearest_point_of_the_simplex(backend):
    x = scores(1, 6)[0]
    p = sparsemax(x, backend=backend)
    for other in torch.distributions.Dirichlet(torch.ones(6, dtype=REAL)).sample((2000,)).to(DEVICE):
        assert (p - x).norm() <= (other - x).norm() + 1e-12


@every_backend
def test_near_one_it_is_softmax(backend):
    x = scores(5, 40)
    torch.testing.assert_close(entmax(x, 1.0, backend=backend), torch.softmax(x, -1), atol=1e-15, rtol=0)
    gaps = [(entmax(x, 1 + b, backend=backend) - torch.softmax(x, -1)).abs().max().item() for b in (1e-2, 1e-3)]
    assert 8 < gaps[0] / gaps[1] < 12  # the distance is of first order


@pytest.mark.skipif(TRITON, reason="whether a maximum passes over what is not a number is the GPU's own affair")
@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0])
@pytest.mark.parametrize("at", [0, 20, 39])
def test_what_is_not_a_number_is_not_passed_over(alpha, at):
    x = scores(2, 40)
    x[0, at] = math.nan
    p = entmax(x, alpha, backend="cpu")
    assert p[0].isnan().any()
    assert not p[1].isnan().any()


@every_backend
def test_a_learnt_alpha_that_has_sunk_to_one_is_still_softmax(backend):
    x = scores(5, 40)
    alpha = torch.tensor([[1.0]], dtype=REAL, device=DEVICE, requires_grad=True)
    p = entmax(x, alpha, backend=backend)
    torch.testing.assert_close(p, torch.softmax(x, -1), atol=1e-3, rtol=0)
    (slope,) = torch.autograd.grad(p.square().sum(), alpha)
    assert torch.isfinite(slope).all()


@every_backend
@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 3.0])
def test_shifts_do_not_matter_order_is_kept_and_equals_share(backend, alpha):
    x = scores(3, 30)
    p = entmax(x, alpha, backend=backend)
    torch.testing.assert_close(entmax(x + 7, alpha, backend=backend), p, atol=1e-12, rtol=0)
    assert (p.gather(-1, x.argsort(-1)).diff(dim=-1) >= 0).all()
    same = entmax(torch.full((1, 9), 3.0, dtype=REAL, device=DEVICE), alpha, backend=backend)
    torch.testing.assert_close(same, torch.full_like(same, 1 / 9), atol=1e-14, rtol=0)


def test_the_support_shrinks_as_alpha_rises():
    x = scores(20, 1000)
    sizes = [(entmax(x, alpha) > 0).sum(-1).double().mean().item() for alpha in ALPHAS]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 800
    assert sizes[ALPHAS.index(2.0)] < 6


@every_backend
@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0, 2.5])
def test_hidden_entries_get_nothing_and_a_hidden_row_is_zero(backend, alpha):
    x = scores(3, 8)
    x[0, 3:] = -math.inf
    x[1] = -math.inf
    x = x.requires_grad_()
    p = entmax(x, alpha, backend=backend)
    assert (p[0, 3:] == 0).all()
    assert (p[1] == 0).all()
    torch.testing.assert_close(p[0, :3], entmax(x[0, :3], alpha, backend="reference"), atol=1e-12, rtol=0)
    (dx,) = torch.autograd.grad(p.pow(2).sum(), x)
    assert torch.isfinite(dx).all()
    assert (dx[1] == 0).all()
    assert (dx[0, 3:] == 0).all()
    assert (entmax(x, 1.0)[1] == 0).all()


@not_interpreted
@every_backend
@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.7, 2.0, 3.0])
def test_gradients_of_both_orders_and_forward_mode(backend, alpha):
    x = scores(3, 5, size=0.3).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: entmax(t, alpha, backend=backend), x, check_forward_ad=backend != "gpu")
    assert torch.autograd.gradgradcheck(lambda t: entmax(t, alpha, backend=backend), x)


@not_interpreted
@every_backend
def test_alpha_is_learnt_one_per_head(backend):
    x = scores(2, 3, 4, 6, size=0.3).requires_grad_()
    alpha = torch.tensor([1.2, 1.6, 2.5], dtype=REAL, device=DEVICE).view(3, 1, 1).requires_grad_()
    forward = backend != "gpu"
    assert torch.autograd.gradcheck(lambda t, a: entmax(t, a, backend=backend), (x, alpha), check_forward_ad=forward)
    each = torch.stack([entmax(x[:, h], alpha[h].item(), backend=backend) for h in range(3)], 1)
    torch.testing.assert_close(entmax(x, alpha, backend=backend), each, atol=1e-12, rtol=0)


def test_the_slope_in_alpha_is_a_difference_quotient():
    x, step = scores(4, 50), 1e-6
    alpha = torch.tensor(1.4, dtype=REAL, requires_grad=True)
    weight = torch.randn(4, 50, dtype=REAL)
    (slope,) = torch.autograd.grad((entmax(x, alpha.view(1)) * weight).sum(), alpha)
    ahead, behind = ((entmax(x, alpha.detach().view(1) + s) * weight).sum() for s in (step, -step))
    assert abs(slope.item() - (ahead - behind).item() / (2 * step)) < 1e-6


@every_backend
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_narrow_types_are_rounded_once(backend, dtype, bound):
    x = scores(6, 300, dtype=dtype)
    for alpha in (1.25, 1.5, 2.0, 3.0):
        p = entmax(x, alpha, backend=backend)
        assert p.dtype == dtype
        wanted = entmax(x.double(), alpha, backend="reference")
        torch.testing.assert_close(p.double(), wanted, atol=bound, rtol=bound)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=80), st.sampled_from(ALPHAS))
def test_any_row_is_a_distribution(values, alpha):
    x = torch.tensor(values, dtype=REAL)
    p = entmax(x, alpha)
    assert abs(p.sum().item() - 1) < 1e-12
    assert (p[x == x.max()] == p.max()).all()
    torch.testing.assert_close(p, entmax(x, alpha, backend="reference"), atol=1e-9, rtol=0)


def test_any_axis_and_any_memory():
    x = scores(4, 5, 6)
    for dim in (0, 1, 2, -1):
        rows = entmax15(x.movedim(dim, -1).contiguous()).movedim(-1, dim)
        torch.testing.assert_close(entmax15(x, dim), rows, atol=0, rtol=0)
    assert sparsemax(scores(0, 5)).shape == (0, 5)
    assert sparsemax(scores(3)).shape == (3,)


@pytest.mark.skipif(DEVICE != "cpu", reason="the CPU's compiler")
def test_compiled_whole_and_under_vmap():
    x = scores(3, 4, 9).requires_grad_()
    compiled = torch.compile(lambda t: entmax15(t).pow(2).sum(), fullgraph=True, backend="aot_eager")
    (wanted,) = torch.autograd.grad(entmax15(x).pow(2).sum(), x)
    (found,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(found, wanted, atol=1e-14, rtol=0)
    torch.testing.assert_close(torch.func.vmap(entmax15, in_dims=1, out_dims=1)(x), entmax15(x), atol=1e-15, rtol=0)
    alpha = torch.tensor([1.3, 1.8, 2.2], dtype=REAL)
    each = torch.func.vmap(lambda row, a: entmax(row, a.view(1, 1)))(x.detach(), alpha)
    torch.testing.assert_close(each, entmax(x.detach(), alpha.view(3, 1, 1)), atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sparsemax(torch.ones(3, dtype=torch.int64)), "floating point, not torch.int64"),
        (lambda: sparsemax(torch.ones(2, 0)), "at least one entry along axis -1"),
        (lambda: entmax15(torch.ones(2, 3), dim=2), "dim to be an axis of x"),
        (lambda: entmax(torch.ones(2, 3), 0.9), "alpha to be at least 1, not 0.9"),
        (lambda: entmax(torch.ones(2, 3), float("nan")), "alpha to be at least 1, not nan"),
        (lambda: entmax(torch.ones(2, 3), torch.ones(3)), "size 1 along axis -1"),
        (lambda: entmax(torch.ones(2, 3), torch.ones(4, 2, 1)), "broadcast to x of shape"),
        (lambda: sparsemax(torch.ones(2, 3), backend="fast"), "backend must be one of"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(TRITON, reason="the kernels run in this process already")
def test_the_triton_kernels_pass_these_tests_in_the_interpreter(passes_in_tritons_interpreter):
    passes_in_tritons_interpreter(__file__, "-k", "gpu")
