"""`dplr_kernel` and `cauchy`: K_l = C A^l B for a diagonal minus rank one, by sums of v_n / (z_j - lam_n)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from carrel.ops import cauchy, dplr_kernel
from carrel.recurrent import discretize, hippo_matrices, legs_normal_part

BACKENDS = ["reference", "cpu"]


def fractions(channels=2, modes=3, nodes=70, dtype=torch.complex128, seed=0):
    torch.manual_seed(seed)
    lam = torch.complex(-torch.rand(channels, modes) - 0.1, torch.randn(channels, modes)).to(dtype)
    return torch.randn(channels, modes, dtype=dtype), torch.randn(nodes, dtype=dtype), lam


def system(N, log_dt, length, seed=0, dtype=torch.complex128):
    """LegS with random real outputs: what the op takes, and the kernel by dense powers."""
    torch.manual_seed(seed)
    start, (A, B) = legs_normal_part(N), hippo_matrices("legs", N)
    rows, kernels = [], []
    for step in log_dt.exp().tolist():
        Ab, Bb = discretize(A, B, step)
        c = torch.randn(N, dtype=torch.float64)
        x, K = Bb, []
        for _ in range(length):
            K.append(c @ x)
            x = Ab @ x
        kernels.append(torch.stack(K))
        rows.append((c @ (torch.eye(N).double() - torch.linalg.matrix_power(Ab, length)) + 0j) @ start.vectors)
    parts = (start.rates, start.low_rank, start.input)
    expanded = (x.expand(len(log_dt), -1).to(dtype) for x in parts)
    return (log_dt.to(dtype.to_real()), *expanded, torch.stack(rows).to(dtype)), torch.stack(kernels)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("nodes", [0, 1, 63, 64, 130])
@pytest.mark.parametrize("modes", [1, 5])
def test_cauchy_is_the_sum_written_out(backend, nodes, modes):
    v, z, lam = fractions(modes=modes, nodes=nodes)
    wanted = (v.unsqueeze(2) / (z - lam.unsqueeze(2))).sum(1)
    bound = 1e-12 * max(1.0, wanted.abs().max().item() if nodes else 0)
    torch.testing.assert_close(cauchy(v, z, lam, backend=backend), wanted, atol=bound, rtol=0)


def test_cauchy_sums_invert_diagonal_minus_rank_one_as_woodbury_says():
    """q^H (zI - Λ + p p^H)^-1 b = r(q*, b) - r(q*, p) r(p*, b) / (1 + r(p*, p)), r(u, v) = sum u v / (z - λ)."""
    torch.manual_seed(3)
    lam = torch.complex(-torch.rand(4) - 0.1, torch.randn(4)).cdouble()
    q, p, b = torch.randn(3, 4, dtype=torch.complex128)
    z = torch.randn(20, dtype=torch.complex128)
    sums = cauchy(torch.stack([q.conj() * b, q.conj() * p, p.conj() * b, p.conj() * p]), z, lam.expand(4, 4))
    got = sums[0] - sums[1] * sums[2] / (1 + sums[3])
    for node, value in zip(z, got, strict=True):
        dense = node * torch.eye(4, dtype=z.dtype) - torch.diag(lam) + torch.outer(p, p.conj())
        torch.testing.assert_close(value, q.conj() @ torch.linalg.solve(dense, b), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 3, 64, 127, 256])
@pytest.mark.parametrize("N", [2, 32])
def test_the_kernel_is_that_of_dense_matrix_powers(backend, length, N):
    """Also at even lengths, where the textbook's form divides by 1 + z = 0."""
    arguments, wanted = system(N, torch.tensor([-2.0, -5.0, 0.0]).double(), length)
    K = dplr_kernel(*arguments, length, backend=backend)
    torch.testing.assert_close(K, wanted, atol=1e-11 * N, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_inputs_give_as_many_kernels(backend):
    (log_dt, A, P, B, C), _ = system(8, torch.tensor([-2.0, -4.0]).double(), 50)
    many = torch.stack([B, torch.randn_like(B), 1j * B])
    K = dplr_kernel(log_dt, A, P, many, C, 50, backend=backend)
    wanted = torch.stack([dplr_kernel(log_dt, A, P, b, C, 50, backend="reference") for b in many])
    torch.testing.assert_close(K, wanted, atol=1e-12, rtol=0)


@pytest.mark.slow
def test_float32_is_within_1e_5_of_float64_at_sixteen_thousand_steps():
    log_dt = torch.tensor([-6.5, -3.0]).double()
    arguments, _ = system(64, log_dt, 1)
    torch.manual_seed(0)
    arguments = (*arguments[:4], torch.randn_like(arguments[4]))
    wanted = dplr_kernel(*arguments, 16384, backend="reference")
    narrow = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in arguments]
    K = dplr_kernel(*narrow, 16384)
    assert K.dtype == torch.float32
    assert ((K - wanted).abs().amax(1) < 1e-5 * wanted.abs().amax(1)).all()


