"""HiPPO: x_n(t) is the projection of the past on the n-th basis function, kept by a linear equation."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.recurrent import HiPPO, HiPPOState, discretize, hippo_matrices, legs_normal_part
from carrel.recurrent.hippo import fourier_basis, legendre_basis
from carrel.recurrent.hippo_matrices import lmu_units

_NODES, _WEIGHTS = (torch.from_numpy(v).double() for v in np.polynomial.legendre.leggauss(60))


def integral(f, start, end):
    """Gauss-Legendre quadrature of a function whose values are (points, N)."""
    s = (end - start) / 2 * _NODES + (end + start) / 2
    return (end - start) / 2 * (_WEIGHTS[:, None] * f(s)).sum(0)


def signal(s):
    return torch.exp(-s) * torch.sin(3 * s) + s


def projection(kind, N, t, theta, f):
    if kind == "legs":
        return integral(lambda s: f(s)[:, None] * legendre_basis(N, s / t), 0.0, t) / t
    if kind == "fout":
        return integral(lambda s: f(s)[:, None] * fourier_basis(N, (t - s) / theta), t - theta, t) / theta
    x = integral(lambda s: f(s)[:, None] * legendre_basis(N, (s - t + theta) / theta), t - theta, t) / theta
    return x * lmu_units(N) if kind == "lmu" else x


@pytest.mark.parametrize(
    ("kind", "N", "f"),
    [
        ("legs", 8, signal),  # exact for every signal
        ("legt", 8, lambda s: 1 - 2 * s + 0.3 * s**5),  # for polynomials of a degree below N in the window
        ("lmu", 8, lambda s: 1 - 2 * s + 0.3 * s**5),
        ("fout", 7, lambda s: 1 + torch.sin(2 * math.pi * s / 0.5) - 2 * torch.cos(6 * math.pi * s / 0.5)),
    ],
)
def test_the_projection_obeys_the_differential_equation(kind, N, f):
    """dx/dt = A x + B f, with 1/t before it for legs; derivatives by central differences."""
    theta, t, eps = 0.5, 1.7, 1e-4
    A, B = hippo_matrices(kind, N, theta if kind != "legs" else 1.0)
    after, before = (projection(kind, N, t + e, theta, f) for e in (eps, -eps))
    right = A @ projection(kind, N, t, theta, f) + B * f(torch.tensor(t).double())
    if kind == "legs":
        right = right / t
    torch.testing.assert_close((after - before) / (2 * eps), right, atol=2e-5 * right.abs().max().item(), rtol=0)


def test_a_sliding_window_is_not_exact_for_other_signals():
    theta, t, eps = 0.5, 1.7, 1e-4

    def f(s):
        return torch.sin(40 * s)

    A, B = hippo_matrices("legt", 8, theta)
    after, before = (projection("legt", 8, t + e, theta, f) for e in (eps, -eps))
    right = A @ projection("legt", 8, t, theta, f) + B * f(torch.tensor(t).double())
    assert ((after - before) / (2 * eps) - right).abs().max() > 0.1


def test_lmu_is_the_published_matrix_and_legt_in_other_units():
    """A_ij = (2i + 1)/θ (-1 if i < j else (-1)^(i - j + 1)), B_i = (2i + 1)(-1)^i / θ."""
    N, theta = 7, 0.8
    A = torch.tensor(
        [[(2 * i + 1) / theta * (-1 if i < j else (-1) ** (i - j + 1)) for j in range(N)] for i in range(N)]
    )
    B = torch.tensor([(2 * i + 1) * (-1) ** i / theta for i in range(N)])
    got = hippo_matrices("lmu", N, theta)
    torch.testing.assert_close(got, (A.double(), B.double()), atol=1e-5, rtol=1e-6)
    exact = hippo_matrices("legt", N, theta)
    T = lmu_units(N)
    torch.testing.assert_close(got[0], torch.diag(T) @ exact[0] @ torch.diag(1 / T), atol=1e-12, rtol=0)
    torch.testing.assert_close(got[1], T * exact[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("N", [2, 16, 64])
def test_legs_has_eigenvalues_minus_1_to_minus_n_and_a_normal_part(N):
    A, _ = hippo_matrices("legs", N)
    assert (A.triu(1) == 0).all()  # a triangle: its diagonal are its eigenvalues
    assert torch.equal(A.diagonal(), -torch.arange(1, N + 1).double())
    p = torch.sqrt(torch.arange(N).double() + 0.5)
    S = A + torch.outer(p, p)
    torch.testing.assert_close(S + S.T, -torch.eye(N).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(S @ S.T, S.T @ S, atol=1e-10 * N**2, rtol=0)
    eig = torch.linalg.eigvals(S)
    assert (eig.real + 0.5).abs().max() < 1e-11 * N
    assert abs(eig.imag.max() / (N**2 / math.pi) - 1) < (0.5 if N == 2 else 0.02)


@pytest.mark.parametrize("N", [2, 16, 64])
def test_the_normal_part_and_its_low_rank_make_legs_again(N):
    """A = V (Λ - p p^H) V^H over all pairs, and V is unitary."""
    rates, p, b, V = legs_normal_part(N)
    whole = torch.cat([V, V.conj()], 1)
    torch.testing.assert_close(whole.mH @ whole, torch.eye(N, dtype=V.dtype), atol=1e-12, rtol=0)
    both, low = torch.cat([rates, rates.conj()]), torch.cat([p, p.conj()])
    A, B = hippo_matrices("legs", N)
    made = whole @ (torch.diag(both) - torch.outer(low, low.conj())) @ whole.mH
    torch.testing.assert_close(made, A + 0j, atol=2e-11 * N, rtol=0)
    torch.testing.assert_close(whole @ torch.cat([b, b.conj()]), B + 0j, atol=1e-11, rtol=0)
    assert (rates.imag > 0).all()
    assert (rates.imag.diff() > 0).all()


@pytest.mark.parametrize("kind", ["legs", "legt"])
def test_a_constant_signal_is_the_first_coefficient_alone(kind):
    A, B = hippo_matrices(kind, 9, 1.0)
    torch.testing.assert_close(-torch.linalg.solve(A, B), torch.eye(9)[0].double(), atol=1e-11, rtol=0)
    memory = HiPPO(9, kind, method="zoh", **({} if kind == "legs" else {"dt": 0.01, "theta": 0.5}))
    c, _ = memory(torch.full((1, 400), 2.5).double(), return_last=True)
    torch.testing.assert_close(c[0, 0], 2.5 * torch.eye(9)[0].double(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", ["legt", "lmu", "fout"])
def test_two_zoh_steps_are_one_of_twice_the_length(kind):
    A, B = hippo_matrices(kind, 7, 0.5)
    once, into = discretize(A, B, 0.01, "zoh")
    twice, both = discretize(A, B, 0.02, "zoh")
    torch.testing.assert_close(once @ once, twice, atol=1e-11, rtol=0)
    torch.testing.assert_close(once @ into + into, both, atol=1e-11, rtol=0)


@pytest.mark.parametrize(("method", "order"), [("forward", 1), ("backward", 1), ("bilinear", 2), ("zoh", 1)])
def test_one_step_follows_the_equation_to_the_methods_order(method, order):
    """Halving the step halves or quarters the error at a fixed time, for x' = A x + B cos t."""
    A, B = hippo_matrices("legt", 4, 1.0)

    def at_one(steps):
        dt = 1 / steps
        Ab, Bb = discretize(A, B, dt, method)
        x = torch.zeros(4).double()
        for k in range(steps):
            # bilinear takes the mean of both ends, which its second order needs
            f = (math.cos(k * dt) + math.cos((k + 1) * dt)) / 2 if method == "bilinear" else math.cos((k + 1) * dt)
            x = Ab @ x + Bb * f
        return x

    fine = 4 * at_one(8000) / 3 - at_one(4000) / 3 if order == 2 else 2 * at_one(8000) - at_one(4000)
    errors = [(at_one(n) - fine).abs().max().item() for n in (250, 500)]
    assert abs(math.log2(errors[0] / errors[1]) - order) < 0.1


