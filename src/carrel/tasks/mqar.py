"""Many keys, each asked for once."""

from __future__ import annotations

import torch
from torch import Tensor


def mqar(
    batch: int, *, length: int, keys: int, vocab: int, alpha: float = 0.01, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Multi-query associative recall: read pairs of keys and values, then name each key's value where it returns.

    .. math:: x = k_1 v_1 k_2 v_2 \dots k_K v_K \dots, \qquad x_{2K + 2 s_i} = k_i, \quad y_{2K + 2 s_i} = v_i

    Keys differ from one another and come from 1 to V/2 - 1, values likewise from V/2 to V - 1. The slots s_1 .. s_K
    differ too and are drawn from 0 .. S - 1, S = (L - 2K) / 2, with chances proportional to (s + 1)^(alpha - 1), so
    that most keys return soon, as in text. All other tokens after the pairs are drawn evenly from 0 to V - 1.

    Args:
        batch: number of sequences.
        length: L, tokens of a sequence: even, and at least four for every key.
        keys: K, pairs, at least 1.
        vocab: V, tokens, enough for K keys (V / 2 - 1 >= K) and as many values. The paper keeps V above L.
        alpha: how soon keys return, above 0; 1 makes all slots equal, small values put most queries early.
        generator: the only source of chance; on the CPU.
    Returns x, y: (batch, length) int64, y being 0 where nothing is asked; mask like them, bool, true at the K queries
        of every sequence. The share of right guesses among the values is 2 / V.
    Raises ValueError: a size out of range.
    Source: arXiv:2312.04927, section 3 and appendix; sizes there: V = 8192 and (L, K) of (64, 4), (128, 8), (256, 16),
    (512, 64).
    """
    if batch < 0 or keys < 1 or length % 2 or length < 4 * keys:
        raise ValueError(
            "mqar wants batch >= 0, keys >= 1 and an even length of at least 4 keys, "
            f"not batch={batch}, keys={keys}, length={length}"
        )
    if vocab // 2 - 1 < keys:
        raise ValueError(f"mqar wants a vocab of at least 2 keys + 2 = {2 * keys + 2}, not {vocab}")
    if not alpha > 0:
        raise ValueError(f"mqar wants alpha above 0, not {alpha}")
    half, slots = vocab // 2, (length - 2 * keys) // 2
    key = 1 + _distinct(batch, half - 1, keys, generator)
    value = half + _distinct(batch, vocab - half, keys, generator)
    # chances drawn as exponential races: the K first of S are K draws without replacement
    chance = torch.arange(1, slots + 1, dtype=torch.float64) ** (alpha - 1)
    race = -torch.log1p(-torch.rand(batch, slots, generator=generator, dtype=torch.float64)) / chance
    where = 2 * keys + 2 * race.argsort(1)[:, :keys]
    x = torch.randint(vocab, (batch, length), generator=generator)
    x[:, : 2 * keys : 2], x[:, 1 : 2 * keys : 2] = key, value
    x.scatter_(1, where, key)
    y = torch.zeros_like(x).scatter_(1, where, value)
    mask = torch.zeros_like(x, dtype=torch.bool).scatter_(1, where, True)
    return x, y, mask


def _distinct(batch: int, among: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, among, generator=generator).argsort(1)[:, :count]
