"""One residual stack in which any mixer is swapped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers import Mixer, RMSNorm, SwiGLU

_POOLS = ("none", "last", "mean")


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
        pool: "none": y is (batch, length, out_dim). "last" and "mean": y is (batch, out_dim), from the last token fed
            so far or from the mean over all of them.
    Returns y, and the state: a tuple of the blocks' states, followed by a PoolState if ``pool`` is not "none".
    Feeding a sequence in pieces means what it means for a mixer; pooled, the last piece's y is the whole's.
    Raises ValueError: arguments or x as above not given, a pooled sequence without any token, a state of another depth.
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
        pool: str = "none",
    ) -> None:
        super().__init__()
        if (vocab is None) == (in_dim is None):
            raise ValueError(f"SequenceModel wants either vocab or in_dim, not vocab={vocab} and in_dim={in_dim}")
        if pool not in _POOLS:
            raise ValueError(f"SequenceModel wants pool to be one of {', '.join(_POOLS)}, not {pool!r}")
        if depth < 1 or mlp_ratio < 0:
            raise ValueError(f"SequenceModel wants depth >= 1 and mlp_ratio >= 0, not {depth} and {mlp_ratio}")
        self.vocab, self.in_dim, self.pool = vocab, in_dim, pool
        self.embed = nn.Embedding(vocab, dim) if vocab is not None else nn.Linear(in_dim or 0, dim)
        self.blocks = nn.ModuleList(_Block(mixer(dim), dim, round(mlp_ratio * dim)) for _ in range(depth))
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, out_dim)

    @property
    def chunk(self) -> int:
        """Tokens that its slowest-grained mixer works on at once."""
        return max(block.mixer.chunk for block in self._blocks())

    def forward(self, x: Tensor, state: tuple[Any, ...] | None = None) -> tuple[Tensor, tuple[Any, ...]]:
        self._check_input(x)
        pooled = self.pool != "none"
        depth = len(self.blocks)
        if state is not None and len(state) != depth + pooled:
            raise ValueError(f"SequenceModel wants a state of {depth + pooled} parts, not {len(state)}")
        h = self.embed(x)
        after = []
        for i, block in enumerate(self._blocks()):
            h, block_state = block(h, None if state is None else state[i])
            after.append(block_state)
        if pooled:
            pool_state = self._pool(h, None if state is None else state[depth])
            after.append(pool_state)
            h = pool_state.value
            if self.pool == "mean":
                h = h / pool_state.pos[:, None]
        return self.head(self.norm(h)), tuple(after)

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
