"""`ssd`: the state space of one rate per head, as attention that decays."""

from __future__ import annotations

import torch
from torch import Tensor

from ._decay_attention import decay_attention


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    h0: Tensor | None = None,
    chunk: int = 64,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""A selective state space whose states decay together, one rate per head: `decay_attention` under other names.

    .. math:: h_t = e^{\Delta_t A} h_{t-1} + B_t (\Delta_t x_t)^\top, \qquad y_t = h_t^\top C_t

    C is the query, B the key and Δ x the value; e^{Δ A} is the decay.

    Args:
        x: (batch, heads, length, P), what enters.
        dt: (batch, heads, length), the steps Δ, 0 or more (time, in units of 1 / \|A\|).
        A: (heads,), negative, the rate at which a head forgets.
        B, C: (batch, groups, length, N): each group serves heads / groups neighbours.
        h0: (batch, heads, N, P), the state before the first token, or None for zeros.
        chunk, backend: as in `decay_attention`.
    Returns y, (batch, heads, length, P); and the last h_t, (batch, heads, N, P), in float32 at least.
    Raises ValueError: shapes, types or devices disagree; A not negative or a step below 0 (looked for on the CPU only);
        a backend asked for by name that cannot run these tensors.
    Cost: as `decay_attention`. The heads of a group read the same B and C, which are not copied.
    Source: Dao and Gu 2024, arXiv:2405.21060, equations 1 and 2 with a scalar A_t; our heads times P are their D.
    """
    _check(x, dt, A, B, C)
    own = x.shape[1] // B.shape[1]
    k, q = (v if own == 1 else v.repeat_interleave(own, 1) if B.shape[1] > 1 else _shared(v, own) for v in (B, C))
    return decay_attention(
        q, k, (x * dt.unsqueeze(-1)).to(x.dtype), dt * A.unsqueeze(-1), h0, chunk=chunk, backend=backend
    )


def _shared(B: Tensor, heads: int) -> Tensor:
    """One group seen by all heads."""
    return B.expand(-1, heads, -1, -1)


def _check(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> None:
    given = {"x": x, "dt": dt, "A": A, "B": B, "C": C}
    for name, v in given.items():
        if not isinstance(v, Tensor) or not v.is_floating_point():
            raise ValueError(f"ssd: {name} must be a real floating-point tensor, got {_what(v)}")
        if v.device != x.device:
            raise ValueError(f"ssd: {name} is on {v.device}, not on one device with x")
    if x.ndim != 4:
        raise ValueError(f"ssd: x must be (batch, heads, length, P), got {tuple(x.shape)}")
    batch, heads, length, _ = x.shape
    if B.ndim != 4 or (B.shape[0], B.shape[2]) != (batch, length) or B.shape[1] < 1 or heads % B.shape[1]:
        raise ValueError(
            f"ssd: B must be {(batch, 'groups', length, 'N')} with groups that divide the {heads} heads, "
            f"got {tuple(B.shape)}"
        )
    wanted = {"dt": (batch, heads, length), "A": (heads,), "C": tuple(B.shape)}
    for name, shape in wanted.items():
        if tuple(given[name].shape) != shape:
            raise ValueError(f"ssd: {name} must have shape {shape}, got {tuple(given[name].shape)}")
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or x.is_cuda:
        return  # as in decay_attention: symbols, wrappers, and a look that would make a GPU wait
    with torch.no_grad():
        if (A >= 0).any():
            raise ValueError(f"ssd: A must be negative everywhere, its largest entry is {A.max().item():g}")
        if (dt < 0).any():
            raise ValueError(f"ssd: every step dt must be at least 0, the least is {dt.min().item():g}")


def _what(v: object) -> str:
    return f"one of {v.dtype}" if isinstance(v, Tensor) else type(v).__name__
