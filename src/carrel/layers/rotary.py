"""Rotary positions: queries and keys turned by angles that grow with the position."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["half", "interleaved"]


class Turns(NamedTuple):
    """cos, sin: (batch or 1, 1, length, pairs), of the angle by which each pair of channels turns at each position."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class LinearScaling:
    r"""Positions pressed together, so that a context ``factor`` times as long falls into the trained range.

    .. math:: \theta_i' = \theta_i / k

    Raises ValueError: factor is below 1.   Source: arXiv:2306.15595, equation 4.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def size(self) -> float:
        """What turned vectors are multiplied by."""
        return 1.0

    def frequencies(self, dim: int, base: float, device: torch.device | str | None = None) -> Tensor:
        """(dim / 2,) float64, radians per position."""
        return rotary_frequencies(dim, base, device=device) / self.factor


@dataclass(frozen=True, slots=True)
class NTKScaling:
    r"""A larger base: the fastest pair keeps its frequency, the slowest is divided by ``factor``, others in between.

    .. math:: b' = b\,k^{d / (d - 2)}, \qquad \theta_0' = \theta_0, \qquad \theta_{d/2 - 1}' = \theta_{d/2 - 1} / k

    A factor that follows the length as it grows would turn keys anew that have been read, and so has no place here.

    Raises ValueError: factor is below 1; a dim of 2, whose one pair is both.   Source: kexue.fm/archives/9675.
    """

    factor: float

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    @property
    def size(self) -> float:
        """What turned vectors are multiplied by."""
        return 1.0

    def frequencies(self, dim: int, base: float, device: torch.device | str | None = None) -> Tensor:
        """(dim / 2,) float64, radians per position."""
        if dim < 4:
            raise ValueError(f"NTKScaling wants at least 4 channels, not {dim}")
        return rotary_frequencies(dim, base * self.factor ** (dim / (dim - 2)), device=device)


@dataclass(frozen=True, slots=True)
class YaRNScaling:
    r"""Fast pairs keep their frequency, slow ones are divided by ``factor``, and scores are sharpened a little.

    .. math:: \theta_i' = \gamma_i \theta_i + (1 - \gamma_i)\,\theta_i / k, \qquad
              \gamma_i = \mathrm{clip}\Big(\frac{r_i - s}{f - s}, 0, 1\Big), \qquad r_i = \frac{L\,\theta_i}{2\pi}

    Args:
        factor: k, by how much the context grows.
        length: L, tokens of the context that was trained; r_i is how often pair i turns within it.
        fast, slow: f and s, rounds from which a pair is left alone, and up to which it is fully slowed.
        ramp: "turns" as above; "index" is what the authors' code does: linear in i between the pairs that turn f and s
            times, rounded outwards.
        temperature: what queries and keys are multiplied by, so that scores gain its square; 0.1 ln k + 1 if None.
    Raises ValueError: factor below 1, length below 1, slow not in (0, fast), temperature not above 0.
    Source: arXiv:2309.00071, sections 3.2 to 3.4.
    """

    factor: float
    length: int
    fast: float = 32.0
    slow: float = 1.0
    ramp: Literal["turns", "index"] = "turns"
    temperature: float | None = None

    def __post_init__(self) -> None:
        _check_factor(self.factor)
        if self.length < 1 or not 0 < self.slow < self.fast:
            raise ValueError(
                "YaRNScaling wants a length of at least 1 and 0 < slow < fast, "
                f"not length={self.length}, slow={self.slow} and fast={self.fast}"
            )
        if self.ramp not in ("turns", "index"):
            raise ValueError(f"YaRNScaling wants a ramp of turns or index, not {self.ramp!r}")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise ValueError(f"YaRNScaling wants a finite temperature above 0, not {self.temperature}")

    @property
    def size(self) -> float:
        """What turned vectors are multiplied by."""
        return 0.1 * math.log(self.factor) + 1 if self.temperature is None else self.temperature

    def frequencies(self, dim: int, base: float, device: torch.device | str | None = None) -> Tensor:
        """(dim / 2,) float64, radians per position."""
        theta = rotary_frequencies(dim, base, device=device)
        if self.ramp == "turns":
            kept = (self.length * theta / (2 * math.pi) - self.slow) / (self.fast - self.slow)
        else:
            first = max(math.floor(self._pair(self.fast, dim, base)), 0)
            last = min(math.ceil(self._pair(self.slow, dim, base)), dim - 1)
            step = torch.arange(dim // 2, dtype=torch.float64, device=device)
            kept = 1 - (step - first) / (last - first if last != first else 1e-3)
        kept = kept.clamp(0, 1)
        return kept * theta + (1 - kept) * theta / self.factor

    def _pair(self, turns: float, dim: int, base: float) -> float:
        """The index, between whole ones, of the pair that turns so often within the trained context."""
        return dim * math.log(self.length / (2 * math.pi * turns)) / (2 * math.log(base))


RotaryScaling = LinearScaling | NTKScaling | YaRNScaling


def _check_factor(factor: float) -> None:
    if not 1 <= factor < math.inf:
        raise ValueError(f"a rotary scaling wants a finite factor of at least 1, not {factor}")


def rotary_frequencies(
    dim: int,
    base: float = 10000.0,
    scaling: RotaryScaling | None = None,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""How far each pair of channels turns per position.

    .. math:: \theta_i = b^{-2i / d}, \qquad i = 0 .. d/2 - 1

    Args:
        dim: d, channels of a head; even.
        base: b, above 1. The slowest pair takes about 2π b positions for one round.
        scaling: stretches them for contexts longer than the trained one.
        device: where to make them.
    Returns (dim / 2,) float64, radians per position, falling from 1.
    Raises ValueError: dim is odd or below 2, base is not above 1.   Source: arXiv:2104.09864, equation 15.
    """
    if dim < 2 or dim % 2 or not base > 1:
        raise ValueError(f"rotary positions want an even number of channels and a base above 1, not {dim} and {base}")
    if scaling is not None:
        return scaling.frequencies(dim, base, device)
    return base ** (torch.arange(0, -dim, -2, dtype=torch.float64, device=device) / dim)


