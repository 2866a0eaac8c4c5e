"""Softmax attention over some of the keys, to be merged with what others found over theirs, in any order."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class SoftmaxPart(NamedTuple):
    """Sums over some of the keys. top: (...), the largest score; mass: (...), the weights relative to it, added up;
    total: (..., channels), the values so weighted, added up."""

    top: Tensor
    mass: Tensor
    total: Tensor

    def merge(self, other: SoftmaxPart) -> SoftmaxPart:
        """The part of both sets of keys together. Which of them is first, and what is merged first, makes no difference
        but of rounding."""
        top = torch.maximum(self.top, other.top)
        kept = [torch.exp(part.top - torch.where(torch.isneginf(top), 0.0, top)) for part in (self, other)]
        mass = self.mass * kept[0] + other.mass * kept[1]
        total = self.total * kept[0].unsqueeze(-1) + other.total * kept[1].unsqueeze(-1)
        return SoftmaxPart(top, mass, total)

    def result(self) -> Tensor:
        """(..., channels), the weighted mean of the values; 0 where no key was visible."""
        return self.total / torch.where(self.mass > 0, self.mass, 1.0).unsqueeze(-1)

    def log_mass(self) -> Tensor:
        """(...), the logarithm of the sum of all exponentials; -inf where no key was visible."""
        return torch.where(self.mass > 0, self.mass, 1.0).log() + self.top


def softmax_part(scores: Tensor, v: Tensor) -> SoftmaxPart:
    r"""What softmax attention over some of the keys hands on, so that long pasts can be read in pieces.

    .. math:: m = \max_j x_j, \qquad \ell = \sum_j e^{x_j - m}, \qquad o = \sum_j e^{x_j - m} v_j, \qquad
              \ell' = \ell_a e^{m_a - m'} + \ell_b e^{m_b - m'} \;\text{ for }\; m' = \max(m_a, m_b)

    and o as ℓ. ``a.merge(b)`` is the part of both; ``part.result()`` is o / ℓ, attention over all keys merged.

    Args:
        scores: (..., keys), scaled and masked with -inf.
        v: (..., keys, channels), whose leading axes broadcast.
    Returns the part, in float32 at least.   Raises ValueError: scores and v disagree in their keys.
    Cost: one pass over scores and v.   Source: arXiv:2205.14135, section 3.1 (the running form of the softmax).
    """
    if v.dim() < 2 or scores.dim() < 1 or v.shape[-2] != scores.shape[-1]:
        raise ValueError(
            f"softmax_part wants v of shape (..., {scores.shape[-1] if scores.dim() else 'keys'}, channels), "
            f"not {tuple(v.shape)}"
        )
    wide = torch.promote_types(torch.promote_types(scores.dtype, v.dtype), torch.float32)
    scores = scores.to(wide)
    # what the sums are relative to cancels in the result, so no gradient has to go through it
    top = scores.detach().amax(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)
    p = torch.exp(scores - torch.where(torch.isneginf(top), 0.0, top).unsqueeze(-1))
    return SoftmaxPart(top, p.sum(-1), (p.unsqueeze(-2) @ v.to(wide)).squeeze(-2))


class LargestPart(NamedTuple):
    """The largest scores among some of the keys.

    values: (..., up to k), falling; keys: like values, int64, where they are; of equal scores those of lower keys come
    first.
    """

    values: Tensor
    keys: Tensor

    def merge(self, other: LargestPart, k: int) -> LargestPart:
        """The k largest of both together."""
        return _first(torch.cat((self.values, other.values), -1), torch.cat((self.keys, other.keys), -1), k)


def largest_part(scores: Tensor, k: int, first: int = 0) -> LargestPart:
    """The k largest scores among some of the keys and where they are, so that those of all keys can be found in pieces.

    Args:
        scores: (..., keys).
        k: how many are kept, at least 1; all if there are fewer.
        first: number of the first of these keys among all.
    Returns the part: after ``a.merge(b, k)`` of all pieces, softmax over ``values`` is `carrel.ops.sparse_softmax`
    over all keys, at ``keys``.   Raises ValueError: k below 1.   Cost: sorts the scores.
    """
    if k < 1:
        raise ValueError(f"largest_part wants k of at least 1, not {k}")
    keys = torch.arange(first, first + scores.shape[-1], device=scores.device).expand(scores.shape)
    return _first(scores, keys, k)


def _first(values: Tensor, keys: Tensor, k: int) -> LargestPart:
    by_key = keys.argsort(-1)
    values, keys = values.gather(-1, by_key), keys.gather(-1, by_key)
    order = values.detach().argsort(dim=-1, descending=True, stable=True)[..., :k]
    return LargestPart(values.gather(-1, order), keys.gather(-1, order))
