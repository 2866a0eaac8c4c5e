"""Problems that only a memory can solve."""

from __future__ import annotations

import torch
from torch import Tensor


def copy_first_symbol(
    batch: int, *, length: int, classes: int = 10, noise: float = 0.05, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    r"""A symbol, then noise; name the symbol at the end.

    .. math:: x_0 = e_y, \qquad x_t = \sigma\,\epsilon_t, \quad \epsilon_t \sim N(0, I), \quad t = 1..L

    The noise comes through the same channels as the symbol, so no projection of a single token tells them apart for
    certain, and it goes on until the answer: a model that merely adds up what it sees has L σ² of noise in every
    channel against a symbol of size 1. Nothing but the first token says anything about y.

    Args:
        batch: number of sequences.
        length: L, tokens between the symbol and the answer, at least 1; a sequence has L + 1 tokens.
        classes: number of symbols and of channels, at least 2; the share of right guesses is 1 / classes.
        noise: σ, standard deviation of each noise entry, at least 0 (the symbol is a 1 among zeros).
        generator: the only source of chance; on the CPU.
    Returns x: (batch, length + 1, classes) float32; y: (batch, length + 1) int64, the symbol at the last token and 0
        before; mask like y, bool, true at the last token.
    Raises ValueError: a size or the noise out of range.
    """
    if batch < 0 or length < 1 or classes < 2 or not noise >= 0:
        raise ValueError(
            "copy_first_symbol wants batch >= 0, length >= 1, classes >= 2 and noise >= 0, "
            f"not batch={batch}, length={length}, classes={classes}, noise={noise}"
        )
    symbol = torch.randint(classes, (batch,), generator=generator)
    x = torch.randn(batch, length + 1, classes, generator=generator) * noise
    x[:, 0] = torch.nn.functional.one_hot(symbol, classes)
    y = torch.zeros(batch, length + 1, dtype=torch.int64)
    y[:, -1] = symbol
    mask = torch.zeros_like(y, dtype=torch.bool)
    mask[:, -1] = True
    return x, y, mask
