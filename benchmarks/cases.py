"""The cases, as data."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from carrel.ops import linear_scan, matrix_scan

from . import (
    concentration,
    decay,
    deer,
    gau,
    heads,
    linear_attention,
    linear_road,
    mamba,
    margin,
    nbce,
    normalizers,
    peers,
    perturb,
    rwkv,
    sparse_attention,
    state_spaces,
)
from .case import Bar, Case, Problem, Side


def _gradients(scan: peers.Scan, inputs: tuple[Tensor, ...], arrived: Tensor) -> Side:
    """Forward and backward, with a dense gradient arriving."""
    return lambda: torch.autograd.grad(scan(*inputs), inputs, arrived)


def _worst(got: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> float:
    """The largest error, each tensor's in units of its own largest entry."""
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in zip(got, wanted, strict=True))


def _inputs(
    device: torch.device, *shape: int, dtype: torch.dtype, invariant: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    real = torch.float32 if dtype.is_complex or dtype.itemsize < 4 else dtype
    a = torch.rand(shape[-1:] if invariant else shape, device=device, dtype=real)
    b = torch.randn(shape, device=device, dtype=torch.complex64 if dtype.is_complex else real)
    if dtype.is_complex:
        a = torch.polar(a, 6.28 * torch.rand_like(a))
    arrived = torch.randn_like(b)
    return a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_(), arrived.to(dtype)


def _ours(a: Tensor, b: Tensor) -> Tensor:
    return linear_scan(a, b)[0]


def _against_loop(a: Tensor, b: Tensor, arrived: Tensor) -> Callable[[], float]:
    """Our h and gradients against the Python loop in double precision."""

    def check() -> float:
        wide = torch.complex128 if b.is_complex() else torch.float64
        exact = [x.detach().to(wide).requires_grad_() for x in (a, b)]
        wanted = peers.loop(exact[0].expand(b.shape), exact[1])
        wanted_gradients = torch.autograd.grad(wanted, exact, arrived.to(wide))
        got = _ours(a, b)
        return _worst((got, *torch.autograd.grad(got, (a, b), arrived)), (wanted, *wanted_gradients))

    return check


def _training(device: torch.device) -> Problem:
    batch, length, dim = 8, 4096, 256
    a, b, arrived = _inputs(device, batch, length, dim, dtype=torch.float32)
    same, _, _ = _inputs(device, batch, length, dim, dtype=torch.float32, invariant=True)
    gru = torch.nn.GRU(dim, dim, batch_first=True, device=device)
    sides: dict[str, Side] = {
        "carrel linear_scan": _gradients(_ours, (a, b), arrived),
        "carrel linear_scan, one factor for all tokens": _gradients(_ours, (same, b), arrived),
        "torch a * b": _gradients(torch.mul, (a, b), arrived),
        "torch associative_scan (generic)": _gradients(peers.associative_scan("generic"), (a, b), arrived),
        "torch loop": _gradients(peers.loop, (a, b), arrived),
        "torch nn.GRU": lambda: torch.autograd.grad(gru(b)[0], (b, *gru.parameters()), arrived),
    }
    absent = {}
    mambapy = peers.mambapy_scans()
    if not mambapy:
        absent["mambapy pscan"] = "not installed"
    for name, scan in mambapy.items():
        sides[name] = _gradients(scan, (a, b), arrived)
    return Problem(_against_loop(a, b, arrived), 1e-4, sides, 8 * b.numel() * 4, absent)


def _half(device: torch.device) -> Problem:
    a, b, arrived = _inputs(device, 8, 4096, 256, dtype=torch.bfloat16)
    sides = {
        "carrel linear_scan": _gradients(_ours, (a, b), arrived),
        "torch a * b": _gradients(torch.mul, (a, b), arrived),
    }
    return Problem(_against_loop(a, b, arrived), 2e-2, sides, 8 * b.numel() * 2)


def _complex(device: torch.device) -> Problem:
    a, b, arrived = _inputs(device, 8, 4096, 128, dtype=torch.complex64, invariant=True)
    sides = {
        "carrel linear_scan": _gradients(_ours, (a, b), arrived),
        "torch a * b": _gradients(torch.mul, (a, b), arrived),
        "torch loop": _gradients(lambda a, b: peers.loop(a.expand(b.shape), b), (a, b), arrived),
    }
    return Problem(_against_loop(a, b, arrived), 1e-4, sides, 5 * b.numel() * 8)


def _token(device: torch.device) -> Problem:
    torch.manual_seed(0)
    a, b, h0 = torch.rand(1, 1, 256), torch.randn(1, 1, 256), torch.randn(1, 256)
    one = a[0, 0]

    def quiet(side: Side) -> Side:
        def run() -> object:
            with torch.no_grad():
                return [side() for _ in range(1000)]

        return run

    sides = {
        "carrel linear_scan": quiet(lambda: linear_scan(a, b, h0)),
        "carrel linear_scan, one factor for all tokens": quiet(lambda: linear_scan(one, b, h0)),
        'carrel linear_scan, backend="cpu"': quiet(lambda: linear_scan(a, b, h0, backend="cpu")),
        "torch a * h0 + b": quiet(lambda: a * h0 + b),
    }
    return Problem(lambda: _worst(linear_scan(a, b, h0), (a * h0 + b, a[:, 0] * h0 + b[:, 0])), 1e-6, sides)


def _matrix(device: torch.device) -> Problem:
    torch.manual_seed(0)
    batch, length, n = 8, 4096, 4
    A = (torch.randn(batch, length, n, n, device=device) * 0.3).requires_grad_()
    b = torch.randn(batch, length, n, device=device).requires_grad_()
    arrived = torch.randn_like(b)

    def loop(A: Tensor, b: Tensor) -> Tensor:
        return matrix_scan(A, b, backend="reference")[0]

    def ours(A: Tensor, b: Tensor) -> Tensor:
        return matrix_scan(A, b)[0]

    def check() -> float:
        exact = [x.detach().double().requires_grad_() for x in (A, b)]
        wanted, got = loop(*exact), ours(A, b)
        gradients = torch.autograd.grad(wanted, exact, arrived.double())
        return _worst((got, *torch.autograd.grad(got, (A, b), arrived)), (wanted, *gradients))

    sides = {
        "carrel matrix_scan": _gradients(ours, (A, b), arrived),
        "torch loop of batched products": _gradients(loop, (A, b), arrived),
    }
    return Problem(check, 1e-4, sides, 4 * (2 * A.numel() + 5 * b.numel()))


def _on_gpu(shape: tuple[int, int, int], dtype: torch.dtype, invariant: bool = False) -> Callable[..., Problem]:
    def build(device: torch.device) -> Problem:
        a, b, arrived = _inputs(device, *shape, dtype=dtype, invariant=invariant)
        streams = 5 if invariant else 8
        moved = streams * b.numel() * b.element_size()
        source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        compiled = torch.compile(peers.associative_scan("pointwise"))
        sides: dict[str, Side] = {
            "carrel linear_scan": _gradients(_ours, (a, b), arrived),
            "copy of as many bytes": lambda: target.copy_(source),
            "torch a * b": _gradients(torch.mul, (a, b), arrived),
        }
        small = _inputs(device, 2, min(shape[1], 700), 33, dtype=dtype, invariant=invariant)
        absent = {}
        others: dict[str, peers.Scan | None] = {
            "torch associative_scan (compiled)": lambda a, b: compiled(a.expand(b.shape), b),
            "accelerated-scan": peers.accelerated_scan(),
        }
        for name, scan in others.items():
            if scan is None:
                absent[name] = "not installed"
                continue
            try:
                side = _gradients(scan, (a, b), arrived)
                side()
            except Exception as error:  # a peer that cannot run this is a line of the table, not our failure
                absent[name] = (
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0][:120] if str(error) else ''}"
                )
            else:
                sides[name] = side
        tolerance = 3e-2 if dtype.itemsize < 4 else 1e-4
        return Problem(_against_loop(*small), tolerance, sides, moved, absent)

    return build