def test_legs_zoh_is_the_projection_of_the_staircase():
    """A signal that is f_k on (k - 1, k], projected exactly, interval by interval."""
    torch.manual_seed(0)
    f, N = torch.randn(12).double(), 6
    c, _ = HiPPO(N, method="zoh")(f[None])
    for t in (1, 2, 7, 12):
        pieces = [f[k] * integral(lambda s, t=t: legendre_basis(N, s / t), float(k), k + 1.0) for k in range(t)]
        torch.testing.assert_close(c[0, t - 1], torch.stack(pieces).sum(0) / t, atol=1e-12, rtol=0)


@pytest.mark.parametrize("N", [1, 6, 20])
def test_a_zoh_step_of_legs_is_the_exponential_of_its_matrix_in_log_time(N):
    """x_k = E x_{k-1} + A^-1 (E - I) B f_k with E = exp(A log(k / (k - 1))), and E = 0 at the first sample."""
    A, B = hippo_matrices("legs", N)
    k = torch.tensor([1, 2, 5, 1000])
    kept, filled = HiPPO(N, method="zoh")._staircase(k)
    for i, samples in enumerate(k.tolist()):
        E = torch.linalg.matrix_exp(A * math.log(samples / (samples - 1))) if samples > 1 else 0 * A
        torch.testing.assert_close(kept[i], E, atol=1e-10, rtol=0)
        torch.testing.assert_close(filled[i], torch.linalg.solve(A, (E - torch.eye(N)) @ B), atol=1e-10, rtol=0)


