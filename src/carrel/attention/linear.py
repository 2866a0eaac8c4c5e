"""Linear attention: a product of features in place of the exponential, so that the past is one matrix."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers.mixer import Mixer
from carrel.ops import decay_attention, linear_scan

from .heads import head_width, join_heads, split_heads
from .taylor import taylor_features, taylor_size

LINEAR_FEATURES = ("elu1", "relu", "exp", "identity", "efficient", "taylor")
_FORGOTTEN = -1e4  # the logarithm of a factor that is 0 in every type


class LinearAttentionState(NamedTuple):
    """The past as sums. S: (batch, heads, N, P), of keys' features times values; z: (batch, heads, N), of the features;
    for "taylor" N counts its features, not the channels of the keys.

    top: (batch, heads, 1), or (batch, heads, N) for "efficient": the largest exponent so far, by which exponential
    features are scaled down in S and z. What a feature does not need has a last axis of 0.
    """

    S: Tensor
    z: Tensor
    top: Tensor


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    state: LinearAttentionState | None = None,
    *,
    feature: str = "elu1",
    normalize: bool = True,
    causal: bool = True,
    eps: float = 1e-6,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, LinearAttentionState]:
    r"""Averages of values, weighed by products of features of queries and keys.

    .. math:: S_t = \sum_{j \le t} \phi(k_j) v_j^\top, \qquad z_t = \sum_{j \le t} \phi(k_j), \qquad
              o_t = \frac{S_t^\top \phi(q_t)}{z_t \cdot \phi(q_t)}

    Features φ: "elu1" is elu(x) + 1, "relu" and "exp" say what they are, "identity" is x, which has no denominator.
    "taylor" makes weights 1 + q·k + (q·k)²/2, see :func:`carrel.attention.taylor_features`: N² / 2 of them.
    "efficient" takes a softmax over the channels of q and one over all tokens so far in every channel of k,
    :math:`o_t = \sum_c \mathrm{softmax}(q_t)_c \, S_{tc} / z_{tc}` with φ(k) = exp(k).

    Exponents are taken relative to the largest so far, by which S and z are scaled down as it grows. That cancels
    in every ratio, so no key overflows, and pieces still give what the whole gives.

    Args:
        q, k: (batch, heads, length, N), real. No scale is applied.
        v: (batch, heads, length, P).
        state: what an earlier call returned, or None.
        feature: one of `LINEAR_FEATURES`.
        normalize: False leaves the denominator out; "identity" needs that, "efficient" cannot have it.
        causal: False lets every token see all tokens of this call, and those of ``state``.
        eps: least denominator, so that a query whose features meet none of the keys' gets 0.
        chunk, backend: as in :func:`carrel.ops.decay_attention`.

    Returns o, (batch, heads, length, P), and the state after the last token, in float32 at least.
    Raises ValueError: shapes disagree, an unknown feature, one that cannot be normalised as asked.
    Cost: 4 N P operations per token and head, constant memory per token; the denominator is one column more. For
    "taylor" N is the number of features.
    Source: Katharopoulos et al. 2020, arXiv:2006.16236, equations 9 to 12; Shen et al. 2018, arXiv:1812.01243, for
    "efficient", whose causal form is ours.
    """
    _check(q, k, v, state, feature, normalize)
    asked, known = _features(q, k, feature, normalize)
    if feature == "efficient":
        return _per_channel(asked, known, v, state, causal, chunk, backend)
    if feature == "exp" and normalize:
        return exponential_sums(asked, known, v, state, causal=causal, eps=eps, chunk=chunk, backend=backend)
    return plain_sums(asked, known, v, state, normalize, causal=causal, eps=eps, chunk=chunk, backend=backend)


def plain_sums(
    asked: Tensor,
    known: Tensor,
    v: Tensor,
    state: LinearAttentionState | None,
    normalize: bool,
    *,
    causal: bool = True,
    eps: float = 1e-6,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, LinearAttentionState]:
    """:func:`linear_attention` from features that are already there, none of them below 0 if ``normalize``."""
    wide, none = _wide(asked, v, state), asked.new_empty(*asked.shape[:2], 0)
    still = asked.new_zeros((), dtype=wide).expand(asked.shape[:3])
    S = None if state is None else state.S
    if not causal:
        S = _total(known, v, S, wide)
        z = known.to(wide).sum(2) + (0 if state is None else state.z) if normalize else none
        o = _answers(asked, S, z if normalize else None, eps, wide)
        return o.to(v.dtype), LinearAttentionState(S, z, none)
    if not normalize:
        o, S = decay_attention(asked, known, v, still, S, chunk=chunk, backend=backend)
        return o.to(v.dtype), LinearAttentionState(S, none, none)
    o, S, z = _averages(asked, known, v, still, state, eps, chunk, backend)
    return o.to(v.dtype), LinearAttentionState(S, z, none)


def exponential_sums(
    asked: Tensor,
    exponents: Tensor,
    v: Tensor,
    state: LinearAttentionState | None,
    *,
    causal: bool = True,
    eps: float = 1e-6,
    chunk: int = 64,
    backend: str = "auto",
) -> tuple[Tensor, LinearAttentionState]:
    """Normalised, with exp(``exponents``) as the features of k: a memory that shrinks whenever a larger one comes."""
    wide = _wide(asked, v, state)
    peaks = (
        exponents.detach().amax(-1, keepdim=True)
        if exponents.numel()
        else exponents.new_empty(exponents[..., :1].shape)
    )
    tops, top, log_decay = _relative(peaks, state, causal)
    known = torch.exp(exponents - tops)
    if not causal:
        kept = torch.exp(log_decay.squeeze(2))
        S = _total(known, v, None if state is None else state.S * kept.unsqueeze(-1), wide)
        z = known.to(wide).sum(2) + (0 if state is None else state.z * kept)
        return _answers(asked, S, z, eps, wide).to(v.dtype), LinearAttentionState(S, z, top)
    o, S, z = _averages(asked, known, v, log_decay.squeeze(-1), state, eps, chunk, backend)
    return o.to(v.dtype), LinearAttentionState(S, z, top)


def _per_channel(
    asked: Tensor,
    exponents: Tensor,
    v: Tensor,
    state: LinearAttentionState | None,
    causal: bool,
    chunk: int,
    backend: str,
) -> tuple[Tensor, LinearAttentionState]:
    """ "efficient": every channel of k is a softmax over tokens of its own."""
    wide = _wide(asked, v, state)
    tops, top, log_decay = _relative(exponents.detach(), state, causal)
    known = torch.exp(exponents - tops)
    S, z = (None, None) if state is None else (state.S, state.z)
    if not causal:
        kept = torch.exp(log_decay.squeeze(2))
        S = _total(known, v, None if S is None else S * kept.unsqueeze(-1), wide)
        z = known.to(wide).sum(2) + (0 if z is None else z * kept)
        return _answers(asked / z.unsqueeze(2), S, None, 0, wide).to(v.dtype), LinearAttentionState(S, z, top)
    zs, z = _running(known.to(wide), torch.exp(log_decay), z, backend)
    o, S = decay_attention(asked / zs, known, v, log_decay, S, chunk=chunk, backend=backend)
    return o.to(v.dtype), LinearAttentionState(S, z, top)


# ---------------------------------------------------------------------------------------------------------- the parts


def _features(q: Tensor, k: Tensor, feature: str, normalize: bool) -> tuple[Tensor, Tensor]:
    """Of q, and of k; of k the exponents where its features are exponentials that will be divided."""
    if feature == "identity":
        return q, k
    wide = torch.promote_types(torch.promote_types(q.dtype, k.dtype), torch.float32)
    q, k = q.to(wide), k.to(wide)
    if feature == "elu1":
        return functional.elu(q).add_(1), functional.elu(k).add_(1)
    if feature == "relu":
        return functional.relu(q), functional.relu(k)
    if feature == "efficient":
        return torch.softmax(q, -1), k
    if feature == "taylor":
        return taylor_features(q), taylor_features(k)
    return (torch.exp(q - q.detach().amax(-1, keepdim=True)), k) if normalize else (torch.exp(q), torch.exp(k))


def _relative(peaks: Tensor, state: LinearAttentionState | None, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The largest exponents so far, (B, H, L or 1, ...); the last of them; the logarithm of what they leave of S."""
    with torch.no_grad():
        before = peaks.new_full((*peaks.shape[:2], 1, peaks.shape[3]), -math.inf)
        before = before if state is None else state.top.to(peaks.dtype).unsqueeze(2)
        tops = torch.cat([before, peaks], 2)
        if not causal:
            top = tops.amax(2, keepdim=True)
            return top, top.squeeze(2), (before - top).nan_to_num(nan=0.0).clamp(min=_FORGOTTEN)
        tops = torch.cummax(tops, 2).values
        return tops[:, :, 1:], tops[:, :, -1], (tops[:, :, :-1] - tops[:, :, 1:]).clamp(min=_FORGOTTEN)


