"""Problems of writing down what was read."""

from __future__ import annotations

import torch
from torch import Tensor


def copying(
    batch: int, *, length: int, data: int, vocab: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    r"""A block of symbols, then blanks; to be written down in order at the end.

    .. math:: x_{j} = s_j, \quad j = 0..M-1, \qquad x_{L + j} = V + 1, \quad y_{L + j} = s_j

    Every symbol stands L tokens before its answer, in every sequence: a fixed delay solves this, and so does any
    convolution that is long enough.

    Args:
        batch: number of sequences.
        length: L, tokens that are read; all after the first M are blank.
        data: M, symbols at the front, from 1 to L.
        vocab: V, different symbols, at least 2: tokens 0 to V - 1. The blank is V, the marker that asks for the next
            symbol V + 1, so a model needs V + 2 tokens; the share of right guesses is 1 / V.
        generator: the only source of chance; on the CPU.
    Returns x, y: (batch, L + M) int64, y being 0 where nothing is asked; mask like them, bool, true at the markers.
    Raises ValueError: a size out of range.
    """
    _check("copying", batch, length, data, vocab)
    symbols = torch.randint(vocab, (batch, data), generator=generator)
    places = torch.arange(data).expand(batch, data)
    return _to_be_copied(symbols, places, length, vocab)


def selective_copying(
    batch: int, *, length: int, data: int, vocab: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Symbols scattered among blanks, to be written down in order at the end.

    .. math:: x_{p_j} = s_j, \quad p_1 < \dots < p_M \text{ drawn from } 0..L-1, \qquad x_{L + j - 1} = V + 1,
              \quad y_{L + j - 1} = s_j

    The other tokens among the first L are blank. Where the symbols stand changes from one sequence to the next, so a
    model must look at a token to know whether to keep it: a fixed delay, which copies a block, does not help.

    Args:
        batch: number of sequences.
        length: L, tokens that are read.
        data: M, symbols among them, from 1 to L.
        vocab: V, different symbols, at least 2: tokens 0 to V - 1. The blank is V, the marker that asks for the next
            symbol V + 1, so a model needs V + 2 tokens; the share of right guesses is 1 / V.
        generator: the only source of chance; on the CPU.
    Returns x, y: (batch, L + M) int64, y being 0 where nothing is asked; mask like them, bool, true at the markers.
    Raises ValueError: a size out of range.
    Source: arXiv:2312.00752, section 4.1.1, which uses L = 4096 and M = 16.
    """
    _check("selective_copying", batch, length, data, vocab)
    symbols = torch.randint(vocab, (batch, data), generator=generator)
    places = torch.rand(batch, length, generator=generator).argsort(1)[:, :data].sort(1).values
    return _to_be_copied(symbols, places, length, vocab)


def _check(name: str, batch: int, length: int, data: int, vocab: int) -> None:
    if batch < 0 or vocab < 2 or not 1 <= data <= length:
        raise ValueError(
            f"{name} wants batch >= 0, vocab >= 2 and 1 <= data <= length, "
            f"not batch={batch}, vocab={vocab}, data={data}, length={length}"
        )


def _to_be_copied(symbols: Tensor, places: Tensor, length: int, vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    batch, data = symbols.shape
    x = torch.full((batch, length + data), vocab)
    x[:, length:] = vocab + 1
    x.scatter_(1, places, symbols)
    y = torch.zeros_like(x)
    y[:, length:] = symbols
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, length:] = True
    return x, y, mask
