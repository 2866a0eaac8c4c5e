"""Softmax attention over all earlier tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from carrel.layers.mixer import Mixer
from carrel.layers.rotary import rotary_frequencies, rotary_turns, rotate
from carrel.layers.state import KVCache


class MHA(Mixer):
    r"""Every token looks back at all tokens so far, in several heads at once.

    .. math:: o_t^{(s)} = \sum_{j \le t} p_{tj}^{(s)} v_j^{(g)}, \qquad
              p_{tj}^{(s)} = \mathrm{softmax}_{j \le t}\, \frac{(R_t q_t^{(s)})^\top R_j k_j^{(g)}}{\sqrt{d}}, \qquad
              y_t = W_o\,[o_t^{(1)}; \dots; o_t^{(H)}]

    q, k and v are linear in x; query head s reads key-value head g = ⌊s G / H⌋. The rotation R_t makes a score depend
    on how far back j lies. The state grows with every token.

    Args:
        dim: width of x and y.
        heads: H, query heads.
        kv_heads: G, key-value heads, a divisor of H: H if None, the usual attention; 1 shares one pair among all, which
            makes the state H times smaller.
        head_dim: d, channels of a head; dim / heads if None.
        rotary_base: of the rotation, see :func:`carrel.layers.rotary_frequencies`. None leaves it out: the past is
            then a set without order.
    x, y: (batch, length, dim).   state: KVCache(k, v, pos), 2 G d numbers per token and row, keys already rotated.
    Raises ValueError: heads does not divide dim, kv_heads does not divide heads, an odd head_dim with rotation; x or
        the state of a wrong shape or type.
    Cost: 4 L² H d operations for L tokens, halved where the causal half is skipped; one token after T others costs
    4 T H d, and nothing of the cache is copied for it, if gradients are off.
    Source: arXiv:1706.03762, section 3.2; arXiv:2305.13245 for kv_heads, arXiv:2104.09864 for the rotation.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if dim < 1 or heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                "MHA wants dim and heads of at least 1 and kv_heads that divide heads, "
                f"not dim={dim}, heads={heads} and kv_heads={kv_heads}"
            )
        if head_dim is None and dim % heads:
            raise ValueError(f"MHA wants heads that divide dim, or head_dim, not dim={dim} and heads={heads}")
        head_dim = dim // heads if head_dim is None else head_dim
        if head_dim < 1:
            raise ValueError(f"MHA wants head_dim of at least 1, not {head_dim}")
        if rotary_base is not None:
            rotary_frequencies(head_dim, rotary_base)  # says what is wrong with them
        self.dim, self.heads, self.kv_heads, self.head_dim = dim, heads, kv_heads, head_dim
        self.rotary_base = rotary_base
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: KVCache | None = None) -> tuple[Tensor, KVCache]:
        self._check_input(x)
        batch, length, _ = x.shape
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        self._check_state(k, state)
        steps = torch.arange(length, device=x.device)
        if self.rotary_base is not None:
            at = steps if state is None else state.pos[:, None] + steps
            frequencies = rotary_frequencies(self.head_dim, self.rotary_base, device=x.device)
            turns = rotary_turns(at, frequencies, torch.promote_types(x.dtype, torch.float32))
            q, k = rotate(q, turns), rotate(k, turns)
        grouped = self.kv_heads < self.heads
        if state is None:
            state = KVCache(k, v, torch.full((batch,), length, dtype=torch.int64, device=x.device))
            o = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        else:
            state = state.append(k, v)
            column = torch.arange(state.k.shape[2], device=x.device)
            newest = column[-length:] if length else column[:0]
            own = column >= column.numel() - state.pos[:, None]  # (batch, columns)
            seen = (column <= newest[:, None]) & own[:, None, None]
            o = scaled_dot_product_attention(q, state.k, state.v, attn_mask=seen, enable_gqa=grouped)
        return self.out(o.transpose(1, 2).flatten(2)), state

    def _check_state(self, k: Tensor, state: KVCache | None) -> None:
        if state is None:
            return
        if not isinstance(state, KVCache):
            raise ValueError(f"MHA wants a KVCache or None as its state, not {type(state).__name__}")
        batch, heads, _, dim = k.shape
        tokens = state.k.shape[2] if state.k.dim() == 4 else 0
        wanted = (batch, heads, tokens, dim)
        for name, part in (("k", state.k), ("v", state.v)):
            if tuple(part.shape) != wanted or part.dtype != k.dtype:
                raise ValueError(
                    f"MHA wants a state with {name} of shape ({batch}, {heads}, tokens, {dim}) and type {k.dtype}, "
                    f"not {tuple(part.shape)} and {part.dtype}"
                )
        if tuple(state.pos.shape) != (batch,):
            raise ValueError(f"MHA wants a state with pos of shape ({batch},), not {tuple(state.pos.shape)}")

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, rotary_base={self.rotary_base}"
