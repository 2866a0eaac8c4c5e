"""State spaces: kernels of S4D and S4, the S4D layer and the memory LegS, beside the same sums in torch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from carrel.layers import fft_conv
from carrel.ops import discretize_diagonal, dplr_kernel, legs_scan, s4d_kernel
from carrel.recurrent import S4D, hippo_matrices, legs_normal_part

from .case import Bar, Case, Problem, Side

_N, _LENGTH, _TILE = 64, 16384, 64
Kernel = Callable[..., Tensor]
_TABLE, _TWO_TABLES = "torch, one table of powers", "torch, two tables of powers"
_ALL, _PAIRS = "torch, all modes", "torch, one quotient per pair"


def _table(log_dt: Tensor, A: Tensor, C: Tensor, length: int) -> Tensor:
    """The product with the Vandermonde matrix, which holds channels * modes * length complex numbers."""
    step = A * torch.exp(log_dt).unsqueeze(1)
    powers = torch.exp(step.unsqueeze(2) * torch.arange(length, device=A.device))
    return 2 * torch.matmul((C * torch.expm1(step) / A).unsqueeze(1), powers).squeeze(1).real


def _two_tables(log_dt: Tensor, A: Tensor, C: Tensor, length: int) -> Tensor:
    """exp(a (64 q + r)) = exp(64 a q) exp(a r): two tables of 64 times fewer powers, and one batched product."""
    a, b = discretize_diagonal(log_dt.unsqueeze(1), A)
    steps = torch.arange(_TILE, device=A.device)
    tiles = torch.arange(-(-length // _TILE), device=A.device) * _TILE
    inner, outer = torch.exp(a.unsqueeze(2) * steps), (2 * C * b).unsqueeze(2) * torch.exp(a.unsqueeze(2) * tiles)
    left = torch.cat([outer.real, outer.imag], 1).to(C.real.dtype)
    right = torch.cat([inner.real, -inner.imag], 1).to(C.real.dtype)
    return torch.bmm(left.mT, right).flatten(1)[:, :length]


def _nodes(log_dt: Tensor, length: int) -> tuple[Tensor, Tensor]:
    z = torch.polar(torch.ones(()), torch.arange(length // 2 + 1) * (-2 * math.pi / length)).to(log_dt.device)
    return (2 * torch.exp(-log_dt)).unsqueeze(1) * (1 - z), (1 + z).unsqueeze(0)


def _finish(sums: Tensor, h: Tensor, length: int) -> Tensor:
    cb, pb, cp, pp = sums.unbind(1)
    return torch.fft.irfft(2 * (cb - h * cp * pb / (1 + h * pp)), length)


def _all_modes(log_dt: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    g, h = _nodes(log_dt, length)
    weights = torch.stack([C * B, P.conj() * B, C * P, P.conj() * P], 1)
    modes = torch.cat([A, A.conj()], 1).unsqueeze(2)
    quotients = 1 / (g.unsqueeze(1) - modes * h.unsqueeze(1))
    return _finish(torch.bmm(torch.cat([weights, weights.conj()], 2), quotients), h, length)


def _pairs(log_dt: Tensor, A: Tensor, P: Tensor, B: Tensor, C: Tensor, length: int) -> Tensor:
    """Our algebra, in torch: one quotient for a mode and its conjugate, and products with real weights."""
    g, h = _nodes(log_dt, length)
    weights = torch.stack([C * B, P.conj() * B, C * P, P.conj() * P], 1)
    twice, square = 2 * A.real.unsqueeze(2), A.abs().square().unsqueeze(2)
    quotients = 1 / ((g * g).unsqueeze(1) - twice * (g * h).unsqueeze(1) + square * (h * h).unsqueeze(1))
    real = torch.view_as_real(quotients).flatten(2)
    plain = torch.bmm(2 * weights.real, real).unflatten(2, (-1, 2))
    mixed = torch.bmm(2 * (weights * A.conj().unsqueeze(1)).real, real).unflatten(2, (-1, 2))
    sums = g.unsqueeze(1) * torch.view_as_complex(plain) - h.unsqueeze(1) * torch.view_as_complex(mixed)
    return _finish(sums, h, length)


def _worst(got: Tensor, wanted: Tensor) -> float:
    return float(((got - wanted).abs().amax(1) / wanted.abs().amax(1)).max())


def _problem(ours: Kernel, others: dict[str, Kernel], given: list[Tensor], name: str, backward: bool) -> Problem:
    leaves = [x.clone().requires_grad_() for x in given]
    arrived = torch.randn(len(given[0]), _LENGTH, device=given[0].device)

    def side(kernel: Kernel) -> Side:
        def run() -> object:
            if backward:
                return torch.autograd.grad(kernel(*leaves, _LENGTH), leaves, arrived)
            with torch.no_grad():
                return kernel(*given, _LENGTH)

        return run

    def check() -> float:
        wide = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in given]
        wanted = ours(*wide, _LENGTH, backend="reference")
        return max(_worst(kernel(*given, _LENGTH), wanted) for kernel in (ours, *others.values()))

    return Problem(check, 1e-4, {name: side(ours)} | {other: side(kernel) for other, kernel in others.items()})


def _s4d(channels: int, backward: bool = False) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        log_dt = torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1))
        A = torch.complex(torch.tensor(-0.5), math.pi * torch.arange(_N // 2)).expand(channels, -1).contiguous()
        given = [x.to(device) for x in (log_dt, A, torch.randn(channels, _N // 2, dtype=torch.complex64))]
        others = {_TABLE: _table, _TWO_TABLES: _two_tables}
        return _problem(s4d_kernel, others, given, "carrel s4d_kernel", backward)

    return build


def _dplr(channels: int, backward: bool = False) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        start = legs_normal_part(_N)
        log_dt = torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1))
        parts = [x.to(torch.complex64).expand(channels, -1).contiguous() for x in start[:3]]
        given = [x.to(device) for x in (log_dt, *parts, torch.randn(channels, _N // 2, dtype=torch.complex64))]
        return _problem(dplr_kernel, {_ALL: _all_modes, _PAIRS: _pairs}, given, "carrel dplr_kernel", backward)

    return build


def _layer(device: torch.device) -> Problem:
    """The layer, forward and backward, beside the same convolution with the kernel from one table."""
    torch.manual_seed(0)
    layer, x = S4D(64, _N, init="lin").to(device), torch.randn(8, 2048, 64, device=device, requires_grad=True)
    arrived, leaves = torch.randn_like(x), [x, *layer.parameters()]

    def composed() -> Tensor:
        K = _table(layer.log_dt, layer.rates(), torch.view_as_complex(layer.C), x.shape[1])
        return fft_conv(x.transpose(1, 2), K).transpose(1, 2) + layer.D * x

    def check() -> float:
        y = layer(x)[0]
        return float((composed() - y).detach().abs().max() / y.detach().abs().max())

    sides: dict[str, Side] = {
        "carrel S4D": lambda: torch.autograd.grad(layer(x)[0], leaves, arrived),
        "torch, table of powers and FFT, no state": lambda: torch.autograd.grad(composed(), leaves, arrived),
    }
    return Problem(check, 1e-4, sides)


def _legs(device: torch.device) -> Problem:
    """A thousand samples of 16 signals into 256 coefficients: O(N) per sample beside the dense triangular solve."""
    torch.manual_seed(0)
    f, size = torch.randn(16, 1000, device=device), 256
    x0, pos = torch.zeros(16, size, device=device), torch.zeros(16, dtype=torch.int64, device=device)
    A, B = (x.to(device, torch.float32) for x in hippo_matrices("legs", size))
    eye = torch.eye(size, device=device)

    def dense() -> Tensor:
        x = x0.T
        for k in range(1, f.shape[1] + 1):
            right = x + A @ x / (2 * k) + torch.outer(B, f[:, k - 1]) / k
            x = torch.linalg.solve_triangular(eye - A / (2 * k), right, upper=False)
        return x.T

    def ours() -> Tensor:
        return legs_scan(f, x0, pos, every=False)[1]

    return Problem(lambda: _worst(ours(), dense()), 1e-3, {"carrel legs_scan": ours, "torch, dense": dense})


_S4D_BARS = (Bar(_TABLE, 5), Bar(_TWO_TABLES, 1))
_DPLR_BARS = (Bar(_ALL, 5), Bar(_PAIRS, 1))

CASES = (
    *(
        Case(
            f"s4d-kernel{name}",
            f"{what}, {channels} channel(s), N = 64, L = 16384",
            _s4d(channels, backward),
            bars=bars,
        )
        for name, what, channels, backward, bars in (
            ("", "forward", 8, False, _S4D_BARS),
            ("-backward", "forward and backward", 8, True, _S4D_BARS),
            ("-one", "forward", 1, False, _S4D_BARS[:1]),
        )
    ),
    *(
        Case(
            f"dplr-kernel{name}",
            f"{what}, {channels} channel(s), N = 64, L = 16384",
            _dplr(channels, backward),
            bars=bars,
        )
        for name, what, channels, backward, bars in (
            ("", "forward", 8, False, _DPLR_BARS),
            ("-backward", "forward and backward", 8, True, _DPLR_BARS),
            ("-one", "forward", 1, False, _DPLR_BARS),
        )
    ),
    Case("s4d-layer", "forward and backward, 8 x 2048 x 64, N = 64", _layer, rounds=5),
    Case("legs-scan", "1000 samples of 16 signals, N = 256", _legs, bars=(Bar("torch, dense", 5),), rounds=5),
    Case("gpu-s4d-kernel", "forward, 256 channels, N = 64, L = 16384", _s4d(256), "cuda", inner=5),
    Case(
        "gpu-s4d-kernel-backward",
        "forward and backward, 64 channels, N = 64, L = 16384",
        _s4d(64, True),
        "cuda",
        inner=5,
    ),
    Case("gpu-dplr-kernel", "forward, 64 channels, N = 64, L = 16384", _dplr(64), "cuda", inner=5),
    Case(
        "gpu-dplr-kernel-backward",
        "forward and backward, 64 channels, N = 64, L = 16384",
        _dplr(64, True),
        "cuda",
        inner=5,
    ),
)
