"""Interleaved timing: every round runs each side once, so a machine that slows down slows them all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds of one call, by round."""

    name: str
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def over(self, ours: Timing) -> float:
        """How many times as long as ours: the median over rounds of the two timed one after the other."""
        return statistics.median(x / y for x, y in zip(self.seconds, ours.seconds, strict=True))


def interleave(
    sides: dict[str, Callable[[], object]], *, rounds: int, inner: int, warmup: int, device: torch.device
) -> list[Timing]:
    """Time ``inner`` calls of each side, ``rounds`` times in turn, after ``warmup`` calls of each."""
    for side in sides.values():
        for _ in range(warmup):
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(_once(side, inner, device) / inner)
    return [Timing(name, values) for name, values in seconds.items()]


def _once(side: Callable[[], object], inner: int, device: torch.device) -> float:
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(inner):
            side()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(inner):
        side()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3