def test_legs_converges_to_the_projection_as_samples_become_dense():
    def error(length):
        s = torch.arange(1, length + 1).double() / length
        c, _ = HiPPO(6)(signal(3 * s)[None], return_last=True)
        return (c[0, 0] - projection("legs", 6, 3.0, 1.0, signal)).abs().max().item()

    assert error(4000) < 2e-3
    assert error(4000) < 0.6 * error(2000)


@pytest.mark.parametrize(("kind", "N"), [("legt", 8), ("lmu", 8), ("fout", 7)])
def test_windows_reconstruct_what_fits_them(kind, N):
    theta, dt = 0.5, 1e-3
    t = dt * torch.arange(1, 4001).double()  # eight windows: what came before the signal is forgotten
    f = torch.sin(2 * math.pi * t / theta) + 0.5
    memory = HiPPO(N, kind, dt=dt, theta=theta)
    c, _ = memory(f[None], return_last=True)
    ages = torch.linspace(0, 1, 50).double()
    wanted = torch.sin(2 * math.pi * (4.0 - ages * theta) / theta) + 0.5
    assert (memory.reconstruct(c[0, 0], 1 - ages) - wanted).abs().max() < 0.01


def test_legs_depends_on_the_samples_and_not_on_the_time_between_them():
    """Nothing to set, so the same samples give the same coefficients; a signal twice as slow looks the same."""
    slow = torch.sin(torch.arange(1, 2001).double() / 200)
    fast = slow[1::2]
    memory = HiPPO(8)
    torch.testing.assert_close(
        memory(slow[None], return_last=True)[0], memory(fast[None], return_last=True)[0], atol=2e-3, rtol=0
    )
    with pytest.raises(ValueError, match="legs has no step"):
        HiPPO(8, "legs", dt=0.1)


@pytest.mark.parametrize("method", ["forward", "backward", "bilinear", "zoh"])
@pytest.mark.parametrize(("kind", "dt"), [("legs", None), ("legt", 1e-3), ("lmu", 1e-3), ("fout", 1e-3)])
@settings(max_examples=5, deadline=None)
@given(cuts=st.lists(st.integers(0, 11), max_size=4).map(sorted))
def test_every_split_gives_the_same(kind, dt, method, cuts):
    torch.manual_seed(0)
    memory = HiPPO(5, kind, dt=dt, method=method)
    f = torch.randn(2, 11, 3).double()
    whole, end = memory(f)
    state, parts = None, []
    for start, stop in zip([0, *cuts], [*cuts, 11], strict=True):
        part, state = memory(f[:, start:stop], state)
        parts.append(part)
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(state.x, end.x, atol=1e-12, rtol=1e-12)
    assert state.pos.tolist() == [11, 11]
    last, _ = memory(f, return_last=True)
    torch.testing.assert_close(last, whole[:, -1:], atol=0, rtol=0)


