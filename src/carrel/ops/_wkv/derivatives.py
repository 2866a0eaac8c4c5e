"""The derivatives of `wkv` and its three routes, over tensors in the kernels' shapes.

w and u are (C,), k, v and y (B, L, C), a, b, p and the last of them (B, C) in the accumulation type. With the exponents
p_t = max(p_{t-1} - w, k_t) and q_t = max(p_{t-1}, u + k_t) held fixed,

    f_t = e^{p_{t-1} - q_t} / n_t,  o_t = e^{u + k_t - q_t} / n_t,     the shares of the past and of the token in y,
    e_t = e^{p_{t-1} - w - p_t},  d_t = e^{k_t - p_t},                 the same in the next state,
    y_t = f_t a_{t-1} + o_t v_t,  a_t = e_t a_{t-1} + d_t v_t,  b_t = e_t b_{t-1} + d_t,

every factor is at most 1, and the gradients of a and b run backward by the same factors:

    A_{t-1} = f_t g_t + e_t A_t,   B_{t-1} = -f_t y_t g_t + e_t B_t,
    dk_t = o_t g_t (v_t - y_t) + d_t (A_t v_t + B_t),   dv_t = o_t g_t + d_t A_t.

y does not depend on the exponents chosen, only on a e^p and b e^p. The state that is returned does: what arrives for p,
less a A + b B, belongs to the maximum alone and goes to the one key, or the first p, that it was taken from.
"""

import torch
from torch import Tensor

from .._kernel_op import KernelOp, kernels, lead
from .._linear_scan import linear_scan


