"""The derivatives of `selective_scan` and its three routes, over tensors in the kernels' shapes.

x, delta, z and y are (B, L, e), or z empty for no gate; B and C (B, L, G, N) with G dividing e; A (e, N), D and bias
(e,) and h0 and the last state (B, e, N) in the accumulation type. With d_t the step, a_t = exp(d_t A) and g_t the
gradient that arrives for y before its gate,

    lambda_t = g_t C_t + a_{t+1} lambda_{t+1},    q_t = lambda_t a_t h_{t-1},
    dx_t = D g_t + d_t sum_n lambda_t B_t,    dd_t = sum_n q_t A + x_t sum_n lambda_t B_t,    dA = sum_t q_t d_t,
    dB_t = sum_c lambda_t d_t x_t,    dC_t = sum_c g_t h_t,    dh0 = a_1 lambda_1.

The kernels never hold more than a chunk of h. Further derivatives are of the composition with `linear_scan`
(composed.py), which does.
"""

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from .._linear_scan import linear_scan
from .composed import Composed, per_channel, per_group


def _states_shape(x: Tensor, B: Tensor, tokens: int) -> tuple[int, ...]:
    batch, length, channels = x.shape
    return (batch, -(-length // tokens), B.shape[-1], channels) if tokens else (0, 0, 0, 0)


def _forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    states = h0.new_empty(_states_shape(x, B, tokens))
    y, last = kernels(__package__, backend).forward(x, delta, A, B, C, D, z, h0, bias, states, softplus, tokens)
    return y, last, states


def _forward_like(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), h0.new_empty(h0.shape), h0.new_empty(_states_shape(x, B, tokens))


def _backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    g: Tensor,
    g_last: Tensor,
    g_states: Tensor,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return kernels(__package__, backend).backward(
        x, delta, A, B, C, D, z, h0, bias, states, g, g_last, softplus, tokens
    )


def _backward_like(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    g: Tensor,
    g_last: Tensor,
    g_states: Tensor,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [t.new_empty(t.shape) for t in (x, delta, A, B, C, D, z, h0, bias)]
    return tuple(like)  # type: ignore[return-value]


def _formula(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    g: Tensor,
    g_last: Tensor,
    g_states: Tensor,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, ...]:
    given = (x, delta, A, B, C, D, z, h0, bias)
    if x.numel() == 0:
        return (*(torch.zeros_like(t) for t in given[:7]), g_last.clone(), torch.zeros_like(bias))
    f, groups = Composed(x, delta, A, B, C, z, h0, bias, softplus), B.shape[2]
    g, dz = g.to(h0.dtype), torch.zeros_like(z)
    if f.z is not None and f.open is not None:
        dz = g * f.plain(D) * f.gate_slope()
        g = g * f.z * f.open
    arriving = g.unsqueeze(-1) * f.C
    arriving = torch.cat([arriving[:, :-1], arriving[:, -1:] + g_last.unsqueeze(1)], 1)
    following = torch.cat([f.a[:, 1:], torch.zeros_like(f.a[:, :1])], 1)
    lam, _ = linear_scan(following, arriving, reverse=True)
    q = lam * f.a * f.before
    added = (lam * f.B).sum(-1)
    d_raw = f.sloped((q * A).sum(-1) + f.x * added)
    found = (
        D * g + f.d * added,
        d_raw,
        (q * f.d.unsqueeze(-1)).sum((0, 1)),
        per_group(lam * f.u, groups),
        per_group(g.unsqueeze(-1) * f.h, groups),
        (g * f.x).sum((0, 1)),
        dz,
        f.a[:, 0] * lam[:, 0],
        d_raw.sum((0, 1)),
    )
    return tuple(gradient.to(t.dtype) for gradient, t in zip(found, given, strict=True))


def _tangent(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    states: Tensor,
    tx: Tensor | None,
    tdelta: Tensor | None,
    tA: Tensor | None,
    tB: Tensor | None,
    tC: Tensor | None,
    tD: Tensor | None,
    tz: Tensor | None,
    th0: Tensor | None,
    tbias: Tensor | None,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, ...]:
    moved = [
        torch.zeros_like(t) if tangent is None else tangent
        for t, tangent in zip(
            (x, delta, A, B, C, D, z, h0, bias), (tx, tdelta, tA, tB, tC, tD, tz, th0, tbias), strict=True
        )
    ]
    wide = h0.dtype
    vx, vdelta, vA, vB, vC, vD, vz, vh0, vbias = (t.to(wide) for t in moved)
    f = Composed(x, delta, A, B, C, z, h0, bias, softplus)
    vd = f.sloped(vdelta + vbias)
    va = f.a * (vd.unsqueeze(-1) * A + f.d.unsqueeze(-1) * vA)
    vb = (vd * f.x + f.d * vx).unsqueeze(-1) * f.B + f.u * per_channel(vB, f.channels)
    if x.numel():
        vh, v_last = linear_scan(f.a, va * f.before + vb, vh0)
    else:
        vh, v_last = f.h, vh0.clone()
    vy = (per_channel(vC, f.channels) * f.h + f.C * vh).sum(-1) + vD * f.x + D * vx
    if f.z is not None and f.open is not None:
        vy = vy * f.z * f.open + f.plain(D) * f.gate_slope() * vz
    return vy.to(x.dtype), v_last, torch.zeros_like(states)


def _fold(
    size: int,
    dims: tuple[int | None, ...],
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    h0: Tensor,
    bias: Tensor,
    softplus: bool,
    tokens: int,
    backend: str,
) -> tuple[Tensor, ...]:
    """``vmap``: more rows of the batch; or, if a channel's weights are mapped, more channels in groups of their own."""
    given = (x, delta, A, B, C, D, z, h0, bias)
    x, delta, A, B, C, D, z, h0, bias = (lead(t, dim, size) for t, dim in zip(given, dims, strict=True))
    gated = z.numel() > 0
    if dims[2] is None and dims[5] is None and dims[8] is None:
        rows = [t.flatten(0, 1) for t in (x, delta, B, C, h0)]
        z = z.flatten(0, 1) if gated else z[0]
        y, last, states = op(*rows[:2], A[0], *rows[2:4], D[0], z, rows[4], bias[0], softplus, tokens, backend)
        folded = [t.reshape(size, x.shape[1], *t.shape[1:]) for t in (y, last)]
        return (
            *folded,
            states.reshape(size, x.shape[1], *states.shape[1:]) if tokens else states.expand(size, 0, 0, 0, 0),
        )

    def beside(t: Tensor) -> Tensor:
        """(size, B, L, e, ...) as (B, L, size e, ...)."""
        return t.movedim(0, 2).flatten(2, 3)

    y, last, states = op(
        beside(x), beside(delta), A.flatten(0, 1), beside(B), beside(C), D.flatten(), beside(z) if gated else z[0],
        h0.movedim(0, 1).flatten(1, 2), bias.flatten(), softplus, tokens, backend,
    )  # fmt: skip
    y = y.reshape(*y.shape[:2], size, x.shape[-1]).movedim(2, 0)
    last = last.reshape(last.shape[0], size, x.shape[-1], last.shape[-1]).movedim(1, 0)
    return (
        y,
        last,
        states.reshape(*states.shape[:-1], size, x.shape[-1]).movedim(-2, 0)
        if tokens
        else states.expand(size, 0, 0, 0, 0),
    )


op = KernelOp(
    "selective_scan",
    9,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda *all_: (*all_[:9], all_[11]),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
