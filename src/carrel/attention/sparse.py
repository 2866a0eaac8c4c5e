"""Attention that sees a few of the earlier tokens only: the latest ones, every so many, or the ends of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from carrel.layers.mixer import Mixer
from carrel.layers.rotary import rotary_frequencies, rotary_turns, rotate
from carrel.layers.state import KVCache

from .heads import head_width, join_heads, split_heads

PatternName = Literal["window", "strided", "fixed"]
_PATTERNS = ("window", "strided", "fixed")
_ROWS = 512  # queries at once where a mask over all columns is needed


@dataclass(frozen=True, slots=True)
class SparsePattern:
    r"""Which earlier tokens j a token i sees.

    .. math:: \text{window: } i - j < w \text{ or } j < s, \qquad
              \text{dilated: } i - j < r w \text{ and } r \mid i - j, \qquad
              \text{strided: } i - j < w \text{ or } w \mid i - j, \qquad
              \text{fixed: } \lfloor i/w \rfloor = \lfloor j/w \rfloor \text{ or } j \bmod w \ge w - c

    Two layers of "strided" or "fixed" with w = √L join every token to all before it, at 2 √L edges per token and layer.

    Args:
        kind: "window", "strided" or "fixed".
        width: w, at least 1.
        sinks: s, first tokens that "window" always sees.
        summary: c, last tokens of a block that "fixed" lets all later blocks see; 1 to w.
        dilation: r, at least 1: a "window" without sinks sees every r-th of the latest r w tokens, itself included.
    ``pattern(batch, head, i, j)`` is True where i sees j, for tensors of positions that broadcast: a ``mask_mod`` of
    torch's flex_attention. ``pattern.dense(length)`` is all of it, (length, length).
    Raises ValueError: an unknown kind or a number out of range.
    Source: arXiv:1904.10509, section 4.3 (strided, fixed); arXiv:2004.05150, section 3.1 (window).
    """

    kind: PatternName
    width: int
    sinks: int = 0
    summary: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        if self.kind not in _PATTERNS:
            raise ValueError(f"a sparse pattern is one of {', '.join(_PATTERNS)}, not {self.kind!r}")
        if min(self.width, self.dilation) < 1 or self.sinks < 0 or not 1 <= self.summary <= self.width:
            raise ValueError(
                "a sparse pattern wants a width and dilation of at least 1, sinks of at least 0 and a summary of 1 to "
                f"the width, not width={self.width}, dilation={self.dilation}, sinks={self.sinks} and "
                f"summary={self.summary}"
            )
        if self.sinks and self.kind != "window":
            raise ValueError(f"a sparse pattern has sinks only where it is a window, not {self.kind}")
        if self.dilation > 1 and (self.sinks or self.kind != "window"):
            raise ValueError(
                "a sparse pattern has a dilation only where it is a window without sinks, "
                f"not {self.kind} with sinks={self.sinks}"
            )

    def __call__(self, batch: object, head: object, i: Tensor, j: Tensor) -> Tensor:
        if self.kind == "window":
            seen = (i - j < self.span) | (j < self.sinks)
            if self.dilation > 1:
                seen = seen & ((i - j) % self.dilation == 0)
        elif self.kind == "strided":
            seen = (i - j < self.width) | ((i - j) % self.width == 0)
        else:
            seen = (i // self.width == j // self.width) | (j % self.width >= self.width - self.summary)
        return seen & (j <= i)

    def dense(self, length: int, device: torch.device | str | None = None) -> Tensor:
        """(length, length) bool, True where row i sees column j."""
        at = torch.arange(length, device=device)
        return self(None, None, at[:, None], at)

    @property
    def span(self) -> int:
        """Tokens from the first to the last that a window sees."""
        return (self.width - 1) * self.dilation + 1

    def lasting(self, at: Tensor, pos: Tensor) -> Tensor:
        """Which tokens some token from ``pos`` on may see."""
        if self.kind == "strided":
            return at >= 0
        if self.kind == "window":
            return (at >= 0) & ((at > pos - self.span) | (at < self.sinks))
        return (at >= 0) & ((at // self.width == pos // self.width) | (at % self.width >= self.width - self.summary))


class SparseState(NamedTuple):
    """The tokens that may still be seen. k, v: (batch, heads, columns, head_dim), keys turned; at: (batch, columns)
    int64, the position of each column, -1 if it is empty; pos: (batch,) int64, tokens so far.

    A window's columns are a ring of its span u = (w - 1) r + 1, token t in column s + t mod u, behind the s sinks."""

    k: Tensor
    v: Tensor
    at: Tensor
    pos: Tensor


