"""One residual stack in which any mixer is swapped."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers import Mixer, RMSNorm, SwiGLU

from .generation import stream

_POOLS = ("none", "last", "mean")
_SMALL = 0.02  # standard deviation of embeddings that have positions added to them


class PositionState(NamedTuple):
    """What learned positions keep: pos (batch,) int64, tokens so far."""

    pos: Tensor


class PoolState(NamedTuple):
    """What pooling keeps: value (batch, dim), the last token or the sum of all; pos (batch,) int64, tokens so far."""

    value: Tensor
    pos: Tensor


class SequenceModel(nn.Module):
    r"""Pre-norm residual blocks around a mixer, between an embedding and a linear head.

    .. math:: h \leftarrow h + \text{mixer}(\text{norm}(h)), \qquad h \leftarrow h + \text{MLP}(\text{norm}(h)),
              \qquad y = W \,\text{norm}(h) + c

    Args:
        mixer: called with ``dim`` once per block, returns a new mixer.
        dim: width of the residual stream.
        depth: number of blocks.
        vocab: number of tokens; x is then (batch, length) int64. Give this or ``in_dim``, not both.
        in_dim: size of real inputs; x is then (batch, length, in_dim).
        out_dim: size of the output.
        mlp_ratio: hidden width of the gated MLP as a multiple of dim; 0 leaves the MLP out.
        pos: "learned" adds a trained vector for every position to the embedding, for mixers that have no order of their
            own. None leaves order to the mixers.
        max_length: positions there are, with ``pos="learned"`` only: no sequence can go on beyond them.
        pool: "none": y is (batch, length, out_dim). "last" and "mean": y is (batch, out_dim), from the last token fed
            so far or from the mean over all of them.
    Returns y, and the state: a tuple of the blocks' states, followed by a PositionState if positions are learned and a
    PoolState if ``pool`` is not "none".
    Feeding a sequence in pieces means what it means for a mixer; pooled, the last piece's y is the whole's.
    Embeddings of tokens start as N(0, 1), and where positions are learned both start with standard deviation 0.02.
    Raises ValueError: arguments or x as above not given, a pooled sequence without any token, a state of another depth,
    more tokens than positions.
    """

    def __init__(
        self,
        mixer: Callable[[int], Mixer],
        dim: int,
        depth: int,
        *,
        out_dim: int,
        vocab: int | None = None,
        in_dim: int | None = None,
        mlp_ratio: float = 0,
        pos: str | None = None,
        max_length: int | None = None,
        pool: str = "none",
    ) -> None:
        super().__init__()
        if (vocab is None) == (in_dim is None):
            raise ValueError(f"SequenceModel wants either vocab or in_dim, not vocab={vocab} and in_dim={in_dim}")
        if pool not in _POOLS:
            raise ValueError(f"SequenceModel wants pool to be one of {', '.join(_POOLS)}, not {pool!r}")
        if depth < 1 or mlp_ratio < 0:
            raise ValueError(f"SequenceModel wants depth >= 1 and mlp_ratio >= 0, not {depth} and {mlp_ratio}")
        placed = pos == "learned" and max_length is not None and max_length >= 1
        if not placed and (pos is not None or max_length is not None):
            raise ValueError(
                'SequenceModel wants pos="learned" with a max_length of at least 1, or neither, '
                f"not pos={pos!r} and max_length={max_length}"
            )
        self.vocab, self.in_dim, self.out_dim, self.pool = vocab, in_dim, out_dim, pool
        self.embed = nn.Embedding(vocab, dim) if vocab is not None else nn.Linear(in_dim or 0, dim)
        self.positions = nn.Embedding(max_length, dim) if max_length is not None else None
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=_SMALL)
            if vocab is not None:
                nn.init.normal_(self.embed.weight, std=_SMALL)
        self.blocks = nn.ModuleList(_Block(mixer(dim), dim, round(mlp_ratio * dim)) for _ in range(depth))
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, out_dim)

    @property
    def chunk(self) -> int:
        """Tokens that its slowest-grained mixer works on at once."""
        return max(block.mixer.chunk for block in self._blocks())

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        h, state = self.features(x, state)
        return self.head(h), state

    def features(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        """What the head is given, (batch, length, dim) or pooled (batch, dim), and the state."""
        self._check_input(x)
        before = self._parts(state)
        h, after = self.embed(x), []
        if self.positions is not None:
            position = self._position(x, before[len(self.blocks)])
            h = h + self.positions(position.pos[:, None] + torch.arange(x.shape[1], device=x.device))
        for block, block_state in zip(self._blocks(), before, strict=False):
            h, block_state = block(h, block_state)
            after.append(block_state)
        if self.positions is not None:
            after.append(PositionState(position.pos + x.shape[1]))
        if self.pool != "none":
            pool_state = self._pool(h, before[-1])
            after.append(pool_state)
            h = pool_state.value
            if self.pool == "mean":
                h = h / pool_state.pos[:, None]
        return self.norm(h), tuple(after)

    def generate(
        self,
        prompt: Tensor,
        length: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        state: tuple[Any, ...] | None = None,
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Continue sequences token by token, each token being fed once.

        Args:
            prompt: (batch, tokens) int64, at least one token.
            length: tokens to write after it, at least 1.
            temperature: logits are divided by it before one token is drawn; 0 takes the likeliest.
            generator: the source of chance, on the model's device; torch's own if None.
            state: what came before the prompt.
        Returns (batch, length) int64; and the state before the last of these, so that
        ``model.generate(tokens[:, -1:], more, state=state)`` goes on as if it had not stopped.
        No gradient is kept. Raises ValueError as :func:`carrel.models.stream`, which yields the tokens one by one.
        """
        if length < 1:
            raise ValueError(f"generate wants a length of at least 1, not {length}")
        tokens = []
        steps = stream(self, prompt, temperature=temperature, generator=generator, state=state)
        for token, after in islice(steps, length):
            tokens.append(token)
            state = after
        assert state is not None
        return torch.stack(tokens, 1), state

    def _parts(self, state: tuple[Any, ...] | None) -> tuple[Any, ...]:
        parts = len(self.blocks) + (self.positions is not None) + (self.pool != "none")
        if state is None:
            return (None,) * parts
        if len(state) != parts:
            raise ValueError(f"SequenceModel wants a state of {parts} parts, not {len(state)}")
        return state

    def _position(self, x: Tensor, before: PositionState | None) -> PositionState:
        assert self.positions is not None
        there_are, batch = self.positions.num_embeddings, x.shape[0]
        start = 0
        if before is None:
            before = PositionState(torch.zeros(batch, dtype=torch.int64, device=x.device))
        elif not isinstance(before, PositionState) or tuple(before.pos.shape) != (batch,):
            raise ValueError(f"SequenceModel wants a PositionState of {batch} rows, not {type(before).__name__}")
        elif batch and not torch.compiler.is_compiling():
            start = int(before.pos.max())
        if start + x.shape[1] > there_are:
            raise ValueError(
                f"SequenceModel has {there_are} positions, too few for {start} tokens and {x.shape[1]} after them"
            )
        return before

    def _pool(self, h: Tensor, before: PoolState | None) -> PoolState:
        length = h.shape[1]
        wide = torch.promote_types(h.dtype, torch.float32)  # a sum over many tokens does not fit half precision
        if before is None:
            if length == 0:
                raise ValueError(f"SequenceModel with pool={self.pool!r} wants at least one token, not none")
            pos = torch.zeros(h.shape[0], dtype=torch.int64, device=h.device)
            before = PoolState(torch.zeros_like(h[:, 0], dtype=wide), pos)
        if self.pool == "mean":
            value = before.value + h.sum(1, dtype=wide)
        else:
            value = h[:, -1].to(wide) if length else before.value
        return PoolState(value, before.pos + length)

    def _blocks(self) -> list[_Block]:
        return list(self.blocks)  # type: ignore[arg-type]

    def _check_input(self, x: Tensor) -> None:
        if self.vocab is not None:
            if x.dim() != 2 or x.is_floating_point():
                raise ValueError(f"SequenceModel wants tokens of shape (batch, length), not {x.dtype} {tuple(x.shape)}")
        elif x.dim() != 3 or x.shape[-1] != self.in_dim:
            raise ValueError(f"SequenceModel wants x of shape (batch, length, {self.in_dim}), not {tuple(x.shape)}")


class _Block(nn.Module):
    """h + mixer(norm(h)), then the same with an MLP if ``hidden`` is not 0."""

    def __init__(self, mixer: Mixer, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = RMSNorm(dim)
        self.mixer = mixer
        self.mlp = nn.Sequential(RMSNorm(dim), SwiGLU(dim, hidden)) if hidden else None

    def forward(self, h: Tensor, state: Any) -> tuple[Tensor, Any]:
        mixed, state = self.mixer(self.norm(h), state)
        h = h + mixed
        return (h if self.mlp is None else h + self.mlp(h)), state