@pytest.mark.slow
def test_gradients_of_every_order_and_mode():
    v, z, lam = fractions(nodes=5)
    inputs = (v.requires_grad_(), lam.requires_grad_())
    assert torch.autograd.gradcheck(lambda v, lam: cauchy(v, z, lam), inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda v, lam: cauchy(v, z, lam), inputs)
    arguments, _ = system(4, torch.tensor([-1.0, 0.0]).double(), 6)
    leaves = [x.clone().requires_grad_() for x in arguments]
    for length in (5, 6):
        assert torch.autograd.gradcheck(lambda *a, n=length: dplr_kernel(*a, n), leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *a: dplr_kernel(*a, 4), leaves)


def test_gradients_equal_those_of_the_reference_over_many_blocks():
    arguments, _ = system(10, torch.tensor([-2.0, -4.0]).double(), 300)
    arguments = (*arguments[:3], torch.stack([arguments[3], 1j * arguments[3]]), arguments[4])
    found = []
    for backend in BACKENDS:
        leaves = [x.clone().requires_grad_() for x in arguments]
        found.append(torch.autograd.grad(dplr_kernel(*leaves, 300, backend=backend).square().sum(), leaves))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9 * wanted.abs().max().item(), rtol=0)


def test_vmap_and_compile_give_the_same():
    arguments, wanted = system(6, torch.tensor([-2.0, -4.0]).double(), 40)
    C = torch.stack([arguments[4], 2 * arguments[4]])
    got = torch.func.vmap(lambda C: dplr_kernel(*arguments[:4], C, 40))(C)
    torch.testing.assert_close(got, torch.stack([wanted, 2 * wanted]), atol=1e-11, rtol=0)
    torch.compiler.reset()
    log_dt = arguments[0].clone().requires_grad_()

    def energy(log_dt):
        return dplr_kernel(log_dt, *arguments[1:], 40).square().sum()

    compiled = torch.compile(energy, backend="aot_eager", fullgraph=True)
    (one,), (other,) = torch.autograd.grad(compiled(log_dt), log_dt), torch.autograd.grad(energy(log_dt), log_dt)
    torch.testing.assert_close(one, other, atol=1e-10, rtol=1e-8)


_GPU = """
import torch
from carrel.ops import cauchy, dplr_kernel
torch.manual_seed(0)
for modes, length, batch in [(3, 300, 1), (2, 7, 4)]:
    A = torch.complex(-torch.rand(2, modes) - 0.1, torch.randn(2, modes)).cdouble()
    given = [torch.tensor([-1.0, -2.0]).double(), A, *torch.randn(2, 2, modes, dtype=torch.complex128)]
    given.insert(3, torch.randn(batch, 2, modes, dtype=torch.complex128))
    found = []
    for backend in ("reference", "gpu"):
        leaves = [x.clone().requires_grad_() for x in given]
        K = dplr_kernel(*leaves, length, backend=backend)
        found.append([K, *torch.autograd.grad(K.square().sum(), leaves)])
    for wanted, got in zip(*found):
        assert (got - wanted).abs().max() <= 1e-10 * wanted.abs().max(), (modes, length)
    narrow = [x.to(torch.complex64 if x.is_complex() else torch.float32) for x in given]
    K = dplr_kernel(*narrow, length, backend="gpu")
    assert K.dtype == torch.float32 and (K - found[0][0]).abs().max() < 1e-5 * K.abs().max()
print("equal")
"""


@pytest.mark.slow
def test_triton_kernels_equal_the_reference_in_the_interpreter():
    pytest.importorskip("triton", reason="needs Triton, which is not installed")
    run = subprocess.run(
        [sys.executable, "-c", _GPU], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "equal", run.stderr


def bad(**change):
    def call():
        (log_dt, A, P, B, C), _ = system(4, torch.tensor([-1.0, 0.0]).double(), 1)
        given = {"log_dt": log_dt, "A": A, "P": P, "B": B, "C": C, "length": 5} | change
        dplr_kernel(**given)

    return call


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (bad(length=0), "dplr_kernel: length must be at least 1, got 0"),
        (
            bad(A=torch.zeros(2, 3) + 0j),
            "dplr_kernel: log_dt must be .channels,. and A, P and C .channels, modes.",
        ),
        (bad(log_dt=torch.zeros(3)), "dplr_kernel: log_dt must be .channels,."),
        (bad(B=torch.zeros(2) + 0j), "dplr_kernel: B must end in .2, 2. like C, got shape .2,."),
        (bad(P=torch.zeros(2, 2)), "dplr_kernel: P must be complex64 or complex128, got torch.fl"),
        (bad(B=torch.zeros(2, 2, device="meta") + 0j), "dplr_kernel: B is on meta but C is on cpu"),
        (lambda: cauchy(*fractions()[:2], torch.zeros(2, 2) + 0j), "cauchy: v and lam must both be .channels, modes."),
        (
            lambda: cauchy(fractions()[0], torch.zeros(4), fractions()[2]),
            "cauchy: z must be complex64",
        ),
        (lambda: cauchy(*fractions(), backend="numba"), "cauchy: backend must be one of"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call()
