"""The equations of `selective_scan` in torch, token by token; no tensor of (batch, length, channels, state) is made."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    h0: Tensor,
    bias: Tensor,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """y (B, L, e) and the last h (B, e, N), for B and C of (B, L, G, N); autograd differentiates it."""
    _check_values(A, delta, bias, softplus)
    step = delta + bias
    step = functional.softplus(step, threshold=1e3) if softplus else step
    run = x.shape[-1] // B.shape[2]
    h, rows = h0.clone(), []
    for t in range(x.shape[1]):
        dt = step[:, t].unsqueeze(-1)
        into = B[:, t].repeat_interleave(run, 1)
        h = torch.exp(dt * A) * h + dt * into * x[:, t].unsqueeze(-1)
        rows.append((C[:, t].repeat_interleave(run, 1) * h).sum(-1))
    y = (torch.stack(rows, 1) if rows else torch.zeros_like(x)) + D * x
    return (y if z is None else y * functional.silu(z)), h


def _check_values(A: Tensor, delta: Tensor, bias: Tensor, softplus: bool) -> None:
    """As the CPU's kernels do; not while tensors are wrappers or symbols, nor where a look would make a GPU wait."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or A.is_cuda or not delta.numel():
        return
    with torch.no_grad():
        if (A >= 0).any():
            raise ValueError(not_negative(A))
        if not softplus and (delta + bias < 0).any():
            raise ValueError(step_below_zero(delta, bias))


def not_negative(A: Tensor) -> str:
    return f"selective_scan: A must be negative everywhere, its largest entry is {A.max().item():g}"


def step_below_zero(delta: Tensor, bias: Tensor) -> str:
    return (
        "selective_scan: with delta_softplus=False every step delta + delta_bias must be at least 0, "
        f"the least is {(delta + bias).min().item():g}"
    )