class SparseAttention(Mixer):
    r"""Softmax attention in several heads that looks at a sparse set of earlier tokens.

    .. math:: o_t = \sum_{j \in S_t} p_{tj} v_j, \qquad
              p_{tj} = \mathrm{softmax}_{j \in S_t}\, \frac{(R_t q_t)^\top R_j k_j}{\sqrt d}

    with S_t of :class:`SparsePattern` and R rotary positions. Whole sequences never build a length-by-length matrix.

    Args:
        dim: width of x and y.
        heads: number of heads.
        pattern: "window", "strided" or "fixed".
        width: w, tokens of the window, of the stride or of a block.
        sinks: first tokens that a window always sees.
        summary: last tokens of a block that "fixed" keeps visible.
        dilation: a window sees every so many tokens only, and reaches as many times as far.
        head_dim: channels of a head; dim / heads if None.
        rotary_base: of the rotation; None leaves it out.
    x, y: (batch, length, dim).   state: SparseState. "window" keeps sinks + width columns, with a dilation
        (width - 1) dilation + 1, "strided" all tokens, "fixed" summary of every width.
    Raises ValueError: what the pattern refuses, heads that do not divide dim; x or the state of a wrong shape.
    Cost: per token and channel of all heads 4 (1.25 w + s) operations for "window", 4 (2 w + L / w) for "strided",
        4 (w + c L / w) for "fixed"; the latter two hold that many weights. A piece that goes on from a state compares
        its tokens with all columns of the state, but for a window.
    Source: arXiv:1904.10509; arXiv:2004.05150.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        pattern: PatternName = "window",
        width: int = 256,
        sinks: int = 0,
        summary: int = 1,
        dilation: int = 1,
        head_dim: int | None = None,
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("SparseAttention", dim, heads, head_dim)
        if rotary_base is not None:
            rotary_frequencies(self.head_dim, rotary_base)  # says what is wrong with them
        self.pattern = SparsePattern(pattern, width, sinks, summary, dilation)
        self.dim, self.heads, self.rotary_base = dim, heads, rotary_base
        self.chunk = self.pattern.span if pattern == "window" else width
        self.qkv = nn.Linear(dim, 3 * heads * self.head_dim, bias=False)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: SparseState | None = None) -> tuple[Tensor, SparseState]:
        self._check_input(x)
        self._check_state(x, state)
        batch, length, _ = x.shape
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        steps = torch.arange(length, device=x.device)
        pos = torch.zeros(batch, dtype=torch.int64, device=x.device) if state is None else state.pos
        at = pos[:, None] + steps
        if self.rotary_base is not None:
            frequencies = rotary_frequencies(self.head_dim, self.rotary_base, device=x.device)
            turns = rotary_turns(at, frequencies, torch.promote_types(x.dtype, torch.float32))
            q, k = rotate(q, turns), rotate(k, turns)
        if state is None:
            empty = k[:, :, :0]
            state = SparseState(empty, empty, at[:, :0], pos)
            whole = {"window": _window, "strided": _strided, "fixed": _fixed}[self.pattern.kind]
            o = whole(q, k, v, self.pattern) if length else q
        else:
            o = self._on(q, k, v, at, state)
        return self.out(join_heads(o)), self._after(k, v, at, state)

    def _on(self, q: Tensor, k: Tensor, v: Tensor, at: Tensor, state: SparseState) -> Tensor:
        """Going on from a state: every token beside every column, but where a window has left the state behind."""
        first = q.shape[2]
        if self.pattern.kind == "window" and not self.pattern.sinks:
            first = min(first, self.pattern.span)
        columns = torch.cat((state.k, k[:, :, :first]), 2), torch.cat((state.v, v[:, :, :first]), 2)
        places = torch.cat((state.at, at[:, :first]), 1)[:, None, None]
        pieces = []
        for rows, own in zip(torch.split(q[:, :, :first], _ROWS, 2), torch.split(at[:, :first], _ROWS, 1), strict=True):
            seen = self.pattern(None, None, own[:, None, :, None], places) & (places >= 0)
            pieces.append(scaled_dot_product_attention(rows, *columns, attn_mask=seen))
        if first < q.shape[2]:
            pieces.append(_window(q, k, v, self.pattern)[:, :, first:])
        return torch.cat(pieces, 2)

    def _after(self, k: Tensor, v: Tensor, at: Tensor, state: SparseState) -> SparseState:
        pos = state.pos + k.shape[2]
        places = torch.cat((state.at, at), 1)
        if self.pattern.kind == "strided":
            grown = KVCache(state.k, state.v, state.pos).append(k, v)
            return SparseState(grown.k, grown.v, places, pos)
        k, v = torch.cat((state.k, k), 2), torch.cat((state.v, v), 2)
        lasting = self.pattern.lasting(places, pos[:, None])
        if self.pattern.kind == "window":
            return self._ring(k, v, places, lasting, pos)
        count = int(lasting.sum(1).max()) if lasting.numel() else 0
        order = lasting.long().argsort(dim=1, stable=True)[:, lasting.shape[1] - count :]  # those that last come last
        places = torch.where(lasting, places, -1).gather(1, order)
        index = order[:, None, :, None].expand(-1, k.shape[1], -1, k.shape[3])
        return SparseState(k.gather(2, index), v.gather(2, index), places, pos)

    def _ring(self, k: Tensor, v: Tensor, places: Tensor, lasting: Tensor, pos: Tensor) -> SparseState:
        """Every token that lasts in its own column; the others in one beyond, which is cut off."""
        sinks, span = self.pattern.sinks, self.pattern.span
        size = sinks + span
        column = torch.where(places < sinks, places, sinks + places % span)
        column = torch.where(lasting, column, size)
        index = column[:, None, :, None].expand_as(k)
        rings = (t.new_zeros(*t.shape[:2], size + 1, t.shape[3]).scatter(2, index, t) for t in (k, v))
        at = places.new_full((len(places), size + 1), -1).scatter(1, column, places)
        k, v = (ring[:, :, :size] for ring in rings)
        return SparseState(k, v, at[:, :size], pos)

    def _check_state(self, x: Tensor, state: SparseState | None) -> None:
        if state is None:
            return
        if not isinstance(state, SparseState):
            raise ValueError(f"SparseAttention wants a SparseState or None as its state, not {type(state).__name__}")
        columns = state.at.shape[-1]
        if self.pattern.kind == "window":
            columns = self.pattern.sinks + self.pattern.span
        shape = (x.shape[0], self.heads, columns, self.head_dim)
        wanted = {"k": shape, "v": shape, "at": (x.shape[0], columns), "pos": (x.shape[0],)}
        for name, want in wanted.items():
            if (got := tuple(getattr(state, name).shape)) != want:
                raise ValueError(f"SparseAttention wants a state with {name} of shape {want}, not {got}")

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, {self.pattern}, rotary_base={self.rotary_base}"


# ---------------------------------------------------------------- whole sequences; q, k, v: (batch, heads, length, d)


def _window(q: Tensor, k: Tensor, v: Tensor, pattern: SparsePattern) -> Tensor:
    """The first w tokens see all before them. The others go in blocks, each beside the columns that one of it sees;
    those columns are views that overlap, and nothing is copied unless there are sinks. With a dilation of r the tokens
    are r sequences, each with a plain window."""
    if pattern.dilation > 1:
        rows, *columns = (_blocks(t, pattern.dilation).permute(3, 0, 1, 2, 4).flatten(0, 1) for t in (q, k, v))
        o = _window(rows, columns[0], columns[1], SparsePattern("window", pattern.width))
        return torch.unflatten(o, 0, (pattern.dilation, -1)).permute(1, 2, 3, 0, 4).flatten(2, 3)[:, :, : q.shape[2]]
    width, sinks, length = pattern.width, pattern.sinks, q.shape[2]
    early = scaled_dot_product_attention(q[:, :, :width], k[:, :, :width], v[:, :, :width], is_causal=True)
    if length <= width:
        return early
    block = min(max(width // 4, 16), 128)
    count, size = -(-(length - width) // block), block + width - 1
    fill = width + count * block - length
    batch = q.shape[0]
    rows = torch.unflatten(pad(q[:, :, width:], (0, 0, 0, fill)).flatten(0, 1), 1, (count, block))
    tall = (pad(t, (0, 0, 0, fill)).contiguous().flatten(0, 1) for t in (k, v))
    k_block, v_block = (t[:, 1:].unfold(1, size, block).transpose(2, 3) for t in tall)
    row, column = torch.arange(block, device=q.device)[:, None], torch.arange(size, device=q.device)
    seen = (column >= row) & (column < row + width)
    if sinks:
        sinks = min(sinks, length)
        first = (t[:, :, :sinks].flatten(0, 1).unsqueeze(1).expand(-1, count, -1, -1) for t in (k, v))
        k_block, v_block = (torch.cat(pair, 2) for pair in zip(first, (k_block, v_block), strict=True))
        since = torch.arange(count * block, device=q.device).view(count, block, 1)  # tokens that no window sees, less 1
        left = torch.arange(sinks, device=q.device) <= since
        seen = torch.cat((left, seen.expand(count, -1, -1)), 2)
    late = scaled_dot_product_attention(rows, k_block, v_block, attn_mask=seen)
    late = torch.unflatten(late.flatten(1, 2)[:, : length - width], 0, (batch, -1))
    return torch.cat((early, late), 2)


def _strided(q: Tensor, k: Tensor, v: Tensor, pattern: SparsePattern) -> Tensor:
    """Scores of the latest w tokens and of those whole strides back lie side by side under one softmax."""
    width, length = pattern.width, q.shape[2]
    q, k, v = (_blocks(t, width) for t in (q, k, v))  # (batch, heads, blocks, w, d)
    count = q.shape[2]
    near_k, near_v = (torch.cat((pad(t, (0, 0, 0, 0, 1, 0))[:, :, :-1], t), 3) for t in (k, v))
    near = q @ near_k.mT  # (batch, heads, blocks, w, 2 w)
    far = (q.transpose(2, 3) @ k.transpose(2, 3).mT).transpose(2, 3)  # (batch, heads, blocks, w, blocks)
    row, column = torch.arange(width, device=q.device)[:, None], torch.arange(2 * width, device=q.device)
    number = torch.arange(count, device=q.device)
    inside = (column > row) & (column <= row + width) & ((column >= width) | (number[:, None, None] > 0))
    back = (number < number[:, None])[:, None].expand(-1, width, -1)
    p = _weights(torch.cat((near, far), -1), torch.cat((inside, back), -1), q.shape[-1])
    o = p[..., : 2 * width] @ near_v
    o = o + (p[..., 2 * width :].transpose(2, 3) @ v.transpose(2, 3)).transpose(2, 3)
    return o.flatten(2, 3)[:, :, :length]


def _fixed(q: Tensor, k: Tensor, v: Tensor, pattern: SparsePattern) -> Tensor:
    """Scores of the own block and of the ends of earlier ones lie side by side under one softmax."""
    width, length = pattern.width, q.shape[2]
    q, k, v = (_blocks(t, width) for t in (q, k, v))
    count = q.shape[2]
    ends_k, ends_v = (t[..., width - pattern.summary :, :].flatten(2, 3).unsqueeze(2) for t in (k, v))
    scores = torch.cat((q @ k.mT, q @ ends_k.mT), -1)  # (batch, heads, blocks, w, w + blocks * c)
    row = torch.arange(width, device=q.device)
    number = torch.arange(count, device=q.device)
    own = (row <= row[:, None]).expand(count, -1, -1)
    earlier = number.repeat_interleave(pattern.summary) < number[:, None]
    p = _weights(scores, torch.cat((own, earlier[:, None].expand(-1, width, -1)), -1), q.shape[-1])
    o = p[..., :width] @ v + p[..., width:] @ ends_v
    return o.flatten(2, 3)[:, :, :length]


def _blocks(x: Tensor, width: int) -> Tensor:
    return torch.unflatten(pad(x, (0, 0, 0, -x.shape[2] % width)), 2, (-1, width))


def _weights(scores: Tensor, seen: Tensor, head_dim: int) -> Tensor:
    wide = scores.to(torch.promote_types(scores.dtype, torch.float32)) * head_dim**-0.5
    return torch.softmax(wide.masked_fill(~seen, -torch.inf), -1).to(scores.dtype)