def rotary_turns(pos: Tensor, frequencies: Tensor, dtype: torch.dtype = torch.float32, size: float = 1.0) -> Turns:
    """The turns at given positions: ``angle = pos * frequency``.

    Args:
        pos: (length,), or (batch, length) where rows stand at different positions; whole numbers.
        frequencies: (pairs,), float64; others than :func:`rotary_frequencies` make stretched contexts.
        dtype: of the turns. Angles are always float64: in float32 position 10^6 would be wrong by 0.06 radians.
        size: what turned vectors are multiplied by; a scaling's ``size``.
    """
    angle = (pos.to(torch.float64).unsqueeze(-1) * frequencies).unsqueeze(-3)
    angle = angle.unsqueeze(0) if pos.dim() == 1 else angle
    return Turns((size * angle.cos()).to(dtype), (size * angle.sin()).to(dtype))


def rotate(x: Tensor, turns: Turns, layout: Layout = "half") -> Tensor:
    r"""Turn each pair of channels in its plane.

    .. math:: (R_m q) \cdot (R_n k) = q^\top R_{n - m} k

    so that a product of a turned query and a turned key depends on how far apart they are and not on where they stand.

    Args:
        x: (batch, heads, length, dim).
        turns: for those positions. Of fewer than dim / 2 pairs, they turn the first channels and leave the others.
        layout: which channels are a pair: "half" (x_i, x_{i + d/2}), "interleaved" (x_{2i}, x_{2i + 1}).
    Returns a tensor like x; computed in the wider of the two types.   Raises ValueError: more pairs than channels for
    them, an unknown layout.   Source: arXiv:2104.09864, section 3.2.
    """
    dim, pairs = x.shape[-1], turns.cos.shape[-1]
    if 2 * pairs > dim:
        raise ValueError(f"rotate wants at most {dim // 2} pairs to turn {dim} channels, not {pairs}")
    rest = None
    if 2 * pairs < dim:
        x, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if layout == "half":
        left, right = x.chunk(2, -1)
        turned = torch.cat(_turned(left, right, turns), -1)
    elif layout == "interleaved":
        left, right = x.unflatten(-1, (pairs, 2)).unbind(-1)
        turned = torch.stack(_turned(left, right, turns), -1).flatten(-2)
    else:
        raise ValueError(f"rotate wants a layout of half or interleaved, not {layout!r}")
    return turned.to(x.dtype) if rest is None else torch.cat((turned.to(x.dtype), rest), -1)


def _turned(left: Tensor, right: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
    """The two channels of every pair: two passes over memory each, not three."""
    return (
        torch.addcmul(left * turns.cos, right, turns.sin, value=-1),
        torch.addcmul(right * turns.cos, left, turns.sin),
    )


class RoPE:
    r"""Rotary positions of one head size: :func:`rotary_frequencies`, :func:`rotary_turns` and :func:`rotate` in one.

    .. math:: \mathrm{rope}(x, m) = s\,R_m x

    Args:
        dim: channels of a head.
        base: of the frequencies.
        scaling: for contexts longer than the trained one; s is its ``size``.
        layout: which channels are a pair, see :func:`rotate`.
        rotary_dim: how many channels are turned, the first ones; all if None.
    ``rope(x, pos)`` takes x: (batch, heads, length, dim) and pos as :func:`rotary_turns` does. ``frequencies``:
    (rotary_dim / 2,) float64.
    Raises ValueError: dim or rotary_dim odd or too large, base not above 1, what the scaling refuses.
    Source: arXiv:2104.09864.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        scaling: RotaryScaling | None = None,
        *,
        layout: Layout = "half",
        rotary_dim: int | None = None,
    ) -> None:
        rotary_dim = dim if rotary_dim is None else rotary_dim
        if rotary_dim > dim:
            raise ValueError(f"RoPE wants rotary_dim of at most {dim}, the channels there are, not {rotary_dim}")
        self.dim, self.base, self.scaling, self.layout = dim, base, scaling, layout
        self.rotary_dim, self.size = rotary_dim, 1.0 if scaling is None else scaling.size
        self.frequencies = rotary_frequencies(rotary_dim, base, scaling)

    def turns(self, pos: Tensor, dtype: torch.dtype = torch.float32) -> Turns:
        """The turns at these positions, for :func:`rotate`, in float32 at least."""
        frequencies = self.frequencies.to(pos.device)
        return rotary_turns(pos, frequencies, torch.promote_types(dtype, torch.float32), self.size)

    def __call__(self, x: Tensor, pos: Tensor) -> Tensor:
        return rotate(x, self.turns(pos, x.dtype), self.layout)

    def __repr__(self) -> str:
        scaled = "" if self.scaling is None else f", {self.scaling}"
        return f"RoPE({self.dim}, base={self.base}{scaled}, layout={self.layout!r}, rotary_dim={self.rotary_dim})"
