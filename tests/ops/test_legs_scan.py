"""`legs_scan`: (I - β A / k) x_k = (I + (1 - β) A / k) x_{k-1} + B f_k / k, in O(N)."""

from __future__ import annotations

import pytest
import torch

from carrel.ops import legs_scan
from carrel.recurrent import hippo_matrices

IMPLICIT = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}


def problem(rows=3, length=9, N=6, seed=0):
    torch.manual_seed(seed)
    f, x0 = torch.randn(rows, length, dtype=torch.float64), torch.randn(rows, N, dtype=torch.float64)
    return f, x0, torch.tensor([0, 4, 100, 7, 1] * 20)[:rows]


def dense(f, x0, pos, beta):
    """The definition, with matrices, row by row."""
    A, B = hippo_matrices("legs", x0.shape[1])
    eye, rows = torch.eye(len(A), dtype=A.dtype), []
    for row in range(len(f)):
        x, steps = x0[row], []
        for t in range(f.shape[1]):
            k = int(pos[row]) + t + 1
            x = torch.linalg.solve(eye - beta / k * A, (eye + (1 - beta) / k * A) @ x + B * f[row, t] / k)
            steps.append(x)
        rows.append(torch.stack(steps))
    return torch.stack(rows)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("method", IMPLICIT)
@pytest.mark.parametrize("rows", [1, 3, 70])
def test_every_update_is_the_dense_one(backend, method, rows):
    f, x0, pos = problem(rows)
    x, last = legs_scan(f, x0, pos, method=method, backend=backend)
    wanted = dense(f, x0, pos, IMPLICIT[method])
    bound = 1e-12 * max(1, wanted.abs().max().item())
    torch.testing.assert_close(x, wanted, atol=bound, rtol=0)
    torch.testing.assert_close(last, wanted[:, -1], atol=bound, rtol=0)
    none, same = legs_scan(f, x0, pos, method=method, backend=backend, every=False)
    assert none.shape == (rows, 0, 6)
    torch.testing.assert_close(same, last, atol=0, rtol=0)


@pytest.mark.parametrize("method", IMPLICIT)
@pytest.mark.parametrize("every", [True, False])
def test_gradients_of_every_order_and_mode(method, every):
    f, x0, pos = problem(2, 4, 3)
    inputs = (f.requires_grad_(), x0.requires_grad_())

    def run(f, x0):
        return legs_scan(f, x0, pos, method=method, every=every)

    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_any_cut_gives_the_same_bits():
    f, x0, pos = problem(5, 40)
    whole, last = legs_scan(f, x0, pos)
    first, state = legs_scan(f[:, :13], x0, pos)
    rest, end = legs_scan(f[:, 13:], state, pos + 13)
    assert torch.equal(torch.cat([first, rest], 1), whole)
    assert torch.equal(end, last)


def test_vmap_and_compile_give_the_same():
    f, x0, pos = problem()
    many = torch.stack([f, 2 * f])
    got = torch.func.vmap(lambda f: legs_scan(f, x0, pos)[0])(many)
    torch.testing.assert_close(got, torch.stack([legs_scan(g, x0, pos)[0] for g in many]), atol=1e-13, rtol=0)
    torch.compiler.reset()
    compiled = torch.compile(lambda f: legs_scan(f, x0, pos)[0].square().sum(), backend="aot_eager", fullgraph=True)
    leaf = f.clone().requires_grad_()
    (got,) = torch.autograd.grad(compiled(leaf), leaf)
    (wanted,) = torch.autograd.grad(legs_scan(leaf, x0, pos)[0].square().sum(), leaf)
    torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_no_samples_return_the_state_that_came():
    f, x0, pos = problem(length=0)
    x, last = legs_scan(f, x0, pos)
    assert x.shape == (3, 0, 6)
    assert torch.equal(last, x0)
    assert last is not x0


@pytest.mark.parametrize("N", [32, 64, 256])
def test_bilinear_stays_small_in_float32_where_euler_overflows(N):
    f = torch.sin(torch.arange(300) / 20).unsqueeze(0)
    x, _ = legs_scan(f, torch.zeros(1, N), torch.zeros(1, dtype=torch.int64))
    assert x.isfinite().all()
    assert x.abs().max() < 2
    euler, _ = legs_scan(f.double(), torch.zeros(1, N).double(), torch.zeros(1, dtype=torch.int64), method="forward")
    assert euler.abs().max() > 1e18


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"method": "zoh"}, "method must be one of forward, bilinear, backward, got 'zoh'"),
        (
            {"f": torch.zeros(3, 9)},
            "f and x0 must both be float32 or both float64, got torch.float32 and torch.float64",
        ),
        ({"x0": torch.zeros(2, 6).double()}, r"f must be \(rows, length\)"),
        ({"pos": torch.zeros(3, 1)}, r"f must be \(rows, length\)"),
        ({"backend": "gpu"}, "there is no kernel for the GPU"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, sentence):
    f, x0, pos = problem()
    with pytest.raises(ValueError, match=f"^legs_scan: {sentence}"):
        legs_scan(**({"f": f, "x0": x0, "pos": pos} | change))