def _words(shape: tuple[int, ...], rest: str) -> str:
    return f"forward and backward, {' x '.join(map(str, shape))} {rest}"


_LONG, _FEW = (8, 16384, 2048), (1, 65536, 256)

CASES = {
    case.name: case
    for case in (
        Case(
            "scan",
            "forward and backward, 8 x 4096 x 256 float32",
            _training,
            bars=(
                Bar("torch a * b", 1 / 1.5),
                Bar("torch associative_scan (generic)", 8),
                Bar("mambapy pscan", 8),
                Bar("torch nn.GRU", 30),
            ),
            rounds=5,
        ),
        Case("scan-bf16", "forward and backward, 8 x 4096 x 256 bfloat16", _half),
        Case("scan-complex", "forward and backward, one factor for all tokens, 8 x 4096 x 128 complex64", _complex),
        Case(
            "scan-token",
            "one token of 256 channels, no gradient, a thousand calls",
            _token,
            bars=(Bar("torch a * h0 + b", 1 / 1.5),),
            rounds=41,
        ),
        Case("matrix-scan", "forward and backward, 8 x 4096 matrices of 4 x 4, float32", _matrix, rounds=5),
        *(
            Case(name, _words(shape, about), _on_gpu(shape, dtype, same), "cuda", inner=5)
            for name, shape, dtype, same, about in (
                ("gpu-scan", _LONG, torch.float32, False, "float32"),
                ("gpu-scan-bf16", _LONG, torch.bfloat16, False, "bfloat16"),
                ("gpu-scan-invariant", _LONG, torch.float32, True, "float32, one factor for all tokens"),
                ("gpu-scan-few-rows", _FEW, torch.float32, False, "float32"),
            )
        ),
        Case("gpu-matrix-scan", "forward and backward, 8 x 4096 matrices of 4 x 4, float32", _matrix, "cuda", rounds=5),
        *concentration.CASES,
        *decay.CASES,
        *deer.CASES,
        *gau.CASES,
        *heads.CASES,
        *linear_attention.CASES,
        *linear_road.CASES,
        *mamba.CASES,
        *margin.CASES,
        *nbce.CASES,
        *normalizers.CASES,
        *perturb.CASES,
        *rwkv.CASES,
        *sparse_attention.CASES,
        *state_spaces.CASES,
    )
}
