"""The gated attention unit: attention with one weak head and a gated MLP in one layer."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from carrel.layers.mixer import Mixer
from carrel.layers.state import KVCache
from carrel.ops import relu2_attention

from .attend import attend
from .gates import GatedProjections, Scaling, check_encoded, check_scaling, divisor, score_scale
from .scale import attention_scale

_NORMALIZERS = ("relu2", "softmax")
_FEW = 16  # tokens, whose weights may all lie in memory


class GAU(Mixer):
    r"""One layer that looks back with a single head and gates what it finds, in place of attention and MLP.

    .. math:: y_i = \Big(u_i \odot \frac1n \sum_{j \le i}
              \mathrm{relu}\Big(\frac{q_i \cdot k_j}{\sqrt s}\Big)^2 v_j\Big) W_o, \qquad
              u, v, z = \mathrm{silu}(x [W_u, W_v, W_z])

    q and k are z, scaled and shifted channel by channel, and turned by their positions. Two of these layers have about
    the weights of attention and an MLP of four times the width. x should come normalised.

    Args:
        dim: width of x and y.
        expansion: width e of u and v as a multiple of dim.
        key_dim: s, channels of q and k; even, if positions are rotated.
        normalizer: "relu2" as above. "softmax" of the scores times ln(n) / ln(512), which keeps weights from spreading
            as n grows, takes the place of relu, square and 1 / n.
        scaling: of "relu2". "ns" as above; "n2" divides scores by n instead of their squares by n s, as the paper's
            listing does: weights then fall as the length grows.
        count: n of "relu2". None is the number of tokens seen, i + 1; a number, such as the length trained at, stands
            for all tokens.
        rotary_base: of the rotation, see :func:`carrel.layers.rotary_frequencies`. None leaves it out.
    x, y: (batch, length, dim).   state: KVCache(k, v, pos) of one head: s + e numbers per token and row, more than
        attention's. It looks back only; :class:`GAUEncoder` looks both ways.
    Raises ValueError: sizes below 1, an odd key_dim with rotation, an unknown normalizer or scaling, a count below 1
        or beside softmax; x or the state of a wrong shape or type.
    Cost: per token 6 dim · e + 2 dim · s operations in projections and 2 (s + e) for each token that it sees, s more
        for every s of e with "softmax". Nothing of all pairs is held, but with "softmax" by a piece of more than one
        token that goes on from a state.
    Source: arXiv:2202.10447, section 3; "ns" and softmax are from kexue.fm/archives/8934 and 9019.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 2,
        key_dim: int = 128,
        *,
        normalizer: Literal["relu2", "softmax"] = "relu2",
        scaling: Scaling = "ns",
        count: int | None = None,
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        _check_options("GAU", normalizer, scaling, count)
        self.dim, self.normalizer, self.scaling, self.count = dim, normalizer, scaling, count
        self.gates = GatedProjections("GAU", dim, expansion, key_dim, 2, rotary_base)

    def forward(self, x: Tensor, state: KVCache | None = None) -> tuple[Tensor, KVCache]:
        self._check_input(x)
        self._check_state(x, state)
        batch, length, _ = x.shape
        steps = torch.arange(length, device=x.device)
        at = steps if state is None else state.pos[:, None] + steps
        u, v, (q, k) = self.gates(x, at)
        v, seen = v.unsqueeze(1), at + 1
        if state is None:
            after = KVCache(k, v, torch.full((batch,), length, dtype=torch.int64, device=x.device))
        else:
            after = state.append(k, v)
        if self.normalizer == "softmax":
            o = _softmax(q, after.k, after.v, seen, None if state is None else after.pos)
        else:
            n = seen if self.count is None else torch.full_like(steps, self.count)
            o = relu2_attention(
                q,
                after.k if state is None else _owned(after),
                after.v,
                scale=score_scale(self.scaling, self.gates.key_dim),
                count=divisor(self.scaling, n),
            )
        return self.gates.merge(u, o.squeeze(1)), after

    def _check_state(self, x: Tensor, state: KVCache | None) -> None:
        if state is None:
            return
        if not isinstance(state, KVCache):
            raise ValueError(f"GAU wants a KVCache or None as its state, not {type(state).__name__}")
        tokens = state.k.shape[2] if state.k.dim() == 4 else 0
        for name, part, size in (("k", state.k, self.gates.key_dim), ("v", state.v, self.gates.width)):
            if tuple(part.shape) != (len(x), 1, tokens, size):
                raise ValueError(
                    f"GAU wants a state with {name} of shape ({len(x)}, 1, tokens, {size}), not {tuple(part.shape)}"
                )
        if tuple(state.pos.shape) != (len(x),):
            raise ValueError(f"GAU wants a state with pos of shape ({len(x)},), not {tuple(state.pos.shape)}")

    def extra_repr(self) -> str:
        return f"{self.dim}, {self.normalizer}, scaling={self.scaling}, count={self.count}"


