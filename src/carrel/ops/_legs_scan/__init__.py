"""`legs_scan`: the memory of the whole past, in O(N) per sample."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import resolve
from . import reference
from .derivatives import op

IMPLICIT = {"forward": 0.0, "bilinear": 0.5, "backward": 1.0}


def legs_scan(
    f: Tensor, x0: Tensor, pos: Tensor, *, method: str = "bilinear", every: bool = True, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""Legendre coefficients of all that a signal has been so far, updated sample by sample.

    .. math:: \Big(I - \frac{\beta}{k} A\Big) x_k = \Big(I + \frac{1 - \beta}{k} A\Big) x_{k-1} + \frac1k B f_k

    with A, B those of HiPPO-LegS, :math:`B_n = \sqrt{2n+1}`, :math:`A_{nm} = -B_n B_m` for n > m, :math:`A_{nn} =
    -(n+1)`; β is 0 for "forward", 1/2 for "bilinear", 1 for "backward".

    Args:
        f: (rows, length), float32 or float64; the samples. Only their order matters, not the time between them.
        x0: (rows, N), what earlier samples left, in the type of ``f``.
        pos: (rows,) whole numbers, samples seen before; k counts on from there.
        every: return the coefficients after every sample, else only the last.
        backend: "auto", "reference" (torch, dense) or "cpu" (numba); there is no kernel for the GPU, where "auto"
            takes the reference.
    Returns x (rows, length, N), or (rows, 0, N) if not ``every``; and the last x, (rows, N).
    Raises ValueError: shapes or types disagree, another method, backend="gpu".
    Cost: 10 N operations per sample; the reference solves a triangular system, N^2. Nothing is kept for the backward.
    Source: arXiv:2008.07669, theorem 2 and appendix E.
    """
    if method not in IMPLICIT:
        raise ValueError(f"legs_scan: method must be one of {', '.join(IMPLICIT)}, got {method!r}")
    if f.dtype not in (torch.float32, torch.float64) or x0.dtype != f.dtype:
        raise ValueError(f"legs_scan: f and x0 must both be float32 or both float64, got {f.dtype} and {x0.dtype}")
    if f.ndim != 2 or x0.ndim != 2 or pos.shape != f.shape[:1] or x0.shape[0] != f.shape[0]:
        raise ValueError(
            "legs_scan: f must be (rows, length), x0 (rows, N) and pos (rows,), "
            f"got {tuple(f.shape)}, {tuple(x0.shape)} and {tuple(pos.shape)}"
        )
    if backend == "gpu":
        raise ValueError('legs_scan: there is no kernel for the GPU; use backend="auto" or "reference"')
    name = resolve("legs_scan", backend, f.device)
    k = pos.to(torch.float64)
    if name != "cpu":
        x, last = reference.scan(f, x0, k, IMPLICIT[method])
        return (x if every else x[:, :0]), last
    return op(f, x0, k, IMPLICIT[method], every)  # type: ignore[return-value]