def _states_shape(k: Tensor, tokens: int) -> tuple[int, ...]:
    batch, length, channels = k.shape
    return (batch, -(-length // tokens), 3, channels) if tokens else (0, 0, 0, 0)


def _forward(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p: Tensor, tokens: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    states = a.new_empty(_states_shape(k, tokens))
    return (*kernels(__package__, backend).forward(w, u, k, v, a, b, p, states, tokens), states)


def _forward_like(
    w: Tensor, u: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p: Tensor, tokens: int, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    last = (a.new_empty(a.shape), a.new_empty(a.shape), a.new_empty(a.shape))
    return k.new_empty(k.shape), *last, a.new_empty(_states_shape(k, tokens))


def _backward(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor,
    a_last: Tensor,
    b_last: Tensor,
    states: Tensor,
    g: Tensor,
    ga: Tensor,
    gb: Tensor,
    gp: Tensor,
    g_states: Tensor,
    tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    gp = gp - (ga * a_last + gb * b_last)
    return kernels(__package__, backend).backward(w, u, k, v, a, b, states, g, ga, gb, gp, tokens)


def _backward_like(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor,
    a_last: Tensor,
    b_last: Tensor,
    states: Tensor,
    g: Tensor,
    ga: Tensor,
    gb: Tensor,
    gp: Tensor,
    g_states: Tensor,
    tokens: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = [t.new_empty(t.shape) for t in (w, u, k, v, a, b, p)]
    return tuple(like)  # type: ignore[return-value]


class _Composed:
    """Every intermediate of the operation, in operations that torch differentiates again."""

    def __init__(self, w: Tensor, u: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, p: Tensor) -> None:
        wide = a.dtype
        self.k, self.v, self.first = k.to(wide), v.to(wide), p
        p0, p = p, _finite(p, u, self.k)
        # the running maximum, with its own derivative, which only the state that is returned has a use for
        exponents, running = [p], p0
        for key in self.k.unbind(1):
            running = torch.maximum(running - w, key)
            exponents.append(torch.maximum(exponents[-1] - w, key).detach())
        self.p_last = running
        scale = torch.stack(exponents, 1).detach()
        before, after = scale[:, :-1], scale[:, 1:]
        own = u + self.k
        q = torch.maximum(before, own).detach()
        old, own = torch.exp(before - q), torch.exp(own - q)
        self.kept, self.added = torch.exp(before - w - after), torch.exp(self.k - after)
        # 1, where p is not minus infinity; but not constant in p
        self.start, self.end = torch.exp(p0 - scale[:, 0]), torch.exp(scale[:, -1] - self.p_last)
        self.a, self.a_end = self.before(self.added * self.v, self.start * a)
        self.b, self.b_end = self.before(self.added, self.start * b)
        share = 1 / (old * self.b + own)
        self.old, self.own = old * share, own * share
        self.y = self.old * self.a + self.own * self.v
        with torch.no_grad():
            taken = (self.k == after).to(wide)
            free = torch.cumprod((1 - taken).flip(1), 1).flip(1)  # no key from t on is the maximum at the end
            later = torch.cat([free[:, 1:], torch.ones_like(free[:, :1])], 1)
        self.taken, self.free, self.passed = taken * later, free, free[:, 0] if k.shape[1] else torch.ones_like(p)

    def before(self, added: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The states of a scan before every token, and after the last."""
        if not added.shape[1]:
            return added, start
        h, last = linear_scan(self.kept, added, start)
        return torch.cat([start.unsqueeze(1), h[:, :-1]], 1), last


def _finite(p: Tensor, u: Tensor, k: Tensor) -> Tensor:
    """The first exponents, with one below all that the first token brings where there is nothing before it."""
    if not k.shape[1]:
        return p
    return torch.where(torch.isinf(p), k[:, 0] + u.clamp(max=0), p).detach()


def _formula(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor,
    a_last: Tensor,
    b_last: Tensor,
    states: Tensor,
    g: Tensor,
    ga: Tensor,
    gb: Tensor,
    gp: Tensor,
    g_states: Tensor,
    tokens: int,
    backend: str,
) -> tuple[Tensor, ...]:
    if k.numel() == 0:
        return (*(torch.zeros_like(t) for t in (w, u, k, v)), ga.clone(), gb.clone(), gp.clone())
    s, g = _Composed(w, u, k, v, a, b, p), g.to(a.dtype)
    rho = gp - s.end * (ga * s.a_end + gb * s.b_end)
    through = s.old * g
    at_a, at_b = ga * s.end, gb * s.end
    before_a, da = linear_scan(s.kept, through, at_a, reverse=True)
    before_b, db = linear_scan(s.kept, -through * s.y, at_b, reverse=True)
    after_a = torch.cat([before_a[:, 1:], at_a.unsqueeze(1)], 1)
    after_b = torch.cat([before_b[:, 1:], at_b.unsqueeze(1)], 1)
    own = s.own * g
    du = own * (s.v - s.y)
    dk = du + s.added * (after_a * s.v + after_b) + rho.unsqueeze(1) * s.taken
    dv = own + s.added * after_a
    dw = -(s.kept * (after_a * s.a + after_b * s.b) + rho.unsqueeze(1) * s.free)
    da, db = s.start * da, s.start * db
    dp = a * da + b * db + rho * s.passed
    return dw.sum((0, 1)), du.sum((0, 1)), dk.to(k.dtype), dv.to(v.dtype), da, db, dp


def _tangent(
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor,
    a_last: Tensor,
    b_last: Tensor,
    states: Tensor,
    tw: Tensor | None,
    tu: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    ta: Tensor | None,
    tb: Tensor | None,
    tp: Tensor | None,
    tokens: int,
    backend: str,
) -> tuple[Tensor, ...]:
    wide = a.dtype
    moved = zip((w, u, k, v, a, b, p), (tw, tu, tk, tv, ta, tb, tp), strict=True)
    vw, vu, vk, vv, va, vb, vp = (
        torch.zeros_like(t, dtype=wide) if tangent is None else tangent.to(wide) for t, tangent in moved
    )
    if k.numel() == 0:
        return torch.zeros_like(k), va.clone(), vb.clone(), vp.clone(), torch.zeros_like(states)
    s = _Composed(w, u, k, v, a, b, p)
    before_a, va = s.before(s.added * (vv + vk * s.v) - s.kept * vw * s.a, s.start * (va + a * vp))
    before_b, vb = s.before(s.added * vk - s.kept * vw * s.b, s.start * (vb + b * vp))
    vy = s.old * (before_a - s.y * before_b) + s.own * (vv + (s.v - s.y) * (vk + vu))
    vp = (s.taken * vk - s.free * vw).sum(1) + s.passed * vp
    last = (s.end * (value - at_end * vp) for value, at_end in ((va, s.a_end), (vb, s.b_end)))
    return vy.to(k.dtype), *last, vp, torch.zeros_like(states)


def _fold(
    size: int,
    dims: tuple[int | None, ...],
    w: Tensor,
    u: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor,
    tokens: int,
    backend: str,
) -> tuple[Tensor, ...]:
    """``vmap``: more rows of the batch; or, if a channel's rates are mapped, more channels."""
    w, u, k, v, a, b, p = (lead(t, dim, size) for t, dim in zip((w, u, k, v, a, b, p), dims, strict=True))
    batch, _, channels = k.shape[1:]
    if dims[0] is None and dims[1] is None:
        rows = (t.flatten(0, 1) for t in (k, v, a, b, p))
        *found, states = op(w[0], u[0], *rows, tokens, backend)
        folded = [t.reshape(size, batch, *t.shape[1:]) for t in found]
        kept = states.reshape(size, batch, *states.shape[1:]) if tokens else states.expand(size, 0, 0, 0, 0)
        return (*folded, kept)
    beside = (t.movedim(0, -2).flatten(-2) for t in (k, v, a, b, p))
    *found, states = op(w.flatten(), u.flatten(), *beside, tokens, backend)
    apart = [t.reshape(*t.shape[:-1], size, channels).movedim(-2, 0) for t in (*found, *([states] if tokens else ()))]
    return tuple(apart) if tokens else (*apart, states.expand(size, 0, 0, 0, 0))


op = KernelOp(
    "wkv",
    7,
    forward=_forward,
    backward=_backward,
    forward_like=_forward_like,
    backward_like=_backward_like,
    keep=lambda *all_: (*all_[:7], all_[8], all_[9], all_[11]),
    formula=_formula,
    tangent=_tangent,
    fold=_fold,
)
