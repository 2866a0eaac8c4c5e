"""GRUNewton: y_t = F_t + J_t (y_{t-1} - old y_{t-1}) for a GRU, and its adjoint, without J in memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from carrel.ops._gru_newton import GRUNewton, reference, refuses


def problem(size, batch, length, dtype=torch.float64):
    torch.manual_seed(size)
    u, W = torch.randn(batch, length, 3 * size, dtype=dtype), torch.randn(3 * size, size, dtype=dtype) * 0.5
    return u, W, torch.randn(3 * size, dtype=dtype), torch.randn(batch, size, dtype=dtype)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("size", [1, 2, 5, 6, 7, 12])  # a block's Jacobian is put together up to 6
@pytest.mark.parametrize(("batch", "length"), [(1, 130), (3, 33), (4, 64), (5, 1)])
def test_a_sweep_is_that_of_the_reference(size, batch, length, diagonal):
    u, W, bias, y0 = problem(size, batch, length)
    guess = torch.randn(batch, length, size, dtype=torch.float64)
    newton = GRUNewton(u, W, bias, y0)
    newton.y = guess
    update = newton.sweep(diagonal)
    wanted = reference.sweep(u, W, bias, y0, guess, diagonal)
    torch.testing.assert_close(newton.y, wanted, atol=1e-11, rtol=1e-12)
    moved = (wanted - guess).abs().amax((1, 2)) / (1 + wanted.abs().amax((1, 2)))
    torch.testing.assert_close(update, moved, atol=1e-12, rtol=0)


def test_the_residual_is_what_is_missing_to_f():
    u, W, bias, y0 = problem(3, 5, 70)
    newton = GRUNewton(u, W, bias, y0)
    newton.y = y = torch.randn(5, 70, 3, dtype=torch.float64)
    f, _ = reference.linearize(u, W, bias, torch.cat([y0.unsqueeze(1), y[:, :-1]], 1))
    wanted = (f - y).abs().amax((1, 2)) / (1 + y.abs().amax((1, 2)))
    torch.testing.assert_close(newton.residual(), wanted, atol=1e-13, rtol=0)


@pytest.mark.parametrize(("size", "batch"), [(1, 1), (3, 5), (9, 4)])
def test_gradients_are_those_of_nn_gru(size, batch):
    torch.manual_seed(0)
    gru = nn.GRU(size, size, batch_first=True).double()
    x = torch.randn(batch, 70, size, dtype=torch.float64)
    y0 = torch.randn(batch, size, dtype=torch.float64, requires_grad=True)
    u = (x @ gru.weight_ih_l0.T + gru.bias_ih_l0).detach().requires_grad_()
    wanted_y = gru(x, y0.unsqueeze(0))[0]
    arrived = torch.randn_like(wanted_y)
    weights = (gru.weight_hh_l0, gru.bias_hh_l0, gru.bias_ih_l0, gru.weight_ih_l0)
    wanted = torch.autograd.grad(wanted_y, (*weights, y0), arrived)
    newton = GRUNewton(u, *weights[:2], y0)
    newton.y = wanted_y.detach()
    y = newton.attach(u, *weights[:2], y0)
    du, dW, db, dy0 = torch.autograd.grad(y, (u, *weights[:2], y0), arrived)
    torch.testing.assert_close(y, wanted_y, atol=0, rtol=0)
    got = (dW, db, du.sum((0, 1)), torch.einsum("blg,bli->gi", du, x), dy0)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-11, rtol=0)


def test_numbers_that_are_none_are_seen():
    u, W, bias, y0 = problem(2, 4, 40, torch.float32)
    u[2, 7, 5] = float("nan")
    newton = GRUNewton(u, W, bias, y0)
    newton.y = torch.zeros(4, 40, 2)
    update = newton.sweep(False)
    assert update.isnan().tolist() == [False, False, True, False]
    assert newton.residual().isnan().tolist() == [False, False, True, False]
    for bad in (0, 3):  # r and z, which a saturating gate might hide
        u[2, 7] = 0
        u[2, 7, bad] = float("nan")
        again = GRUNewton(u, W, bias, y0)
        again.y = torch.zeros(4, 40, 2)
        assert again.sweep(True).isnan().tolist() == [False, False, True, False]


def test_threads_share_groups_of_rows_without_a_change():
    u, W, bias, y0 = problem(6, 19, 1500, torch.float32)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            newton = GRUNewton(u, W, bias, y0)
            newton.y = torch.zeros(19, 1500, 6)
            newton.sweep(False)
            found.append((newton.y, *newton.gradients(newton.y)))
        finally:
            torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-5)
    assert torch.equal(found[0][0], found[1][0])


def test_what_the_kernels_cannot_take_is_said():
    W = torch.zeros(3, 1)
    assert refuses(torch.zeros(1, 1, 3), W) is None
    assert refuses(torch.zeros(1, 1, 3).half(), W.half()) == "the kernels are for float32 or float64"
    assert refuses(torch.zeros(1, 1, 3, device="meta"), W) == "the kernels are for tensors on the CPU"
