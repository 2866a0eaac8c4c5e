"""`matrix_scan`: what is asked of its arguments, and which code runs."""

from __future__ import annotations

import torch
from torch import Tensor

from .._kernel_op import check_tensors, joint_dtype, resolve, wide_dtype
from . import reference
from .derivatives import op

_WIDEST = 64  # states a GPU program holds with their matrix in registers


def matrix_scan(
    A: Tensor, b: Tensor, h0: Tensor | None = None, *, reverse: bool = False, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    r"""The linear recurrence with a full matrix per token, of which `linear_scan` is the diagonal case.

    .. math:: h_t = A_t h_{t-1} + b_t, \qquad t = 1 \ldots L, \quad h_0 = \texttt{h0}

    Args:
        A: (batch, length, N, N), or with batch, length or both of length 1 or left out. A matrix that is the same for
            every token stays small: neither it nor its gradient is ever written out per token.
        b: (batch, length, N), or (batch, length, N, M) for M states side by side under one A; real or complex.
        h0: (batch, N) or (batch, N, M), the state before the first token, or None for zeros.
        reverse: scan from the last token to the first; ``h0`` then enters at the right end.
        backend: "auto", "reference" (torch), "cpu" (numba) or "gpu" (Triton, N up to 64).

    Returns:
        h, shaped like ``b``: every h_t, in the type that ``A`` and ``b`` promote to; and the last h_t, shaped like
        ``h0``, in the accumulation type (float32 for float16 and bfloat16, where the carry never rounds).

    Raises:
        ValueError: shapes, types or devices disagree, or a backend asked for by name cannot run these tensors.

    Cost: O(batch * length * N^2 * M), token by token: a tree over time would do N times the work.

    Source: Lim et al. 2023, arXiv:2309.12252, the linear recurrence that each of their Newton steps solves (their
    minus G_t is ``A``).
    """
    check_tensors("matrix_scan", A=A, b=b, h0=h0)
    column = b.ndim == 3
    shape = tuple(b.shape)
    if b.ndim not in (3, 4):
        raise ValueError(f"matrix_scan: b must be (batch, length, N) or (batch, length, N, M), got shape {shape}")
    n = shape[2]
    if (
        not 2 <= A.ndim <= 4
        or A.shape[-2:] != (n, n)
        or any(p not in (1, q) for p, q in zip(A.shape[:-2][::-1], shape[1::-1], strict=False))
    ):
        raise ValueError(f"matrix_scan: A must broadcast to {(*shape[:2], n, n)}, got shape {tuple(A.shape)}")
    if h0 is not None and h0.shape != shape[:1] + shape[2:]:
        raise ValueError(f"matrix_scan: h0 must be {shape[:1] + shape[2:]}, got shape {tuple(h0.shape)}")
    name = resolve("matrix_scan", backend, b.device)
    if name == "gpu" and n > _WIDEST:
        if backend == "gpu":
            raise ValueError(f'matrix_scan: backend="gpu" holds up to {_WIDEST} states in registers, got N = {n}')
        name = "reference"
    dtype = joint_dtype(A, b, h0)
    wide = wide_dtype(dtype)
    h0 = torch.zeros(shape[:1] + shape[2:], dtype=wide, device=b.device) if h0 is None else h0.to(wide)
    A = A.reshape((1,) * (4 - A.ndim) + A.shape)
    b = b.to(dtype)
    if column:
        b, h0 = b.unsqueeze(-1), h0.unsqueeze(-1)
    if name == "reference":
        h, last = reference.scan(A.to(wide), b.to(wide), h0, reverse)
        h = h.to(dtype)
    elif dtype.is_complex and not A.is_complex():  # a real matrix acts on real and imaginary parts alike
        parts = (torch.view_as_real(x.resolve_conj()).flatten(-2) for x in (b, h0))
        h, last = (
            torch.view_as_complex(x.unflatten(-1, (-1, 2))) for x in op(A.to(dtype.to_real()), *parts, reverse, name)
        )
    else:
        h, last = op(A.to(dtype), b, h0, reverse, name)
    return (h.squeeze(-1), last.squeeze(-1)) if column else (h, last)
