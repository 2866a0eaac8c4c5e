"""`selective_scan`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import resolve, wide_dtype
from . import reference
from .derivatives import op

_BLOCK, _BUFFER = 64, 128 << 10  # on the CPU: channels of a block, bytes of the states its backward holds at a time
_OPTIONAL = frozenset({"D", "z", "h0", "delta_bias"})
_TILE = 64  # tokens that a GPU program works on at once


def selective_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    h0: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = True,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    r"""A diagonal state space whose step, input and output weights are chosen by each token.

    .. math:: h_t = e^{\Delta_t A} \odot h_{t-1} + (\Delta_t x_t)\, B_t^\top, \qquad
              y_t = \big(h_t C_t + D \odot x_t\big) \odot \mathrm{silu}(z_t), \qquad
              \Delta_t = \mathrm{softplus}(\texttt{delta}_t + \texttt{delta\_bias})

    A step of 0 leaves the state alone; a long one replaces it.

    Args:
        x: (batch, length, channels), real; what enters.
        delta: like ``x``; the step before softplus (time, in units of 1 / \|A\|).
        A: (channels, state), negative: the rate at which each state decays.
        B, C: (batch, length, state), or (batch, length, groups, state): each group serves channels / groups neighbours.
        D: (channels,), what passes by the state, or None for nothing.
        z: like ``x``, the gate, or None for none.
        h0: (batch, channels, state), the state before the first token, or None for zeros.
        delta_bias: (channels,), added to ``delta``, or None.
        delta_softplus: whether the step is the softplus of that sum, or the sum itself, which must then be 0 or more.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton).

    Returns:
        y, like ``x``, in the type that x, delta, B, C and z promote to; and the last h_t, (batch, channels, state), to
        be fed to the next piece as ``h0``. The state is float32 for half types and never rounded to them.

    Raises:
        ValueError: shapes, types or devices disagree; A not negative or a step below 0 (looked for on the CPU only,
            where the kernel reads them anyway); a backend asked for by name that cannot run these tensors.

    Cost: O(batch length channels state) time, one exponential each forward and backward. Nothing of that size is ever
    held: the forward pass keeps the states at the start of chunks of some 32 tokens, and the backward pass computes
    those between again. Second derivatives and forward mode go through `linear_scan` and do hold it.

    Source: Gu and Dao 2023, arXiv:2312.00752, algorithm 2 and section 3.3.2; B is discretised by Euler's rule
    (Delta B), as in the authors' code. Our channels are their D, our state their N.
    """
    given = {"x": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "h0": h0, "delta_bias": delta_bias}
    _check(given)
    dtype, wide = _dtypes(given)
    name = resolve("selective_scan", backend, x.device)
    batch, _, channels = x.shape
    state = A.shape[1]
    if B.ndim == 3:
        B, C = B.unsqueeze(2), C.unsqueeze(2)
    h0 = x.new_zeros((batch, channels, state), dtype=wide) if h0 is None else h0.to(wide)
    D, delta_bias = (x.new_zeros(channels, dtype=wide) if v is None else v.to(wide) for v in (D, delta_bias))
    A = A.to(wide)
    if name == "reference":
        x, delta, B, C = (v.to(wide) for v in (x, delta, B, C))
        z = None if z is None else z.to(wide)
        y, last = reference.scan(x, delta, A, B, C, D, z, h0, delta_bias, delta_softplus)
        return y.to(dtype), last
    x, delta, B, C = (v.to(dtype) for v in (x, delta, B, C))
    z = x.new_empty((0, 0, 0)) if z is None else z.to(dtype)
    tensors = (x, delta, A, B, C, D, z, h0, delta_bias)
    wanted = torch._C._are_functorch_transforms_active() or (
        torch.is_grad_enabled() and any(v.requires_grad for v in tensors)
    )
    tokens = _chunk(name, state, wide) if wanted else 0
    y, last, _ = op(*tensors, delta_softplus, tokens, name)
    return y, last


def _chunk(backend: str, state: int, wide: torch.dtype) -> int:
    """Tokens between two states that are kept."""
    return _TILE if backend == "gpu" else max(4, min(64, _BUFFER // (_BLOCK * state * wide.itemsize)))


def _dtypes(given: dict[str, Tensor | None]) -> tuple[torch.dtype, torch.dtype]:
    """The type of y, which x, delta, B, C and z decide, and that of the state, which weights of float64 can widen."""
    held = {name: v.dtype for name, v in given.items() if v is not None}
    dtype = held["x"]
    for name in ("delta", "B", "C", "z"):
        dtype = torch.promote_types(dtype, held.get(name, dtype))
    wide = wide_dtype(dtype)
    for name in ("A", "D", "h0", "delta_bias"):
        wide = torch.promote_types(wide, held.get(name, wide))
    return (dtype if wide == wide_dtype(dtype) else wide), wide


def _check(given: dict[str, Tensor | None]) -> None:
    """Refuse what the docstring excludes, in one sentence."""
    for name, v in given.items():
        if v is None and name in _OPTIONAL:
            continue
        if not isinstance(v, Tensor):
            raise ValueError(f"selective_scan: {name} must be a tensor, got {type(v).__name__}")
        if not v.is_floating_point():
            raise ValueError(f"selective_scan: {name} must be real floating point, got {v.dtype}")
        if v.device != given["x"].device:  # type: ignore[union-attr]  # x comes first
            raise ValueError(f"selective_scan: {name} is on {v.device}, not on one device with x")
    x, A, B = given["x"], given["A"], given["B"]
    assert isinstance(x, Tensor)
    assert isinstance(A, Tensor)
    assert isinstance(B, Tensor)
    if x.ndim != 3:
        raise ValueError(f"selective_scan: x must be (batch, length, channels), got shape {tuple(x.shape)}")
    batch, length, channels = x.shape
    if A.ndim != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ValueError(f"selective_scan: A must be (channels, state) = ({channels}, 1 or more), got {tuple(A.shape)}")
    state = A.shape[1]
    if B.ndim not in (3, 4) or B.shape[:2] != x.shape[:2] or B.shape[-1] != state:
        raise ValueError(
            f"selective_scan: B must be (batch, length, state) = {(batch, length, state)}, or have groups before the "
            f"state, got shape {tuple(B.shape)}"
        )
    if B.ndim == 4 and (B.shape[2] < 1 or channels % B.shape[2]):
        raise ValueError(f"selective_scan: the {B.shape[2]} groups of B must divide the {channels} channels")
    wanted = {
        "delta": tuple(x.shape),
        "C": tuple(B.shape),
        "D": (channels,),
        "z": tuple(x.shape),
        "h0": (batch, channels, state),
        "delta_bias": (channels,),
    }
    for name, shape in wanted.items():
        v = given[name]
        if v is not None and tuple(v.shape) != shape:
            raise ValueError(f"selective_scan: {name} must have shape {shape}, got {tuple(v.shape)}")
