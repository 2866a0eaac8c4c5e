"""damped_solve: the δ of least 1/2 sum |r_t + δ_t - J_t δ_{t-1}|^2 + λ/2 sum |δ_t|^2."""

from __future__ import annotations

import pytest
import torch

from carrel.ops._damped_solve import damped_solve

BACKENDS = ["reference", "cpu"]


def problem(diagonal, batch=2, length=9, size=3):
    torch.manual_seed(0)
    J = torch.randn(batch, length, size, *(() if diagonal else (size,)), dtype=torch.float64)
    return J, torch.randn(batch, length, size, dtype=torch.float64)


def dense(J, r, damping):
    """The whole system at once: M δ = -r in least squares, with M = I - J one token down."""
    J = torch.diag_embed(J) if J.ndim == r.ndim else J
    rows = []
    for Jb, rb in zip(J, r, strict=True):
        length, size = rb.shape
        M = torch.eye(length * size, dtype=r.dtype)
        for t in range(1, length):
            M[t * size : (t + 1) * size, (t - 1) * size : t * size] = -Jb[t]
        left = M.T @ M + damping * torch.eye(len(M), dtype=r.dtype)
        rows.append(torch.linalg.solve(left, -M.T @ rb.flatten()).view(length, size))
    return torch.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("damping", [1e-2, 1.0, 10.0])
def test_it_solves_the_whole_system(damping, diagonal, backend):
    J, r = problem(diagonal)
    got = damped_solve(J, r, damping, backend=backend)
    torch.testing.assert_close(got, dense(J, r, damping), atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("damping", [1e-2, 1.0, 10.0])
def test_the_filter_is_that_of_kalman(damping, diagonal, backend):
    """P- = J P J^T + I, K = P- (P- + I / λ)^{-1}, the mean (I - K) (J m - r), P = (I - K) P-."""
    J, r = problem(diagonal)
    got = damped_solve(J, r, damping, smoother=False, backend=backend)
    J = torch.diag_embed(J) if diagonal else J
    eye = torch.eye(3, dtype=torch.float64)
    m, P = torch.zeros(2, 3, 1, dtype=torch.float64), torch.zeros(2, 3, 3, dtype=torch.float64)
    for t in range(r.shape[1]):
        P = J[:, t] @ P @ J[:, t].mT + eye
        keep = eye - P @ torch.linalg.inv(P + eye / damping)
        m, P = keep @ (J[:, t] @ m - r[:, t, :, None]), keep @ P
        torch.testing.assert_close(got[:, t], m[..., 0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("smoother", [True, False])
def test_without_damping_it_is_newtons_step_and_with_much_it_stays(smoother, backend):
    J, r = problem(False)
    delta, wanted = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(r.shape[1]):
        delta = (J[:, t] @ delta.unsqueeze(-1)).squeeze(-1) - r[:, t]
        wanted.append(delta)
    wanted = torch.stack(wanted, 1)
    scale = wanted.abs().max()
    for damping in (0.0, 1e-15):
        got = damped_solve(J, r, damping, smoother=smoother, backend=backend)
        assert (got - wanted).abs().max() < 1e-9 * scale
    assert damped_solve(J, r, 1e12, smoother=smoother, backend=backend).abs().max() < 1e-10


@pytest.mark.parametrize("diagonal", [False, True])
def test_no_token(diagonal):
    J, r = problem(diagonal, length=0)
    for backend in BACKENDS:
        for smoother in (True, False):
            assert damped_solve(J, r, 1.0, smoother=smoother, backend=backend).shape == (2, 0, 3)
