"""Triton kernels of `entmax`: one program per row, which stays in registers from the first load to the last store.

The threshold is found as on the CPU, by Newton's method from the left where the mass is convex in it (alpha up to 2)
and by halving beyond; rounds go on until a step no longer moves it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._memory import launch_on, triton_memory

_ROUNDS, _HALVINGS = 64, 64


@triton.jit
def _power(u, exponent):
    """u ** exponent where u > 0, else 0."""
    inside = u > 0
    return tl.where(inside, tl.exp2(exponent * tl.log2(tl.where(inside, u, 1.0))), 0.0)


@triton.jit
def _forward(
    x, alpha, p, n,
    KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr, ROUNDS: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    own = tl.load(x + row * n + place, mask=place < n, other=float("-inf")).to(WIDE)
    top = tl.max(own, 0)
    seen = top > float("-inf")
    shifted = own - tl.where(seen, top, 0.0)
    if KIND == 4:  # the order times two: whole numbers make better constants
        z = shifted
        tau = seen.to(WIDE) * 0 - 1  # a number of this type, not a constant
        before = 0
        count = tl.sum((z > tau).to(tl.int32), 0)
        while (count != before) & (count > 0):
            tau += (tl.sum(tl.where(z > tau, z - tau, 0.0), 0) - 1) / count
            before = count
            count = tl.sum((z > tau).to(tl.int32), 0)
        v = tl.where(z > tau, z - tau, 0.0)
    elif KIND == 3:
        z = shifted * 0.5
        tau = seen.to(WIDE) * 0 - 1
        step = tau + 2
        rounds = 0
        while (tau + step > tau) & (rounds < ROUNDS):
            u = tl.where(z > tau, z - tau, 0.0)
            slope = 2 * tl.sum(u, 0)
            step = tl.where(slope > 0, (tl.sum(u * u, 0) - 1) / tl.where(slope > 0, slope, 1.0), 0.0)
            tau += tl.maximum(step, 0.0)
            rounds += 1
        u = tl.where(z > tau, z - tau, 0.0)
        v = u * u
    else:
        b = tl.load(alpha + row).to(WIDE) - 1
        root = 1 / b
        z = tl.where(shifted > float("-inf"), shifted * b, float("-inf"))
        tau = seen.to(WIDE) * 0 - 1
        if root >= 1:
            step = tau + 2
            rounds = 0
            while (tau + step > tau) & (rounds < ROUNDS):
                u = tl.where(z > tau, z - tau, 0.0)
                w = _power(u, root - 1)
                slope = root * tl.sum(w, 0)
                step = tl.where(slope > 0, (tl.sum(w * u, 0) - 1) / tl.where(slope > 0, slope, 1.0), 0.0)
                tau += tl.maximum(step, 0.0)
                rounds += 1
        else:
            high = tau + 1
            for _ in range(HALVINGS):
                middle = (tau + high) * 0.5
                enough = tl.sum(_power(tl.where(z > middle, z - middle, 0.0), root), 0) >= 1
                tau = tl.where(enough, middle, tau)
                high = tl.where(enough, high, middle)
        v = _power(tl.where(z > tau, z - tau, 0.0), root)
    total = tl.sum(v, 0)
    tl.store(p + row * n + place, tl.where(seen, v / tl.where(total > 0, total, 1.0), 0.0), mask=place < n)


@triton.jit
def _backward(p, alpha, g, dx, dalpha, n, KIND: tl.constexpr, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    own = tl.load(p + row * n + place, mask=place < n, other=0.0).to(WIDE)
    arrived = tl.load(g + row * n + place, mask=place < n, other=0.0).to(WIDE)
    if KIND == 4:
        s = (own > 0).to(WIDE)
    elif KIND == 3:
        s = tl.sqrt(own)
    else:
        order = tl.load(alpha + row).to(WIDE)
        s = _power(own, 2 - order)
    total = tl.sum(s, 0)
    share = s / tl.where(total > 0, total, 1.0)
    mean = tl.sum(share * arrived, 0)
    tl.store(dx + row * n + place, s * (arrived - mean), mask=place < n)
    if KIND == 0:
        b = order - 1
        spread = own * tl.where(own > 0, tl.log(tl.where(own > 0, own, 1.0)), 0.0)
        slope = (own - share) / (b * b) - (spread - share * tl.sum(spread, 0)) / b
        tl.store(dalpha + row, tl.sum(slope * arrived, 0))


def _options(x: Tensor, kind: float) -> dict[str, object]:
    block = max(16, triton.next_power_of_2(x.shape[1]))
    wide = tl.float64 if x.dtype == torch.float64 else tl.float32
    return {"KIND": round(2 * kind), "WIDE": wide, "BLOCK": block, "num_warps": min(16, max(1, block // 256))}


def forward(x: Tensor, alpha: Tensor, kind: float) -> Tensor:
    """p like x (R, n)."""
    p = torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.numel() == 0:
        return p
    order = triton_memory(alpha) if alpha.numel() else p
    with launch_on(x):
        _forward[(x.shape[0],)](
            triton_memory(x), order, p, x.shape[1], ROUNDS=_ROUNDS, HALVINGS=_HALVINGS, **_options(x, kind)
        )
    return p


def backward(p: Tensor, alpha: Tensor, g: Tensor, kind: float) -> tuple[Tensor, Tensor]:
    """Gradients of x, like p, and of alpha, (R,) or empty."""
    dx = torch.empty_like(p, memory_format=torch.contiguous_format)
    dalpha = torch.empty_like(alpha, memory_format=torch.contiguous_format)
    if p.numel() == 0:
        return dx, dalpha.zero_()
    order = triton_memory(alpha) if alpha.numel() else dx
    with launch_on(p):
        _backward[(p.shape[0],)](
            triton_memory(p), order, triton_memory(g), dx, dalpha if alpha.numel() else dx, p.shape[1],
            **_options(p, kind),
        )  # fmt: skip
    return dx, dalpha
