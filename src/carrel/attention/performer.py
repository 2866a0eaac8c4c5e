"""Performer: softmax attention estimated by random features, at linear cost."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers.mixer import Mixer
from carrel.layers.state_shapes import check_state

from .heads import head_width, join_heads, split_heads
from .linear import LinearAttentionState, exponential_sums, plain_sums

FEATURE_KINDS = ("positive", "hyperbolic", "trig", "relu")
_FLOOR = 1e-3  # of the features of "relu", so that no denominator vanishes


def gaussian_directions(
    features: int, dim: int, *, orthogonal: bool = True, generator: torch.Generator | None = None
) -> Tensor:
    """Rows w with the law of N(0, I), in float64; at right angles to each other within every ``dim`` of them.

    Args:
        features: rows.
        dim: of each.
        orthogonal: False draws them independently.
        generator: for the draw.
    Returns (features, dim).   Raises ValueError: a size below 1.
    Source: arXiv:2009.14794, section 2.4; lengths are those of independent normal vectors.
    """
    for name, size in {"features": features, "dim": dim}.items():
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"random features want {name} to be a whole number of at least 1, not {size!r}")
    rows = torch.randn(features, dim, dtype=torch.float64, generator=generator)
    if not orthogonal:
        return rows
    blocks = []
    for start in range(0, features, dim):
        basis, upper = torch.linalg.qr(torch.randn(dim, dim, dtype=torch.float64, generator=generator))
        basis = basis * upper.diagonal().sign()  # without which not every rotation is as likely
        blocks.append(basis.T[: features - start])
    return torch.cat(blocks) * rows.norm(dim=1, keepdim=True)


def random_features(x: Tensor, directions: Tensor, kind: str = "positive") -> Tensor:
    r"""Features whose products estimate exp(q·k / √d) without bias, but for "relu", a kernel of its own.

    .. math:: \phi(x)_r = m^{-1/2}\, e^{w_r \cdot u - |u|^2 / 2}, \qquad u = x / d^{1/4}

    Args:
        x: (..., d), queries or keys.
        directions: (m, d), w.
        kind: "positive", above; "hyperbolic", with -w_r beside w_r, 2 m features; "trig", sine and cosine of w_r · u
            times exp(|u|²/2), 2 m features, which can be negative; "relu", max(w_r · u, 0) + 0.001.
    Returns (..., m or 2 m).   Raises ValueError: an unknown kind.
    Source: arXiv:2009.14794, lemma 1 and equation 5.
    """
    scale = len(directions) ** -0.5
    if kind == "trig":
        turned, half = _projected(x, directions)
        return scale * torch.exp(half) * torch.cat([turned.sin(), turned.cos()], -1)
    if kind == "relu":
        return scale * (functional.relu(_projected(x, directions)[0]) + _FLOOR)
    exponents = _exponents(x, directions, kind)
    return (exponents.shape[-1] ** -0.5) * torch.exp(exponents)


def _projected(x: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    u = x * x.shape[-1] ** -0.25
    return u @ directions.T, u.square().sum(-1, keepdim=True) / 2


def _exponents(x: Tensor, directions: Tensor, kind: str) -> Tensor:
    if kind not in ("positive", "hyperbolic"):
        raise ValueError(f"random features must be one of {', '.join(FEATURE_KINDS)}, not {kind!r}")
    at, half = _projected(x, directions)
    return (at if kind == "positive" else torch.cat([at, -at], -1)) - half


class PerformerState(NamedTuple):
    """S: (batch, heads, m, head_dim), z: (batch, heads, m), top: (batch, heads, 1), as of LinearAttentionState.

    draw: (batch,) int64, which draw of the features they were made with.
    """

    S: Tensor
    z: Tensor
    top: Tensor
    draw: Tensor


class Performer(Mixer):
    r"""Softmax attention over all earlier tokens, estimated at linear cost by random features.

    .. math:: o_t = \frac{\sum_{j \le t} \phi(q_t) \cdot \phi(k_j)\, v_j}{\sum_{j \le t} \phi(q_t) \cdot \phi(k_j)},
              \qquad \mathbb{E}\, \phi(q) \cdot \phi(k) = e^{q \cdot k / \sqrt d}

    Exponents are taken relative to a query's largest and to the largest of all keys so far, which cancels exactly.

    Args:
        dim: width of x and y.
        heads: H; all use the same features.
        features: m; d ln d, rounded up, if None. "hyperbolic" has twice as many.
        orthogonal: whether directions are at right angles, see :func:`gaussian_directions`.
        kind: "positive", "hyperbolic" or "relu", see :func:`random_features`.
        head_dim: d; dim / heads if None.
        generator: for the draw.
    x, y: (batch, length, dim).   state: PerformerState(S, z, top, draw), constant size: m (dim + heads) numbers.
    Raises ValueError: sizes below 1 or that do not divide, a kind that can be negative; x or the state of a wrong
        shape; a state from before ``redraw_``.
    Cost: per token 8 dim² operations in projections, 4 m dim for the features and 4 m dim in the heads.
    ``directions`` is a buffer: saved, moved, never trained.   Source: arXiv:2009.14794.
    """

    directions: Tensor
    draws: Tensor

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        features: int | None = None,
        orthogonal: bool = True,
        kind: str = "positive",
        head_dim: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("Performer", dim, heads, head_dim)
        features = max(1, math.ceil(self.head_dim * math.log(self.head_dim))) if features is None else features
        if kind not in ("positive", "hyperbolic", "relu"):
            raise ValueError(f"Performer wants kind to be positive, hyperbolic or relu, not {kind!r}")
        self.dim, self.heads, self.orthogonal, self.kind, self.chunk = dim, heads, orthogonal, kind, 64
        drawn = gaussian_directions(features, self.head_dim, orthogonal=orthogonal, generator=generator)
        self.register_buffer("directions", drawn.to(torch.get_default_dtype()))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))
        self.qkv = nn.Linear(dim, 3 * heads * self.head_dim, bias=False)
        self.out = nn.Linear(heads * self.head_dim, dim, bias=False)

    @torch.no_grad()
    def redraw_(self, generator: torch.Generator | None = None) -> None:
        """Draw new features. States made with the old ones are refused from then on."""
        features, dim = self.directions.shape
        self.directions.copy_(gaussian_directions(features, dim, orthogonal=self.orthogonal, generator=generator))
        self.draws += 1

    def forward(self, x: Tensor, state: PerformerState | None = None) -> tuple[Tensor, PerformerState]:
        self._check_input(x)
        self._check_state(x, state)
        q, k, v = split_heads(self.qkv(x), 3, self.heads)
        wide = torch.promote_types(x.dtype, torch.float32)
        q, k, w = q.to(wide), k.to(wide), self.directions.to(wide)
        before = None if state is None else LinearAttentionState(*state[:3])
        with torch.autocast(x.device.type, enabled=False):  # exponents in half precision are wrong by whole factors
            if self.kind == "relu":
                asked, known = (random_features(t, w, "relu") for t in (q, k))
                o, after = plain_sums(asked, known, v, before, True, chunk=self.chunk)
            else:
                exponents = _exponents(q, w, self.kind)
                asked = torch.exp(exponents - exponents.detach().amax(-1, keepdim=True))
                o, after = exponential_sums(asked, _exponents(k, w, self.kind), v, before, chunk=self.chunk)
        draw = self.draws.expand(len(x)).clone()
        return self.out(join_heads(o)), PerformerState(*after, draw)

    def _check_state(self, x: Tensor, state: PerformerState | None) -> None:
        m = len(self.directions) * (2 if self.kind == "hyperbolic" else 1)
        rows = (len(x), self.heads)
        shapes = {"S": (*rows, m, self.head_dim), "z": (*rows, m), "top": (*rows, 0 if self.kind == "relu" else 1)}
        check_state(self, state, PerformerState, {**shapes, "draw": (len(x),)})
        if state is not None and not torch.compiler.is_compiling() and bool((state.draw != self.draws).any()):
            raise ValueError("Performer's features were drawn anew after this state was made: start the sequence again")

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, features={len(self.directions)}, kind={self.kind!r}"