class GAUEncoder(nn.Module):
    """The gated attention unit looking both ways: every token sees all. It needs the whole sequence, so is no mixer.

    Args as of :class:`GAU`; n is the number of tokens that there are, or ``count``.
    ``encoder(x, mask=None)``: x (batch, length, dim); mask (batch, length) bool, True where there is a token: others
    are seen by none, and what comes out at their places means nothing. Returns y like x.
    Raises ValueError: as GAU; a mask of another shape or type.   Source: arXiv:2202.10447, section 3.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 2,
        key_dim: int = 128,
        *,
        scaling: Scaling = "ns",
        count: int | None = None,
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        _check_options("GAUEncoder", "relu2", scaling, count)
        self.dim, self.scaling, self.count = dim, scaling, count
        self.gates = GatedProjections("GAUEncoder", dim, expansion, key_dim, 2, rotary_base)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = check_encoded("GAUEncoder", x, self.dim, mask)
        length = x.shape[1]
        u, v, (q, k) = self.gates(x, torch.arange(length, device=x.device))
        if mask is not None:
            k = k.masked_fill(~mask[:, None, :, None], 0)
        n = tokens if self.count is None else torch.full_like(tokens, self.count)
        count = divisor(self.scaling, n)[:, None].expand(-1, length)
        scale = score_scale(self.scaling, self.gates.key_dim)
        o = relu2_attention(q, k, v.unsqueeze(1), causal=False, scale=scale, count=count)
        return self.gates.merge(u, o.squeeze(1))

    def extra_repr(self) -> str:
        return f"{self.dim}, scaling={self.scaling}, count={self.count}"


def _check_options(owner: str, normalizer: str, scaling: str, count: int | None) -> None:
    check_scaling(owner, scaling)
    if normalizer not in _NORMALIZERS:
        raise ValueError(f"{owner} wants a normalizer among {', '.join(_NORMALIZERS)}, not {normalizer!r}")
    if count is not None and (not isinstance(count, int) or count < 1 or normalizer == "softmax"):
        raise ValueError(f"{owner} wants count to be a whole number of at least 1, with relu2 only, not {count!r}")


def _owned(cache: KVCache) -> Tensor:
    """Keys, zero in columns that a row does not own: a score of 0 weighs nothing."""
    columns = cache.k.shape[2]
    owned = torch.arange(columns, device=cache.pos.device) >= columns - cache.pos[:, None]
    return cache.k * owned[:, None, :, None]


def _softmax(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, pos: Tensor | None) -> Tensor:
    """Softmax, with the scale of entropy. Values go in pieces as wide as keys: torch's fused kernel asks for that."""
    size, width = q.shape[-1], v.shape[-1]
    factor = attention_scale(seen, size, "entropy").to(torch.promote_types(q.dtype, torch.float32)).unsqueeze(-1)
    q = (q * (factor if seen.dim() == 1 else factor.unsqueeze(1))).to(q.dtype)
    if q.shape[2] <= _FEW:
        return attend(q, k, v, pos, scale=1.0)
    parts = -(-width // size)
    v = pad(v, (0, parts * size - width)).unflatten(-1, (parts, size)).squeeze(1).transpose(1, 2)
    o = attend(q.expand(-1, parts, -1, -1), k.expand(-1, parts, -1, -1), v, pos, scale=1.0)
    return o.transpose(1, 2).flatten(2)[..., :width].unsqueeze(1)
