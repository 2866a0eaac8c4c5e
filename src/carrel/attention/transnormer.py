"""TransNormer's two mixers: linear attention with a norm for a denominator, and softmax attention within blocks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from carrel.layers.mixer import Mixer
from carrel.layers.norms import RMSNorm
from carrel.layers.rotary import rotary_frequencies, rotary_turns, rotate
from carrel.layers.state_shapes import check_state

from .heads import head_width, join_heads, split_heads
from .linear import LinearAttentionState, linear_attention

_NORMS = ("head", "all")


class NormAttentionState(NamedTuple):
    """S: (batch, heads, head_dim, head_dim), the sum of keys' features times values, float32 at least."""

    S: Tensor


class NormAttention(Mixer):
    r"""Linear attention whose denominator is replaced by a norm.

    .. math:: S_t = \sum_{j \le t} \phi(k_j) v_j^\top, \qquad
              y_t = W_o\, w \odot \frac{o_t}{\sqrt{\mathrm{mean}(o_t^2) + \epsilon}}, \qquad o_t = S_t^\top \phi(q_t)

    What all features are scaled by makes no difference, and no score is divided by a sum that may be near 0.

    Args:
        dim: width of x and y.
        heads: H.
        feature: φ, "elu1", "relu" or "identity", see :func:`carrel.attention.linear_attention`.
        norm: the mean is over each "head", or over "all" of them.
        head_dim: channels of a head; dim / heads if None.
        eps: in the norm.
    x, y: (batch, length, dim).   state: NormAttentionState(S), constant size: dim · head_dim numbers.
    Raises ValueError: sizes below 1 or that do not divide, an unknown feature or norm; x or the state of a wrong shape.
    Cost: per token 8 dim² operations in projections and 4 dim · head_dim in the heads, whatever came before.
    Source: arXiv:2210.10340, section 4.1; φ = elu + 1 as there.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        feature: str = "elu1",
        norm: str = "head",
        head_dim: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("NormAttention", dim, heads, head_dim)
        if feature not in ("elu1", "relu", "identity"):
            raise ValueError(f"NormAttention wants feature to be elu1, relu or identity, not {feature!r}")
        if norm not in _NORMS:
            raise ValueError(f'NormAttention wants norm to be "head" or "all", not {norm!r}')
        self.dim, self.heads, self.feature, self.chunk = dim, heads, feature, 64
        width = heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * width, bias=False)
        self.norm = RMSNorm(self.head_dim if norm == "head" else width, eps)
        self.out = nn.Linear(width, dim, bias=False)

    def forward(self, x: Tensor, state: NormAttentionState | None = None) -> tuple[Tensor, NormAttentionState]:
        self._check_input(x)
        memory = (len(x), self.heads, self.head_dim, self.head_dim)
        check_state(self, state, NormAttentionState, {"S": memory})
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        before = None
        if state is not None:
            none = state.S.new_empty(*memory[:2], 0)
            before = LinearAttentionState(state.S, none, none)
        o, after = linear_attention(q, k, v, before, feature=self.feature, normalize=False, chunk=self.chunk)
        o = o.transpose(1, 2)
        o = self.norm(o).flatten(2) if len(self.norm.weight) == self.head_dim else self.norm(o.flatten(2))
        return self.out(o), NormAttentionState(after.S)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, feature={self.feature!r}"


class DiagAttentionState(NamedTuple):
    """The block that is being filled. k, v: (batch, heads, block, head_dim), 0 behind the ``pos % block`` first tokens.

    pos: (batch,) int64, tokens so far.
    """

    k: Tensor
    v: Tensor
    pos: Tensor


class DiagAttention(Mixer):
    r"""Softmax attention within blocks: every token looks back to the start of its own block.

    .. math:: o_t = \sum_{j = w \lfloor t / w \rfloor}^{t} \mathrm{softmax}_j\Big(
              \frac{(R_t q_t)^\top R_j k_j}{\sqrt{d}}\Big)\, v_j, \qquad y_t = W_o\, o_t, \qquad t = 0, 1, …

    Args:
        dim: width of x and y.
        heads: H.
        block: w, tokens of a block.
        head_dim: d; dim / heads if None. Even, if positions are rotated.
        rotary_base: of the rotation, see :func:`carrel.layers.rotary_frequencies`. None leaves it out.
    x, y: (batch, length, dim).   state: DiagAttentionState(k, v, pos), constant size: 2 w numbers per channel. Rows may
        stand at different positions.
    Raises ValueError: sizes below 1 or that do not divide; x or the state of a wrong shape.
    Cost: per token 8 dim² operations in projections and 4 w · dim in the heads.
    Source: arXiv:2210.10340, section 4.2.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        block: int = 64,
        head_dim: int | None = None,
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("DiagAttention", dim, heads, head_dim)
        if not isinstance(block, int) or block < 1:
            raise ValueError(f"DiagAttention wants block to be a whole number of at least 1, not {block!r}")
        if rotary_base is not None:
            rotary_frequencies(self.head_dim, rotary_base)  # says what is wrong with them
        self.dim, self.heads, self.block, self.rotary_base = dim, heads, block, rotary_base
        self.chunk = self.restarts = block
        self.qkv = nn.Linear(dim, 3 * heads * self.head_dim, bias=False)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: DiagAttentionState | None = None) -> tuple[Tensor, DiagAttentionState]:
        self._check_input(x)
        batch, length, _ = x.shape
        held = (batch, self.heads, self.block, self.head_dim)
        check_state(self, state, DiagAttentionState, {"k": held, "v": held, "pos": (batch,)})
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        aligned = state is None
        if state is None:
            empty = k.new_zeros(held)
            state = DiagAttentionState(empty, empty, torch.zeros(batch, dtype=torch.int64, device=x.device))
        if self.rotary_base is not None:
            steps = torch.arange(length, device=x.device)
            at = steps if aligned else state.pos[:, None] % self.block + steps
            frequencies = rotary_frequencies(self.head_dim, self.rotary_base, device=x.device)
            turns = rotary_turns(at % self.block, frequencies, torch.promote_types(x.dtype, torch.float32))
            q, k = rotate(q, turns), rotate(k, turns)
        o = (
            self._few(q, k, v, state)
            if 0 < length < self.block and not aligned
            else self._many(q, k, v, state, aligned)
        )
        return self.out(join_heads(o)), self._after(k, v, state)

    def _few(self, q: Tensor, k: Tensor, v: Tensor, state: DiagAttentionState) -> Tensor:
        """Less than a block: the open block and the new tokens are the keys, and a mask says which of them are seen."""
        steps = torch.arange(q.shape[2], device=q.device)
        slots = torch.arange(self.block, device=q.device)
        filled = (state.pos % self.block)[:, None]
        first, at = (slots < filled), filled + steps  # of the keys held; places from the start of the open block
        old = first.unsqueeze(1) & (at < self.block).unsqueeze(2)
        whose = at // self.block
        new = (whose.unsqueeze(2) == whose.unsqueeze(1)) & (steps <= steps[:, None])
        seen = torch.cat([old, new], 2).unsqueeze(1)
        return scaled_dot_product_attention(q, torch.cat([state.k, k], 2), torch.cat([state.v, v], 2), attn_mask=seen)

    def _many(self, q: Tensor, k: Tensor, v: Tensor, state: DiagAttentionState, aligned: bool) -> Tensor:
        """Every block is a row of a batch; rows that stand within a block are shifted so that borders fall together."""
        batch, heads, length, dim = q.shape
        filled = (state.pos % self.block)[:, None]
        blocks = -(-(length if aligned else length + self.block - 1) // self.block)
        spare = blocks * self.block - length
        if aligned:
            q, k, v = (pad(t, (0, 0, 0, spare)) for t in (q, k, v))
        else:
            place = torch.arange(blocks * self.block, device=q.device)
            source = torch.where(place < filled, place, self.block + place - filled).clamp(max=self.block + length - 1)
            index = source[:, None, :, None].expand(-1, heads, -1, dim)
            held = (torch.zeros_like(state.k), state.k, state.v)
            q, k, v = (torch.cat([old, t], 2).gather(2, index) for old, t in zip(held, (q, k, v), strict=True))
        q, k, v = (t.unflatten(2, (blocks, self.block)).transpose(1, 2).flatten(0, 1) for t in (q, k, v))
        o = scaled_dot_product_attention(q, k, v, is_causal=True)
        o = o.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)
        if aligned:
            return o[:, :, :length]
        steps = torch.arange(length, device=o.device)
        return o.gather(2, (filled + steps)[:, None, :, None].expand(-1, heads, -1, dim))

    def _after(self, k: Tensor, v: Tensor, state: DiagAttentionState) -> DiagAttentionState:
        _, heads, length, dim = k.shape
        filled = (state.pos % self.block)[:, None]
        end = filled + length
        slots = torch.arange(self.block, device=k.device)
        place = end // self.block * self.block + slots  # from the start of the block that was open
        source = torch.where(place < filled, place, self.block + place - filled).clamp(max=self.block + length - 1)
        index = source[:, None, :, None].expand(-1, heads, -1, dim)
        behind = (slots >= end % self.block)[:, None, :, None]
        kept_k, kept_v = (
            torch.cat(pair, 2).gather(2, index).masked_fill(behind, 0) for pair in ((state.k, k), (state.v, v))
        )
        return DiagAttentionState(kept_k, kept_v, state.pos + length)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, block={self.block}, rotary_base={self.rotary_base}"


class TransNormerLayers:
    """What to give :class:`carrel.models.SequenceModel` as ``mixer``: blocks at first, the norm in the later half.

    Args:
        depth: blocks of the model.
        heads, block: of the mixers.
        diagonal: how many of the first are DiagAttention; half of them, rounded down, if None.
    Called with ``dim`` once per block, it returns the next mixer, and begins anew after the last.
    Raises ValueError: depth below 1, or diagonal outside 0 .. depth.   Source: arXiv:2210.10340, section 4.3.
    """

    def __init__(self, depth: int, heads: int = 4, *, block: int = 64, diagonal: int | None = None) -> None:
        diagonal = depth // 2 if diagonal is None else diagonal
        if depth < 1 or not 0 <= diagonal <= depth:
            raise ValueError(f"TransNormerLayers wants depth >= 1 and diagonal in 0..depth, not {depth} and {diagonal}")
        self.depth, self.heads, self.block, self.diagonal = depth, heads, block, diagonal
        self._made = 0

    def __call__(self, dim: int) -> Mixer:
        at, self._made = self._made, (self._made + 1) % self.depth
        if at < self.diagonal:
            return DiagAttention(dim, self.heads, block=self.block)
        return NormAttention(dim, self.heads)
