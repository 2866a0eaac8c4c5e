"""What a benchmark is: our side, its peers, a check that comes first, and the ratios we promise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

Side = Callable[[], object]


@dataclass(frozen=True)
class Bar:
    """A promise about one peer: it takes at least ``low`` times as long as we do (or we at most 1 / low of it)."""

    peer: str
    low: float


@dataclass(frozen=True)
class Problem:
    """A case made ready on a device: what to check, and what to time. The first side is ours."""

    check: Callable[[], float]
    tolerance: float
    sides: dict[str, Side]
    moved: int | None = None  # bytes that our side cannot avoid moving, for GB/s
    absent: dict[str, str] = field(default_factory=dict)  # peers that cannot run here, and why
    memory: bool = False  # whether to count the bytes that every side holds at its worst


@dataclass(frozen=True)
class Case:
    """A name, a size in words, and how to build it."""

    name: str
    about: str
    build: Callable[[torch.device], Problem]
    device: str = "cpu"
    bars: tuple[Bar, ...] = ()
    rounds: int = 9
    inner: int = 1
    warmup: int = 2
