"""Gated units beside a transformer's block of as many weights: made, and timed by length."""

from __future__ import annotations

import time

import torch

from carrel.atlas.report import Report, progress
from carrel.attention import FLASH, GAU, MHA
from carrel.models import SequenceModel

BLOCK, TWO_GAU, TWO_FLASH = "attention and MLP", "two GAU", "two FLASH"
_DIM, _KEYS = 256, 128
_NARROW, _FEW_KEYS, _CHUNK = 32, 16, 16  # of the stacks that are trained


def small(side: str, *, vocab: int) -> SequenceModel:
    """Two blocks of attention and a gated MLP, or four gated units: 13 times the width's square per block."""
    gated, keys = side != BLOCK, _FEW_KEYS
    mixers = {
        BLOCK: lambda dim: MHA(dim, 4),
        TWO_GAU: lambda dim: GAU(dim, key_dim=keys),
        TWO_FLASH: lambda dim: FLASH(dim, key_dim=keys, chunk=_CHUNK),
    }
    return SequenceModel(
        mixers[side], _NARROW, 4 if gated else 2, vocab=vocab, out_dim=vocab, mlp_ratio=0 if gated else 3
    )


def large(side: str) -> SequenceModel:
    """One block of 256 channels, as it is timed."""
    mixers = {BLOCK: lambda dim: MHA(dim, 4), TWO_GAU: lambda dim: GAU(dim), TWO_FLASH: lambda dim: FLASH(dim)}
    gated = side != BLOCK
    return SequenceModel(mixers[side], _DIM, 2 if gated else 1, in_dim=1, out_dim=1, mlp_ratio=0 if gated else 3)


class BlockTimes:
    """Seconds of processor time, forward and backward and forward alone, by side and length; the best of rounds."""

    def __init__(self, sides: tuple[str, ...], longest: int, rounds: int, seed: int) -> None:
        self.lengths = [512 * 2**i for i in range((longest // 512).bit_length())]
        generator = torch.Generator().manual_seed(seed)
        self.both: dict[str, list[float]] = {side: [] for side in sides}
        self.forward: dict[str, list[float]] = {side: [] for side in sides}
        blocks = {side: large(side) for side in sides}
        for block in blocks.values():
            block(torch.zeros(1, 512, 1))[0].sum().backward()
        for i, length in enumerate(self.lengths):
            x = torch.randn(1, length, 1, generator=generator)
            best: dict[str, tuple[float, float]] = dict.fromkeys(sides, (float("inf"), float("inf")))
            for _ in range(rounds):
                for side, block in blocks.items():
                    spent = _spent(block, x)
                    best[side] = (min(best[side][0], spent[0]), min(best[side][1], spent[1]))
            for side in sides:
                self.both[side].append(best[side][0])
                self.forward[side].append(best[side][1])
            progress(0.5 + (i + 1) / len(self.lengths) / 2, f"timed at {length} tokens")

    def ratio(self, side: str, over: str) -> float:
        """Time of ``over`` in units of ``side``'s, forward and backward, at the greatest length."""
        return self.both[over][-1] / self.both[side][-1]

    def tell(self, report: Report, side: str) -> None:
        """Two curves, and the side beside the others by length."""
        for title, times in (("Forward and backward", self.both), ("Forward", self.forward)):
            report.curve(
                f"{title}: {_DIM} channels, one sequence, one thread",
                x=self.lengths,
                y=times,
                x_label="length (tokens)",
                y_label="time (s)",
                log="xy",
            )
        others = [other for other in self.both if other != side]
        report.table(
            f"Time in units of that of {side}, forward and backward",
            ["length", *others],
            [
                [length, *(self.both[other][i] / self.both[side][i] for other in others)]
                for i, length in enumerate(self.lengths)
            ],
        )


def _spent(block: SequenceModel, x: torch.Tensor) -> tuple[float, float]:
    began = time.process_time()
    torch.autograd.backward(block(x)[0].sum())
    both = time.process_time() - began
    began = time.process_time()
    with torch.no_grad():
        block(x)
    return both, time.process_time() - began
