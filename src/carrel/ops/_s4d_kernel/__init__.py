"""`s4d_kernel` and the two Vandermonde products that it and its streaming need."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import resolve
from . import reference
from .derivatives import evaluate as _evaluate
from .derivatives import sums as _sums

DISCRETIZATIONS = ("zoh", "bilinear")


def discretize_diagonal(log_dt: Tensor, A: Tensor, disc: str = "zoh") -> tuple[Tensor, Tensor]:
    r"""One step of a diagonal system x' = A x + u: the rate per step and what an input is worth.

    .. math:: \text{zoh: } a = \Delta A,\ \bar b = \frac{e^{\Delta A} - 1}{A}, \qquad \text{bilinear: }
              a = \log\frac{1 + \Delta A / 2}{1 - \Delta A / 2},\ \bar b = \frac{\Delta}{1 - \Delta A / 2}

    so that x_{l+1} = exp(a) x_l + b u_l.

    Args:
        log_dt: log of the step Δ (the unit of time of A), broadcastable to ``A``.
        A: complex, the rates of the modes in continuous time.
        disc: "zoh", exact for inputs that stay put during a step, or "bilinear".
    Returns a and b in complex128: the rates are multiplied by thousands of steps, which float32 does not bear.
    Raises ValueError: another ``disc``.   Source: arXiv:2206.11893, section 2.
    """
    A, dt = A.to(torch.complex128), torch.exp(log_dt.double())
    step = A * dt
    if disc == "zoh":
        # near 0 the quotient is its own series; the branch not taken must not make a NaN gradient
        small = step.abs() < 1e-4
        apart = torch.where(small, torch.ones_like(step), step)
        series = 1 + step / 2 * (1 + step / 3 * (1 + step / 4))
        return step, dt * torch.where(small, series, torch.expm1(apart) / apart)
    if disc == "bilinear":
        return 2 * torch.atanh(step / 2), dt / (1 - step / 2)
    raise ValueError(f"discretize_diagonal: disc must be one of {', '.join(DISCRETIZATIONS)}, got {disc!r}")


def s4d_kernel(
    log_dt: Tensor, A: Tensor, C: Tensor, length: int, *, disc: str = "zoh", backend: str = "auto"
) -> Tensor:
    r"""The convolution kernel of a diagonal state space, one row per channel.

    .. math:: K_l = 2\,\mathrm{Re} \sum_n C_n \bar b_n e^{a_n l}, \qquad l = 0 \ldots L - 1

    with a and b of :func:`discretize_diagonal`. Each mode stands for itself and its conjugate, hence 2 Re.

    Args:
        log_dt: (channels,), log of the step.
        A: (channels, modes) or (modes,), complex, Re A < 0.
        C: (channels, modes), complex, input and output weight in one.
        length: number of steps L, at least 1.
        disc: "zoh" or "bilinear".
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).
    Returns (channels, length), real, in the precision of ``C``.
    Raises ValueError: shapes or types disagree, length < 1; Re A >= 0, looked for on the CPU only and not while
    compiling. Cost: O(channels * modes * length) multiplications, one exponential in 64 of them, no memory beyond the
    result.
    Source: arXiv:2206.11893, equation 6.
    """
    if log_dt.ndim != 1 or C.ndim != 2 or C.shape[0] != log_dt.shape[0]:
        raise ValueError(
            "s4d_kernel: log_dt must be (channels,) and C (channels, modes), "
            f"got shapes {tuple(log_dt.shape)} and {tuple(C.shape)}"
        )
    if not A.is_complex() or not C.is_complex():
        raise ValueError(f"s4d_kernel: A and C must be complex, got {A.dtype} and {C.dtype}")
    if A.shape not in (C.shape, C.shape[1:]):
        raise ValueError(f"s4d_kernel: A must be {tuple(C.shape)} or {tuple(C.shape[1:])}, got {tuple(A.shape)}")
    if length < 1:
        raise ValueError(f"s4d_kernel: length must be at least 1, got {length}")
    if readable(A) and bool((A.real >= 0).any()):
        raise ValueError(f"s4d_kernel: A must have negative real parts, got one of {float(A.real.max())}")
    a, b = discretize_diagonal(log_dt.unsqueeze(-1), A, disc)
    return vandermonde((2 * C * b).to(C.dtype), a, length, backend=backend)


def vandermonde(v: Tensor, a: Tensor, length: int, *, backend: str = "auto") -> Tensor:
    r"""A sum of decaying, turning modes at the first steps.    k_l = Re sum_n v_n exp(a_n l)

    .. math:: k_l = \mathrm{Re} \sum_n v_n e^{a_n l}, \qquad l = 0 \ldots \texttt{length} - 1

    Args:
        v: (channels, modes) or (batch, channels, modes), complex: what each mode starts from.
        a: (channels, modes), complex, per step; kept in complex128. Re a <= 0, or the sum grows.
        length: at least 1.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).
    Returns (channels, length) or (batch, channels, length), real, in the precision of ``v``.
    Raises ValueError: shapes, types or devices disagree.
    Cost: O(batch * channels * modes * length); nothing of size modes * length is stored.
    """
    a = _check("vandermonde", "v", v, a)
    if v.dtype not in (torch.complex64, torch.complex128):
        raise ValueError(f"vandermonde: v must be complex64 or complex128, got {v.dtype}")
    if v.shape[-1] != a.shape[1]:
        raise ValueError(f"vandermonde: v must have {a.shape[1]} modes like a, got shape {tuple(v.shape)}")
    if length < 1:
        raise ValueError(f"vandermonde: length must be at least 1, got {length}")
    name = resolve("vandermonde", backend, v.device)
    if name == "reference":
        return reference.evaluate(v, a, length)
    (k,) = _evaluate(v if v.ndim == 3 else v.unsqueeze(0), a, length, name)
    return k.view(*v.shape[:-1], length)


def power_sums(u: Tensor, a: Tensor, *, backend: str = "auto") -> Tensor:
    r"""What every mode makes of a sequence, the adjoint of :func:`vandermonde`.

    .. math:: s_n = \sum_l u_l e^{a_n l}

    Args:
        u: (channels, length) or (batch, channels, length), float32 or float64.
        a: (channels, modes), complex, per step; kept in complex128.
        backend: as above.
    Returns (channels, modes) or (batch, channels, modes), complex, in the precision of ``u``.
    Raises ValueError: shapes, types or devices disagree.
    Cost: O(batch * channels * modes * length); nothing of size modes * length is stored.
    """
    a = _check("power_sums", "u", u, a)
    if u.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"power_sums: u must be float32 or float64, got {u.dtype}")
    name = resolve("power_sums", backend, u.device)
    if name == "reference":
        return reference.sums(u, a)
    (s,) = _sums(u if u.ndim == 3 else u.unsqueeze(0), a, name)
    return s.view(*u.shape[:-1], a.shape[1])


def readable(x: Tensor) -> bool:
    """Whether looking at values costs nothing: no device to wait for, no tracer, no transform."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
    )


def _check(op: str, name: str, x: Tensor, a: Tensor) -> Tensor:
    if a.ndim != 2 or not a.is_complex():
        raise ValueError(f"{op}: a must be complex (channels, modes), got {a.dtype} of shape {tuple(a.shape)}")
    if x.ndim not in (2, 3) or x.shape[-2] != a.shape[0]:
        raise ValueError(f"{op}: {name} must have {a.shape[0]} channels like a, got shape {tuple(x.shape)}")
    if x.device != a.device:
        raise ValueError(f"{op}: {name} is on {x.device} but a is on {a.device}; they must be on one device")
    return a.to(torch.complex128)
