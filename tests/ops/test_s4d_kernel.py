"""`s4d_kernel`, `vandermonde`, `power_sums`: K_l = 2 Re sum_n C_n b_n exp(a_n l) and the sums that it is made of."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch

from carrel.ops import discretize_diagonal, power_sums, s4d_kernel, vandermonde

BACKENDS = ["reference", "cpu"]


def problem(channels=3, modes=5, length=200, batch=2, seed=0, dtype=torch.complex128):
    """v, a and u; modes decay slowly enough to be seen at the last step."""
    torch.manual_seed(seed)
    a = torch.complex(-torch.rand(channels, modes).double() * 0.02, 3 * torch.randn(channels, modes).double())
    v = torch.randn(batch, channels, modes, dtype=dtype)
    return v, a, torch.randn(batch, channels, length, dtype=dtype.to_real())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 256, 257, 5000])
@pytest.mark.parametrize("modes", [1, 2, 5])
def test_vandermonde_is_the_real_part_of_the_sum_of_powers(backend, length, modes):
    v, a, _ = problem(modes=modes)
    wanted = (v * torch.exp(a * (length - 1))).sum(-1).real
    k = vandermonde(v, a, length, backend=backend)
    assert k.shape == (2, 3, length)
    torch.testing.assert_close(k[..., -1], wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(k[..., 0], v.sum(-1).real, atol=1e-12, rtol=0)
    middle = length // 2
    torch.testing.assert_close(k[..., middle], (v * torch.exp(a * middle)).sum(-1).real, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 257, 5000])
def test_power_sums_are_the_sums_written_out(backend, length):
    _, a, u = problem(length=length)
    powers = torch.exp(a[..., None] * torch.arange(length))
    wanted = torch.einsum("bhl,hnl->bhn", u + 0j, powers)
    torch.testing.assert_close(power_sums(u, a, backend=backend), wanted, atol=1e-10, rtol=0)


def test_without_a_batch_the_result_has_none():
    v, a, u = problem()
    torch.testing.assert_close(vandermonde(v[0], a, 70), vandermonde(v, a, 70)[0], atol=0, rtol=0)
    torch.testing.assert_close(power_sums(u[0], a), power_sums(u, a)[0], atol=0, rtol=0)


@pytest.mark.parametrize("disc", ["zoh", "bilinear"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_kernel_is_the_impulse_response_of_the_recurrence(disc, backend):
    """x_l = exp(a) x_{l-1} + b u_l, y_l = 2 Re C x_l with u = (1, 0, 0, ...); so K_0 = 2 Re C b."""
    torch.manual_seed(1)
    log_dt, A = torch.tensor([-3.0, -1.0]).double(), torch.complex(-torch.rand(2, 4), torch.randn(2, 4)).cdouble()
    C = torch.randn(2, 4, dtype=torch.complex128)
    dt = log_dt.exp()[:, None]
    if disc == "zoh":
        factor, b = torch.exp(dt * A), (torch.exp(dt * A) - 1) / A
    else:
        factor, b = (1 + dt / 2 * A) / (1 - dt / 2 * A), dt / (1 - dt / 2 * A)
    x, rows = b, []
    for _ in range(150):
        rows.append(2 * (C * x).sum(-1).real)
        x = factor * x
    K = s4d_kernel(log_dt, A, C, 150, disc=disc, backend=backend)
    torch.testing.assert_close(K, torch.stack(rows, 1), atol=1e-12, rtol=0)
    torch.testing.assert_close(s4d_kernel(log_dt, A[0], C, 3)[0], s4d_kernel(log_dt, A, C, 3)[0], atol=0, rtol=0)


def test_zoh_is_accurate_where_the_rate_is_nearly_zero():
    """(exp(x) - 1) / x by the series on one side of the seam and by expm1 on the other."""
    A = torch.tensor([-1e-12, -1e-9 + 1e-9j, -0.99e-4, -1.01e-4 + 1e-6j, -1.0]).cdouble()
    a, b = discretize_diagonal(torch.zeros(()), A)
    wanted = sum(A**k / math.factorial(k + 1) for k in range(20))
    torch.testing.assert_close(b, wanted, atol=1e-15, rtol=0)
    torch.testing.assert_close(a, A, atol=0, rtol=0)


def test_float32_is_within_1e_5_of_float64_at_sixteen_thousand_steps():
    torch.manual_seed(0)
    log_dt = torch.empty(4).uniform_(math.log(1e-3), math.log(1e-1))
    A, C = torch.complex(torch.tensor(-0.5), 3.14159 * torch.arange(32)).expand(4, 32), torch.randn(4, 32) + 0j
    K = s4d_kernel(log_dt, A, C, 16384)
    wanted = s4d_kernel(log_dt.double(), A.cdouble(), C.cdouble(), 16384, backend="reference")
    assert K.dtype == torch.float32
    assert (K - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_powers_do_not_drift():
    """An undamped mode keeps its modulus and its phase over 400 000 steps."""
    a = torch.full((1, 1), 0.7j, dtype=torch.complex128)
    k = vandermonde(torch.ones(1, 1, dtype=torch.complex128), a, 400_000)
    steps = torch.arange(400_000).double()
    torch.testing.assert_close(k[0], torch.cos(0.7 * steps), atol=1e-9, rtol=0)


def test_modes_that_die_out_leave_exact_zeros_and_no_denormals():
    a = torch.full((1, 1), -2.0, dtype=torch.complex128)
    k = vandermonde(torch.ones(1, 1, dtype=torch.complex64), a, 1000)[0]
    assert (k[100:] == 0).all()
    torch.testing.assert_close(k[:10].double(), torch.exp(-2.0 * torch.arange(10).double()), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("length", [5, 130])
def test_gradients_of_every_order_and_mode(length):
    v, a, _ = problem(channels=2, modes=2, length=length, batch=2)
    small = torch.randn(2, 2, length, dtype=torch.float64)[..., :5].clone()
    inputs = (v.requires_grad_(), a.requires_grad_())
    assert torch.autograd.gradcheck(lambda v, a: vandermonde(v, a, length)[..., ::29], inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda v, a: vandermonde(v, a, 5), inputs)
    assert torch.autograd.gradcheck(power_sums, (small.requires_grad_(), a), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(power_sums, (small, a))


def test_s4d_kernel_gradients_in_every_parameter():
    torch.manual_seed(0)
    log_dt = torch.tensor([-2.0, -0.5], dtype=torch.float64, requires_grad=True)
    A = torch.complex(-torch.rand(2, 3).double(), torch.randn(2, 3).double()).requires_grad_()
    C = torch.randn(2, 3, dtype=torch.complex128, requires_grad=True)
    for disc in ("zoh", "bilinear"):
        assert torch.autograd.gradcheck(lambda *p, disc=disc: s4d_kernel(*p, 70, disc=disc)[:, ::13], (log_dt, A, C))


def test_gradients_equal_those_of_the_reference_over_many_tiles():
    v, a, u = problem(length=700)
    found = []
    for backend in BACKENDS:
        leaves = [x.clone().requires_grad_() for x in (v, a, u)]
        k = vandermonde(leaves[0], leaves[1], 700, backend=backend)
        s = power_sums(leaves[2], leaves[1], backend=backend)
        found.append(torch.autograd.grad(k.square().sum() + s.abs().square().sum(), leaves))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-10 * wanted.abs().max().item(), rtol=0)


def test_vmap_maps_weights_and_rates():
    v, a, u = problem()
    many, rates = torch.stack([v, 2 * v]), torch.stack([a, a / 2])
    for dims, args in [((0, None), (many, a)), ((None, 0), (v, rates)), ((0, 0), (many, rates))]:
        rows = [[x[i] if d == 0 else x for x, d in zip(args, dims, strict=True)] for i in range(2)]
        got = torch.func.vmap(lambda v, a: vandermonde(v, a, 70), dims)(*args)
        torch.testing.assert_close(got, torch.stack([vandermonde(*row, 70) for row in rows]), atol=1e-12, rtol=0)
    got = torch.func.vmap(power_sums, (None, 0))(u, rates)
    torch.testing.assert_close(got, torch.stack([power_sums(u, x) for x in rates]), atol=1e-12, rtol=0)
    got = torch.func.vmap(power_sums, (0, None))(torch.stack([u, 3 * u]), a)
    torch.testing.assert_close(got[1], 3 * power_sums(u, a), atol=1e-11, rtol=0)


def test_a_training_step_compiles_as_one_graph():
    torch.compiler.reset()
    torch.manual_seed(0)
    log_dt = torch.tensor([-2.0, -0.5], requires_grad=True)
    C = torch.randn(2, 3, 2, requires_grad=True)
    A = torch.complex(-torch.rand(2, 3), torch.randn(2, 3))

    def energy(log_dt, C):
        return s4d_kernel(log_dt, A, torch.view_as_complex(C), 90).square().sum()

    compiled = torch.compile(energy, backend="aot_eager", fullgraph=True)
    wanted = torch.autograd.grad(energy(log_dt, C), (log_dt, C))
    got = torch.autograd.grad(compiled(log_dt, C), (log_dt, C))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads):
    v, a, _ = problem(channels=7, modes=32, batch=1)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = vandermonde(v, a, 20_000)
        torch.set_num_threads(threads)
        assert torch.equal(vandermonde(v, a, 20_000), wanted)
    finally:
        torch.set_num_threads(before)


_GPU = """
import torch
from carrel.ops import power_sums, vandermonde
torch.manual_seed(0)
for channels, modes, length, dtype, bound in [
    (2, 3, 70, torch.complex128, 1e-12), (1, 2, 64, torch.complex64, 1e-5), (1, 1, 2100, torch.complex128, 1e-12)
]:
    a = torch.complex(-torch.rand(channels, modes).double() / 50, torch.randn(channels, modes).double())
    leaves = [torch.randn(2, channels, modes, dtype=dtype), a, torch.randn(2, channels, length, dtype=dtype.to_real())]
    found = []
    for backend in ("reference", "gpu"):
        v, a, u = (x.clone().requires_grad_() for x in leaves)
        k, s = vandermonde(v, a, length, backend=backend), power_sums(u, a, backend=backend)
        found.append([k, s, *torch.autograd.grad(k.square().sum() + s.abs().square().sum(), (v, a, u))])
    for wanted, got in zip(*found):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape
        assert (got - wanted).abs().max() <= bound * wanted.abs().max(), (length, dtype)
