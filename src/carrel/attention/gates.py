"""What the gated attention unit and FLASH make of their input before they attend, and of what they found after."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from carrel.layers.rotary import RoPE

Scaling = Literal["ns", "n2"]
_SCALINGS = ("ns", "n2")


class GatedProjections(nn.Module):
    r"""Gate, values and a few vectors out of one narrow layer; and the output.

    .. math:: u, v, z = \mathrm{silu}(x [W_u, W_v, W_z]), \qquad h_m = \gamma_m \odot z + \beta_m, \qquad
              y = (u \odot o)\, W_o

    Args:
        owner: who asks, for its errors.
        dim: width of x and y.
        expansion: width of u and v as a multiple of dim.
        key_dim: width of z and of the M vectors made of it.
        maps: M.
        rotary_base: of the rotation of these vectors; None leaves it out.
    Raises ValueError: sizes below 1, an odd key_dim with rotation.   Source: arXiv:2202.10447, section 3.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"gamma", "beta"})

    def __init__(
        self, owner: str, dim: int, expansion: float, key_dim: int, maps: int, rotary_base: float | None
    ) -> None:
        super().__init__()
        for name, size in {"dim": dim, "key_dim": key_dim}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"{owner} wants {name} to be a whole number of at least 1, not {size!r}")
        if not expansion * dim >= 1:
            raise ValueError(f"{owner} wants an expansion that leaves a width of at least 1, not {expansion}")
        self.width, self.key_dim = round(expansion * dim), key_dim
        self.rope = None if rotary_base is None else RoPE(key_dim, rotary_base)
        self.uvz = nn.Linear(dim, 2 * self.width + key_dim, bias=False)
        self.gamma = nn.Parameter(torch.ones(maps, key_dim))
        self.beta = nn.Parameter(torch.zeros(maps, key_dim))
        self.out = nn.Linear(self.width, dim, bias=False)

    def forward(self, x: Tensor, at: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """u, v: (batch, length, width); M vectors: (batch, 1, length, key_dim), turned by the positions ``at``."""
        h = self.uvz(x)
        u, v, z = silu(h, inplace=not h.requires_grad).split([self.width, self.width, self.key_dim], -1)
        vectors = torch.addcmul(self.beta.unsqueeze(1), z.unsqueeze(1), self.gamma.unsqueeze(1))
        if self.rope is not None:
            vectors = self.rope(vectors, at)
        return u, v, vectors.split(1, 1)

    def merge(self, u: Tensor, o: Tensor) -> Tensor:
        """y: (batch, length, dim), of what was found, (batch, length, width)."""
        y: Tensor = self.out(u * o)
        return y


def check_scaling(owner: str, scaling: str) -> None:
    if scaling not in _SCALINGS:
        raise ValueError(f"{owner} wants a scaling among {', '.join(_SCALINGS)}, not {scaling!r}")


def check_encoded(owner: str, x: Tensor, dim: int, mask: Tensor | None) -> Tensor:
    """How many tokens there are in each row, (batch,) float64 and at least 1; ValueError says what does not fit."""
    if x.dim() != 3 or x.shape[-1] != dim:
        raise ValueError(f"{owner} wants x of shape (batch, length, {dim}), not {tuple(x.shape)}")
    if mask is None:
        return torch.full((len(x),), max(x.shape[1], 1), dtype=torch.float64, device=x.device)
    if mask.shape != x.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(
            f"{owner} wants a mask of shape {tuple(x.shape[:2])} and type torch.bool, "
            f"not {tuple(mask.shape)} and {mask.dtype}"
        )
    return mask.sum(1, dtype=torch.float64).clamp(min=1)


def score_scale(scaling: Scaling, key_dim: int) -> float:
    """What scores are multiplied by before they are squared."""
    return key_dim**-0.5 if scaling == "ns" else 1.0


def divisor(scaling: Scaling, count: Tensor) -> Tensor:
    """What their squares are divided by, float64."""
    count = count.to(torch.float64)
    return count if scaling == "ns" else count.square()
