"""Handwritten digits, read pixel by pixel."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

CLASSES = 10
_SIDE = 8
_HELD_OUT = 0.2


def sequential_digits(
    batch: int, *, permute: bool = False, rows: bool = False, held_out: bool = False, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The 8 by 8 images of scikit-learn as sequences of 64 grey values; name the digit at the end.

    .. math:: x_{8 r + c} = v_{r,c} / 16, \quad v \in 0..16, \qquad y_{63} = \text{the digit}

    Images are drawn without repeats until all of a part have been drawn, then anew: a batch as large as the held-out
    part is that part.

    Args:
        batch: number of images.
        permute: take the pixels in an order that is drawn once and the same for all images, so that neighbours in
            the image are no neighbours in the sequence.
        rows: 8 tokens of 8 values, the image's rows, instead of 64 tokens of one.
        held_out: draw from the fifth of every class that is kept for judging (359 images) instead of from the others
            (1438); which these are is fixed.
        generator: the only source of chance; on the CPU.
    Returns x: (batch, 64, 1) float32, with ``rows`` (batch, 8, 8); y: (batch, 64 or 8) int64, 0 except at the last
        token; mask like y, bool, true at the last token. The share of right guesses is 1 / 10.
    Raises ValueError: a negative batch. ImportError: scikit-learn is missing (it comes with ``carrel[lab]``).
    """
    if batch < 0:
        raise ValueError(f"sequential_digits wants batch >= 0, not {batch}")
    images, labels = digit_images(held_out=held_out)
    rounds = [torch.randperm(len(labels), generator=generator) for _ in range(-(-batch // len(labels)))]
    chosen = torch.cat([torch.zeros(0, dtype=torch.int64), *rounds])[:batch]
    x = images[chosen]
    if permute:
        x = x[:, torch.randperm(_SIDE**2, generator=torch.Generator().manual_seed(0))]
    x = x.reshape(batch, _SIDE, _SIDE) if rows else x.unsqueeze(-1)
    y = torch.zeros(x.shape[:2], dtype=torch.int64)
    y[:, -1] = labels[chosen]
    mask = torch.zeros(x.shape[:2], dtype=torch.bool)
    mask[:, -1] = True
    return x, y, mask


def digit_images(*, held_out: bool | None = None) -> tuple[Tensor, Tensor]:
    """All 1797 images in scikit-learn's order, or those of one part: (images, 64) float32 from 0 to 1, (images,) int64.

    ``held_out`` True is the part for judging, False the part to learn from, as in :func:`sequential_digits`.
    """
    images, labels, judged = _loaded()
    if held_out is None:
        return images.clone(), labels.clone()
    part = judged if held_out else ~judged
    return images[part], labels[part]


@functools.cache
def _loaded() -> tuple[Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits  # takes seconds, and only this task needs it

    values, digits = load_digits(return_X_y=True)
    images, labels = torch.as_tensor(values, dtype=torch.float32) / 16, torch.as_tensor(digits, dtype=torch.int64)
    judged = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for digit in range(CLASSES):
        own = (labels == digit).nonzero().squeeze(1)
        judged[own[torch.randperm(len(own), generator=generator)[: round(_HELD_OUT * len(own))]]] = True
    return images, labels, judged