print("equal")
"""


@pytest.mark.slow
def test_triton_kernels_equal_the_reference_in_the_interpreter():
    pytest.importorskip("triton", reason="needs Triton, which is not installed")
    run = subprocess.run(
        [sys.executable, "-c", _GPU], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert run.stdout.strip() == "equal", run.stderr


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda v, a, u: vandermonde(v.real, a, 5), "vandermonde: v must be complex64 or complex128, got torch.fl"),
        (lambda v, a, u: vandermonde(v, a, 0), "vandermonde: length must be at least 1, got 0"),
        (lambda v, a, u: vandermonde(v[..., :2], a, 5), "vandermonde: v must have 5 modes like a, got shape"),
        (lambda v, a, u: vandermonde(v[:, :2], a, 5), "vandermonde: v must have 3 channels like a"),
        (
            lambda v, a, u: vandermonde(v, a.real, 5),
            "vandermonde: a must be complex .channels, modes., got torch.fl",
        ),
        (lambda v, a, u: vandermonde(v, a[0], 5), "vandermonde: a must be complex .channels, modes."),
        (lambda v, a, u: vandermonde(v, a.to("meta"), 5), "vandermonde: v is on cpu but a is on meta"),
        (lambda v, a, u: vandermonde(v, a, 5, backend="numba"), "vandermonde: backend must be one of"),
        (lambda v, a, u: power_sums(u.half(), a), "power_sums: u must be float32 or float64, got torch.float16"),
        (lambda v, a, u: power_sums(v, a), "power_sums: u must be float32 or float64, got torch.complex128"),
        (lambda v, a, u: s4d_kernel(u[0, :, 0], a, v[0], 0), "s4d_kernel: length must be at least 1, got 0"),
        (
            lambda v, a, u: s4d_kernel(u[0, :, 0], -a, v[0], 5),
            "s4d_kernel: A must have negative real parts",
        ),
        (lambda v, a, u: s4d_kernel(u[0, :, 0], a.real, v[0], 5), "s4d_kernel: A and C must be complex"),
        (lambda v, a, u: s4d_kernel(u[0, :, 0], a[:, :2], v[0], 5), "s4d_kernel: A must be .3, 5. or .5,., got .3, 2."),
        (lambda v, a, u: s4d_kernel(u[0, :2, 0], a, v[0], 5), "s4d_kernel: log_dt must be .channels,."),
        (lambda v, a, u: discretize_diagonal(u[0, :, :1], a, "euler"), "discretize_diagonal: disc must be one of zoh"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        call(*problem())
