"""What came after this the last time?"""

from __future__ import annotations

import torch
from torch import Tensor


def induction_heads(
    batch: int, *, length: int, vocab: int = 16, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    r"""One token stands twice, the second time at the end; name what followed it the first time.

    .. math:: x_p = x_{L-1} = V, \quad p \text{ drawn from } 0..L-3, \qquad y_{L-1} = x_{p+1}

    All other tokens are drawn evenly from 0 to V - 1. The special token V is the only one whose neighbour matters.

    Args:
        batch: number of sequences.
        length: L, tokens of a sequence, the last one included; at least 3.
        vocab: V, ordinary tokens, at least 2; a model needs V + 1 of them. The share of right guesses is 1 / V.
        generator: the only source of chance; on the CPU.
    Returns x, y: (batch, length) int64, y being 0 where nothing is asked; mask like them, bool, true at the end.
    Raises ValueError: a size out of range.
    Source: arXiv:2312.00752, section 4.1.2, which trains at L = 256 and tests from 64 to 2^20, with V = 16.
    """
    if batch < 0 or length < 3 or vocab < 2:
        raise ValueError(
            "induction_heads wants batch >= 0, length >= 3 and vocab >= 2, "
            f"not batch={batch}, length={length}, vocab={vocab}"
        )
    x = torch.randint(vocab, (batch, length), generator=generator)
    place = torch.randint(length - 2, (batch, 1), generator=generator)
    x.scatter_(1, place, vocab)
    x[:, -1] = vocab
    y, mask = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    y[:, -1] = x.gather(1, place + 1)[:, 0]
    mask[:, -1] = True
    return x, y, mask
