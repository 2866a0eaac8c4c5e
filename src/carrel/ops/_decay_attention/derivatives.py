"""The derivatives of `decay_attention` and its three routes, over tensors in the kernels' shapes.

q and k are (B, H, L, N), v and o (B, H, L, P), log_decay (B, H, L, N) or (B, H, L, 1), the memories (B, H, N, P) in the
accumulation type. With a_t the decay, g_t the gradient that arrives for o_t and G_t that of S_t,

    G_t = q_t g_t' + a_{t+1} G_{t+1}    (exclusive: q_{t+1} g_{t+1}' + a_{t+1} G_{t+1}),
    dq_t = S_t g_t    (exclusive: S_{t-1} g_t),    dk_t = G_t v_t,    dv_t = G_t' k_t,
    dlog_decay_t = a_t sum_p G_t S_{t-1},    dS_0 = a_1 G_1    (exclusive: + q_1 g_1').

The kernels hold one S at a time. Further derivatives are of the composition with `linear_scan` below, which holds all.
"""

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from .._linear_scan import linear_scan


def steps_like(x: Tensor) -> tuple[int, ...]:
    """How far entries of a result of the shape of ``x`` (B, H, L, N) lie apart: in the order of those of ``x``, but for
    N, which is inmost. A block that keeps tokens before heads then needs no copy to put its heads side by side."""
    steps, far = [0, 0, 0, 1], x.shape[3]
    for axis in sorted(range(3), key=lambda axis: (x.stride()[axis], -axis)):
        steps[axis] = far
        far *= x.shape[axis]
    return tuple(steps)


def empty_like(x: Tensor) -> Tensor:
    return x.new_empty_strided(x.shape, steps_like(x))


def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool, chunk: int, backend: str
) -> tuple[Tensor, Tensor]:
    return kernels(__package__, backend).forward(q, k, v, log_decay, state, exclusive, chunk)


def _forward_like(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool, chunk: int, backend: str
) -> tuple[Tensor, Tensor]:
    return empty_like(v), state.new_empty(state.shape)


def _backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    g: Tensor,
    g_last: Tensor,
    exclusive: bool,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return kernels(__package__, backend).backward(q, k, v, log_decay, state, g, g_last, exclusive, chunk)


def _backward_like(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    g: Tensor,
    g_last: Tensor,
    exclusive: bool,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [empty_like(x) for x in (q, k, v, log_decay)]
    return (*like, state.new_empty(state.shape))  # type: ignore[return-value]


class _Composed:
    """Every memory of the operation, in the accumulation type and in operations that torch differentiates.

    Rows of batch and heads are one axis here: q (R, L, N, 1), v (R, L, 1, P), memories (R, L, N, P).
    """

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, exclusive: bool) -> None:
        self.shape, self.wide = q.shape, state.dtype
        self.q, self.k, self.a = (self.column(x) for x in (q, k, torch.exp(log_decay)))
        self.v, self.start = self.row(v), state.flatten(0, 1)
        self.S, self.last = linear_scan(self.a, self.k * self.v, self.start)
        self.before = torch.cat([self.start.unsqueeze(1), self.S[:, :-1]], 1)[:, : q.shape[2]]
        self.seen = self.before if exclusive else self.S

    def column(self, x: Tensor) -> Tensor:
        return x.to(self.wide).flatten(0, 1).unsqueeze(-1)

    def row(self, x: Tensor) -> Tensor:
        return x.to(self.wide).flatten(0, 1).unsqueeze(-2)


def _formula(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    g: Tensor,
    g_last: Tensor,
    exclusive: bool,
    chunk: int,
    backend: str,
) -> tuple[Tensor, ...]:
    given = (q, k, v, log_decay, state)
    if q.numel() == 0:
        return (*(torch.zeros_like(x) for x in given[:4]), g_last.clone())
    f = _Composed(q, k, v, log_decay, state, exclusive)
    g = f.row(g)
    asked, end = f.q * g, g_last.flatten(0, 1).unsqueeze(1)
    arriving = torch.cat([asked[:, 1:], end] if exclusive else [asked[:, :-1], asked[:, -1:] + end], 1)
    following = torch.cat([f.a[:, 1:], torch.zeros_like(f.a[:, :1])], 1)
    G, _ = linear_scan(following, arriving, reverse=True)
    kept = (G * f.a * f.before).sum(-1)
    first = f.a[:, 0] * G[:, 0]
    found = (
        (f.seen * g).sum(-1),
        (G * f.v).sum(-1),
        (G * f.k).sum(-2),
        kept if log_decay.shape[-1] == kept.shape[-1] else kept.sum(-1, keepdim=True),
        first + asked[:, 0] if exclusive else first,
    )
    return tuple(x.view(like.shape).to(like.dtype) for x, like in zip(found, given, strict=True))


def _tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    tlog_decay: Tensor | None,
    tstate: Tensor | None,
    exclusive: bool,
    chunk: int,
    backend: str,
) -> tuple[Tensor, ...]:
    given, moved = (q, k, v, log_decay, state), (tq, tk, tv, tlog_decay, tstate)
    tq, tk, tv, tlog_decay, tstate = (
        torch.zeros_like(x) if tangent is None else tangent for x, tangent in zip(given, moved, strict=True)
    )
    if q.numel() == 0:
        return torch.zeros_like(v), tstate.clone()
    f = _Composed(q, k, v, log_decay, state, exclusive)
    added = f.a * f.column(tlog_decay) * f.before + f.column(tk) * f.v + f.k * f.row(tv)
    start = tstate.flatten(0, 1)
    tS, tlast = linear_scan(f.a, added, start)
    tseen = torch.cat([start.unsqueeze(1), tS[:, :-1]], 1) if exclusive else tS
    to = (f.column(tq) * f.seen + f.q * tseen).sum(-2)
    return to.view(v.shape).to(v.dtype), tlast.view(state.shape)


def _fold(
    size: int,
    dims: tuple[int | None, ...],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: Tensor,
    exclusive: bool,
    chunk: int,
    backend: str,
) -> tuple[Tensor, ...]:
    """``vmap``: more rows of the batch."""
    rows = [lead(x, dim, size).flatten(0, 1) for x, dim in zip((q, k, v, log_decay, state), dims, strict=True)]
    o, last = op(*rows, exclusive, chunk, backend)
    batch = len(o) // size
    return o.reshape(size, batch, *o.shape[1:]), last.reshape(size, batch, *last.shape[1:])


op = KernelOp(
    "decay_attention",
    5,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda *everything: everything[:5],
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