@pytest.mark.parametrize("method", ["bilinear", "zoh"])
def test_rows_at_different_places_in_their_signals_go_on_side_by_side(method):
    torch.manual_seed(0)
    memory, f = HiPPO(5, method=method), torch.randn(2, 9, 1).double()
    _, one = memory(f[:1, :3])
    _, two = memory(f[1:, :6])
    both = HiPPOState(torch.cat([one.x, two.x]), torch.cat([one.pos, two.pos]))
    c, _ = memory(torch.stack([f[0, 3:6], f[1, 6:9]]), both)
    torch.testing.assert_close(c[0], memory(f[:1])[0][0, 3:6], atol=1e-12, rtol=0)
    torch.testing.assert_close(c[1], memory(f[1:])[0][0, 6:9], atol=1e-12, rtol=0)


def test_gradients_reach_the_signal():
    f = torch.randn(2, 6, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: HiPPO(4)(f)[0], f)
    assert torch.autograd.gradcheck(lambda f: HiPPO(4, "legt", dt=0.1)(f)[0], f)


def test_shapes_follow_the_signals():
    memory = HiPPO(4)
    c, state = memory(torch.randn(2, 5))
    assert (c.shape, state.x.shape) == ((2, 5, 4), (2, 1, 4))
    c, state = memory(torch.randn(2, 5, 3))
    assert (c.shape, state.x.shape) == ((2, 5, 3, 4), (2, 3, 4))
    assert memory.reconstruct(c, torch.linspace(0, 1, 7)).shape == (2, 5, 3, 7)
    assert not memory.state_dict()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: hippo_matrices("legs", 0), "N must be at least 1, got 0"),
        (lambda: hippo_matrices("laguerre", 4), "kind must be one of legs, legt, lmu, fout, got 'laguerre'"),
        (lambda: hippo_matrices("fout", 4), "N must be odd, got 4"),
        (lambda: hippo_matrices("legt", 4, 0.0), "theta must be positive, got 0.0"),
        (lambda: legs_normal_part(5), "N must be even and at least 2, for eigenvalues come in pairs; got 5"),
        (lambda: discretize(*hippo_matrices("legt", 4), 0.0), "dt must be positive, got 0.0"),
        (lambda: discretize(*hippo_matrices("legt", 4), 0.1, "rk4"), "method must be one of forward, backward"),
        (lambda: discretize(torch.zeros(3, 2), torch.zeros(3), 0.1), "A must be (N, N) and B (N,), got (3, 2)"),
        (lambda: HiPPO(4, "legt"), "legt needs dt"),
        (lambda: HiPPO(4, "legs", theta=2.0), "legs has no step and no window"),
        (
            lambda: HiPPO(4, "legs", method="rk4"),
            "out of forward, backward, bilinear, zoh, not 'legs' and 'rk4'",
        ),
        (lambda: HiPPO(33, method="forward")(torch.zeros(1, 5)), "forward Euler with legs and N=33 overflows float32"),
        (lambda: HiPPO(4)(torch.zeros(5)), "f of shape (batch, length) or (batch, length, channels)"),
        (lambda: HiPPO(4)(torch.zeros(1, 5, dtype=torch.int64)), "not torch.int64"),
        (
            lambda: HiPPO(4)(torch.zeros(2, 5), HiPPOState(torch.zeros(2, 1, 3), torch.zeros(2))),
            "state of x (2, 1, 4) and pos (2,), not (2, 1, 3)",
        ),
        (lambda: HiPPO(4).reconstruct(torch.zeros(3), torch.zeros(2)), "4 coefficients, not c of shape (3,)"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()


def test_an_unstable_euler_step_warns():
    with pytest.warns(UserWarning, match="forward Euler is unstable with a step of 0.5"):
        discretize(*hippo_matrices("legt", 8), 0.5, "forward")


def test_euler_in_float64_ends_right_although_it_explodes_on_the_way():
    s = torch.arange(1, 2001).double() / 2000
    c, _ = HiPPO(32, method="forward")(signal(s)[None])
    assert c.abs().max() > 1e18
    assert c[0, -1].abs().max() < 2
