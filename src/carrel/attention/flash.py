"""FLASH: the gated attention unit within chunks, and linear attention to the chunks before."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from carrel.layers.mixer import Mixer
from carrel.layers.state_shapes import check_state
from carrel.ops import relu2_attention

from .gates import GatedProjections, Scaling, check_encoded, check_scaling, score_scale

_FEW = 4  # tokens that go one by one from a state: a whole chunk for each row costs more


class FLASHState(NamedTuple):
    """What FLASH keeps of the past.

    S: (batch, s, e), the sum of keys times values over all closed chunks; open: (batch, s, e), that of the open chunk;
    both float32 at least. k: (batch, chunk, s), v: (batch, chunk, e), quadratic keys and values of the open
    chunk, 0 behind its ``pos % chunk`` tokens. pos: (batch,) int64, tokens so far.
    """

    S: Tensor
    open: Tensor
    k: Tensor
    v: Tensor
    pos: Tensor


class _Parts(NamedTuple):
    """Queries and keys within a chunk, queries and keys of the sums, values: (batch, length, s or e)."""

    q: Tensor
    k: Tensor
    ql: Tensor
    kl: Tensor
    v: Tensor


class FLASH(Mixer):
    r"""A gated unit that compares tokens within its chunk pair by pair, and sees earlier chunks as one average.

    .. math:: y_i = \Big(u_i \odot \Big(\frac1C \sum_{j \le i,\ j \in g}
              \mathrm{relu}\Big(\frac{q_i \cdot k_j}{\sqrt s}\Big)^2 v_j + \frac{1}{(g-1) C} \sum_{h < g}
              \sum_{j \in h} (q'_i \cdot k'_j)\, v_j \Big)\Big) W_o, \qquad i \in g = 1, 2, …

    u, v, q, k as in :class:`GAU`; q' and k' are two more scaled and shifted copies of z. The second sum is 0 in the
    first chunk.

    Args:
        dim: width of x and y.
        expansion: width e of u and v as a multiple of dim.
        key_dim: s, channels of the four; even, if positions are rotated.
        chunk: C, tokens of a chunk. From the length on, this is GAU with count C.
        scaling: "ns" as above; "n2" divides the scores within a chunk by C, not their squares by C s.
        rotary_base: of the rotation, see :func:`carrel.layers.rotary_frequencies`. None leaves it out.
    x, y: (batch, length, dim).   state: FLASHState, constant size: 2 s e + C (s + e) numbers. Rows may stand at
        different positions. It looks back only; :class:`FLASHEncoder` looks both ways.
    Raises ValueError: sizes below 1, an odd key_dim with rotation, an unknown scaling; x or the state of a wrong shape,
        as one of another chunk size is.
    Cost: per token 6 dim · e + 2 dim · s operations in projections, C (s + e) within the chunk and 4 s e for the past.
        Training holds s e numbers per chunk.
    Source: arXiv:2202.10447, section 4. Its division by the number of earlier tokens is spelt out here; "ns" is from
        kexue.fm/archives/8934.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 2,
        key_dim: int = 128,
        *,
        chunk: int = 256,
        scaling: Scaling = "ns",
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        check_scaling("FLASH", scaling)
        _check_chunk("FLASH", chunk)
        self.dim, self.chunk, self.scaling = dim, chunk, scaling
        self.gates = GatedProjections("FLASH", dim, expansion, key_dim, 4, rotary_base)

    def forward(self, x: Tensor, state: FLASHState | None = None) -> tuple[Tensor, FLASHState]:
        self._check_input(x)
        batch, length, _ = x.shape
        size, width = self.gates.key_dim, self.gates.width
        sums, held = (batch, size, width), (batch, self.chunk)
        shapes = {"S": sums, "open": sums, "k": (*held, size), "v": (*held, width), "pos": (batch,)}
        check_state(self, state, FLASHState, shapes)
        steps = torch.arange(length, device=x.device)
        u, v, vectors = self.gates(x, steps if state is None else state.pos[:, None] + steps)
        q, k, ql, kl = (t.squeeze(1) for t in vectors)
        parts = _Parts(q, k, ql, kl, v)
        if state is None:
            o, state = self._whole(parts)
        elif length <= _FEW:
            o, state = self._step_by_step(parts, state)
        else:
            o, state = self._further(parts, state)
        return self.gates.merge(u, o), state

    def _whole(self, parts: _Parts) -> tuple[Tensor, FLASHState]:
        """From the start."""
        batch, length, size = parts.q.shape
        closed, left = divmod(length, self.chunk)
        if left:
            parts = _Parts(*(pad(t, (0, 0, 0, self.chunk - left)) for t in parts))
        count = closed + (left > 0)
        chunks = _Parts(*(t.unflatten(1, (count, self.chunk)) for t in parts))
        zero = parts.q.new_zeros((batch, size, parts.v.shape[-1]), dtype=_wide(parts.q))
        pos = torch.full((batch,), length, dtype=torch.int64, device=zero.device)
        o, added, before = self._chunks(chunks, zero, None, torch.arange(count, device=zero.device))
        if left:
            return o[:, :length], FLASHState(before[:, -1], added[:, -1], chunks.k[:, -1], chunks.v[:, -1], pos)
        S = before[:, -1] + added[:, -1] if count else zero
        k, v = (t.new_zeros(batch, self.chunk, t.shape[-1]) for t in (parts.k, parts.v))
        return o, FLASHState(S, zero, k, v, pos)

    def _further(self, parts: _Parts, state: FLASHState) -> tuple[Tensor, FLASHState]:
        """From a state: rows are shifted by the tokens of their open chunks, so that borders fall together."""
        length, chunk, device = parts.q.shape[1], self.chunk, parts.q.device
        filled = (state.pos % chunk)[:, None]
        count = (chunk - 1 + length) // chunk + 1  # at least one more than any row closes
        place = torch.arange(count * chunk, device=device)
        source = torch.where(place < filled, place, chunk + place - filled).clamp(max=chunk + length)

        def shifted(new: Tensor, old: Tensor) -> Tensor:
            """Old tokens, new ones, zeros; in chunks."""
            line = torch.cat((old, pad(new, (0, 0, 0, 1))), 1)
            line = line.gather(1, source.unsqueeze(-1).expand(-1, -1, line.shape[-1]))
            return line.unflatten(1, (count, chunk))

        none = torch.zeros_like(state.k)
        held = (none, state.k, none, none, state.v)
        chunks = _Parts(*(shifted(new, old) for new, old in zip(parts, held, strict=True)))
        numbers = (state.pos // chunk)[:, None] + torch.arange(count, device=device)
        o, added, before = self._chunks(chunks, state.S, state.open, numbers)
        steps = torch.arange(length, device=device)
        o = o.gather(1, (filled + steps).unsqueeze(-1).expand(-1, -1, o.shape[-1]))
        row, last = torch.arange(len(o), device=device), (filled.squeeze(1) + length) // chunk
        S, opened, k, v = (t[row, last] for t in (before, added, chunks.k, chunks.v))
        return o, FLASHState(S, opened, k, v, state.pos + length)

    def _chunks(
        self, parts: _Parts, S: Tensor, opened: Tensor | None, numbers: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """o (batch, chunks · C, e); of every chunk the sum over itself and over all before it, (batch, chunks, s, e).

        Args:
            parts: (batch, chunks, C, s or e).
            S: the sum before these chunks.
            opened: what the first chunk held before these tokens came, if anything.
            numbers: (chunks,) or (batch, chunks), how many chunks have been closed before each.
        """
        q, k, ql, kl, v = parts
        batch, count, chunk, _ = q.shape
        wide = _wide(q)
        added = kl.to(wide).mT @ v.to(wide)
        if opened is not None:
            added = torch.cat((added[:, :1] + opened.unsqueeze(1), added[:, 1:]), 1)
        before = torch.cat((S.unsqueeze(1), added[:, :-1]), 1)[:, :count].cumsum(1)
        asked = (ql.to(wide) * _share(chunk * numbers, wide)[..., None, None]).flatten(0, 1)
        near = self._near(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1))
        o = torch.bmm(asked, before.flatten(0, 1)).add_(near).to(v.dtype)
        return o.unflatten(0, (batch, count)).flatten(1, 2), added, before

    def _step_by_step(self, parts: _Parts, state: FLASHState) -> tuple[Tensor, FLASHState]:
        slots, wide, found = torch.arange(self.chunk, device=parts.q.device), _wide(parts.q), [parts.v[:, :0]]
        for t in range(parts.q.shape[1]):
            q, k, ql, kl, v = (part[:, t, None] for part in parts)  # (batch, 1, s or e)
            S, opened, held_k, held_v, pos = state
            here = (slots == (pos % self.chunk)[:, None]).unsqueeze(-1)
            held_k, held_v = torch.where(here, k, held_k), torch.where(here, v, held_v)
            near = self._near(q, held_k, held_v, causal=False)
            share = _share(pos // self.chunk * self.chunk, wide)
            far = (ql.to(wide) * share[:, None, None]) @ S
            found.append((near + far).to(v.dtype))
            opened = opened + kl.to(wide).mT * v.to(wide)
            full = ((pos + 1) % self.chunk == 0)[:, None, None]
            S = torch.where(full, S + opened, S)
            opened, held_k, held_v = (h.masked_fill(full, 0) for h in (opened, held_k, held_v))
            state = FLASHState(S, opened, held_k, held_v, pos + 1)
        return torch.cat(found, 1), state

    def _near(self, q: Tensor, k: Tensor, v: Tensor, causal: bool = True) -> Tensor:
        return _within(q, k, v, self.chunk, self.scaling, causal)

    def extra_repr(self) -> str:
        return f"{self.dim}, chunk={self.chunk}, scaling={self.scaling}"


class FLASHEncoder(nn.Module):
    r"""FLASH looking both ways: all tokens of the chunk pair by pair, and all of the sequence as one average.

    .. math:: y_i = \Big(u_i \odot \Big(\frac1C \sum_{j \in g} \mathrm{relu}\Big(\frac{q_i \cdot k_j}{\sqrt s}\Big)^2
              v_j + \frac1L \sum_j (q'_i \cdot k'_j)\, v_j \Big)\Big) W_o

    Args as of :class:`FLASH`. It needs the whole sequence, so is no mixer.
    ``encoder(x, mask=None)``: x (batch, length, dim); mask (batch, length) bool, True where there is a token: others
    are seen by none, L does not count them, and what comes out at their places means nothing. Returns y like x.
    Raises ValueError: as FLASH; a mask of another shape or type.   Source: arXiv:2202.10447, section 4.
    """

    def __init__(
        self,
        dim: int,
        expansion: float = 2,
        key_dim: int = 128,
        *,
        chunk: int = 256,
        scaling: Scaling = "ns",
        rotary_base: float | None = 10000.0,
    ) -> None:
        super().__init__()
        check_scaling("FLASHEncoder", scaling)
        _check_chunk("FLASHEncoder", chunk)
        self.dim, self.chunk, self.scaling = dim, chunk, scaling
        self.gates = GatedProjections("FLASHEncoder", dim, expansion, key_dim, 4, rotary_base)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = check_encoded("FLASHEncoder", x, self.dim, mask)
        batch, length, _ = x.shape
        u, v, vectors = self.gates(x, torch.arange(length, device=x.device))
        q, k, ql, kl = (t.squeeze(1) for t in vectors)
        if mask is not None:
            k, kl = (t.masked_fill(~mask.unsqueeze(-1), 0) for t in (k, kl))
        wide = _wide(q)
        share = (1 / tokens).to(wide)[:, None, None]
        far = (ql.to(wide) * share) @ (kl.to(wide).mT @ v.to(wide))
        count = -(-length // self.chunk)
        chunks = (pad(t, (0, 0, 0, count * self.chunk - length)).unflatten(1, (count, self.chunk)) for t in (q, k, v))
        q, k, v_chunks = (t.flatten(0, 1) for t in chunks)
        near = _within(q, k, v_chunks, self.chunk, self.scaling, False)
        near = near.unflatten(0, (batch, count)).flatten(1, 2)[:, :length]
        return self.gates.merge(u, (near + far).to(v.dtype))

    def extra_repr(self) -> str:
        return f"{self.dim}, chunk={self.chunk}, scaling={self.scaling}"


def _within(q: Tensor, k: Tensor, v: Tensor, chunk: int, scaling: Scaling, causal: bool) -> Tensor:
    """Rows of chunks, (rows, tokens, s) or (…, e), each by itself."""
    count = chunk if scaling == "ns" else chunk**2
    q, k, v = (t.unsqueeze(1) for t in (q, k, v))
    return relu2_attention(q, k, v, causal=causal, scale=score_scale(scaling, q.shape[-1]), count=count).squeeze(1)


def _share(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / tokens, 0 where there are none."""
    return torch.where(tokens > 0, tokens.clamp(min=1).to(torch.float64).reciprocal(), 0.0).to(dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _check_chunk(owner: str, chunk: int) -> None:
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"{owner} wants chunk to be a whole number of at least 1, not {chunk!r}")