def _averages(
    asked: Tensor,
    known: Tensor,
    v: Tensor,
    log_decay: Tensor,
    state: LinearAttentionState | None,
    eps: float,
    chunk: int,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """o, S and z: beside the values stands a 1, whose memory is z and whose answer is the denominator."""
    values = torch.cat([v.to(_wide(asked, v, state)), v.new_ones((), dtype=asked.dtype).expand(*v.shape[:3], 1)], -1)
    before = None if state is None else torch.cat([state.S, state.z.unsqueeze(-1)], -1)
    o, S = decay_attention(asked, known, values, log_decay, before, chunk=chunk, backend=backend)
    o, weight = o.split([v.shape[3], 1], -1)
    return _over(o, weight, eps), S[..., :-1], S[..., -1]


def _running(x: Tensor, kept: Tensor, start: Tensor | None, backend: str) -> tuple[Tensor, Tensor]:
    """All sums of x (B, H, L, N) so far, and the last (B, H, N), in whichever order of axes x lies in memory."""
    kept = kept.expand(*x.shape[:3], kept.shape[-1]) if kept.dim() else kept
    if x.stride(1) >= x.stride(2):
        kept = kept.flatten(0, 1) if kept.dim() else kept
        sums, last = linear_scan(kept, x.flatten(0, 1), None if start is None else start.flatten(0, 1), backend=backend)
        return sums.view(x.shape), last.view(*x.shape[:2], -1)
    kept = kept.transpose(1, 2) if kept.dim() else kept
    sums, last = linear_scan(kept, x.transpose(1, 2), start, backend=backend)
    return sums.transpose(1, 2), last


def _total(known: Tensor, v: Tensor, S: Tensor | None, wide: torch.dtype) -> Tensor:
    added = known.to(wide).mT @ v.to(wide)
    return added if S is None else S + added


def _answers(asked: Tensor, S: Tensor, z: Tensor | None, eps: float, wide: torch.dtype) -> Tensor:
    o = asked.to(wide) @ S
    return o if z is None else _over(o, asked.to(wide) @ z.unsqueeze(-1), eps)


def _over(o: Tensor, weight: Tensor, eps: float) -> Tensor:
    return o * weight.clamp(min=eps).reciprocal()  # one division per row, and half the passes of its derivative


def _wide(q: Tensor, v: Tensor, state: LinearAttentionState | None) -> torch.dtype:
    wide = torch.promote_types(torch.promote_types(q.dtype, v.dtype), torch.float32)
    return wide if state is None else torch.promote_types(wide, state.S.dtype)


def _check(q: Tensor, k: Tensor, v: Tensor, state: LinearAttentionState | None, feature: str, normalize: bool) -> None:
    if feature not in LINEAR_FEATURES:
        raise ValueError(f"linear_attention: feature must be one of {', '.join(LINEAR_FEATURES)}, got {feature!r}")
    if normalize and feature == "identity":
        raise ValueError('linear_attention: feature="identity" can be negative and needs normalize=False')
    if not normalize and feature == "efficient":
        raise ValueError('linear_attention: feature="efficient" is normalised by itself and needs normalize=True')
    if q.dim() != 4 or q.shape[-1] < 1 or not q.is_floating_point():
        raise ValueError(f"linear_attention: q must be real (batch, heads, length, N), N >= 1, got {tuple(q.shape)}")
    if k.shape != q.shape or v.dim() != 4 or v.shape[:3] != q.shape[:3] or v.shape[-1] < 1:
        raise ValueError(
            f"linear_attention: k must be {tuple(q.shape)} like q and v {(*q.shape[:3], 'P')}, "
            f"got {tuple(k.shape)} and {tuple(v.shape)}"
        )
    if state is None:
        return
    if not isinstance(state, LinearAttentionState):
        raise ValueError(f"linear_attention: state must be a LinearAttentionState, got {type(state).__name__}")
    batch, heads, _, size = q.shape
    size = taylor_size(size) if feature == "taylor" else size
    tops = {"efficient": size, "exp": 1 if normalize else 0}.get(feature, 0)
    wanted = {"S": (size, v.shape[3]), "z": (size if normalize else 0,), "top": (tops,)}
    for name, rest in wanted.items():
        got = tuple(getattr(state, name).shape)
        if got != (batch, heads, *rest):
            raise ValueError(f"linear_attention: state must have {name} of shape {(batch, heads, *rest)}, got {got}")


class LinearAttention(Mixer):
    r"""Attention without a softmax, in several heads: the past is a matrix that every token adds to and asks.

    .. math:: y_t = W_o\,[o_t^{(1)}; \dots; o_t^{(H)}], \qquad
              o_t = \frac{\sum_{j \le t} \phi(q_t) \cdot \phi(k_j)\, v_j}{\sum_{j \le t} \phi(q_t) \cdot \phi(k_j)}

    q, k and v are linear in x. The past is a set without order, of which nothing is forgotten.

    Args:
        dim: width of x and y.
        heads: H.
        feature: φ, one of `LINEAR_FEATURES`, see :func:`linear_attention`. For "taylor", the second-order polynomial in
            place of softmax's exponential, scores are divided by √d as there.
        normalize: False leaves the denominator out, as "identity" needs.
        head_dim: channels of a head; dim / heads if None.
        key_dim: d, channels of a head's queries and keys; head_dim if None. "taylor" wants few, 16 or less.
    x, y: (batch, length, dim).   state: LinearAttentionState(S, z, top), constant size, in float32 at least.
    Raises ValueError: sizes below 1 or that do not divide, an unknown feature; x or the state of a wrong shape.
    Cost: per token 8 dim² operations in projections and 4 dim · key_dim in the heads, whatever came before; for
    "taylor" 4 dim · N with N = 1 + key_dim + key_dim (key_dim + 1) / 2.
    Source: arXiv:2006.16236, section 3; arXiv:2402.18668 for "taylor".
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        feature: str = "elu1",
        normalize: bool = True,
        head_dim: int | None = None,
        key_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("LinearAttention", dim, heads, head_dim)
        self.key_dim = self.head_dim if key_dim is None else key_dim
        if not isinstance(self.key_dim, int) or self.key_dim < 1:
            raise ValueError(f"LinearAttention wants key_dim to be a whole number of at least 1, not {key_dim!r}")
        one = torch.zeros(1, 1, 0, 1)
        _check(one, one, one, None, feature, normalize)
        self.dim, self.heads, self.feature, self.normalize, self.chunk = dim, heads, feature, normalize, 64
        self.qkv = nn.Linear(dim, heads * (2 * self.key_dim + self.head_dim), bias=False)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: LinearAttentionState | None = None) -> tuple[Tensor, LinearAttentionState]:
        self._check_input(x)
        keys = self.heads * self.key_dim
        both, values = self.qkv(x).split([2 * keys, self.heads * self.head_dim], -1)
        if self.feature == "taylor":
            both = both * self.key_dim**-0.25
        (q, k), (v,) = split_heads(both, 2, self.heads), split_heads(values, 1, self.heads)
        o, state = linear_attention(q, k, v, state, feature=self.feature, normalize=self.normalize, chunk=self.chunk)
        return self.out(join_heads(o)), state

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, heads={self.heads}, key_dim={self.key_dim}, feature={self.feature!r}, "
            f"normalize={self.normalize}"
        )
