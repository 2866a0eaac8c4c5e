"""The peers of the scans, each as its authors would have it used here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

Scan = Callable[[Tensor, Tensor], Tensor]


def combine(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The pair rule of a linear recurrence, earlier first."""
    return right[0] * left[0], right[0] * left[1] + right[1]


def associative_scan(mode: str) -> Scan:
    """torch's own prototype."""
    from torch._higher_order_ops.associative_scan import associative_scan as scan

    return lambda a, b: scan(combine, (a, b), dim=1, combine_mode=mode)[1]


def mambapy_scans() -> dict[str, Scan]:
    """Blelloch's tree in torch, over (batch, length, channels, states): laid out as mambapy's own block does, with one
    state a channel; and with the channels in place of the states, which is twice as fast."""
    if importlib.util.find_spec("mambapy") is None:
        return {}
    from mambapy.pscan import pscan

    return {
        "mambapy pscan": lambda a, b: pscan(a.unsqueeze(-1), b.unsqueeze(-1)).squeeze(-1),
        "mambapy pscan, channels as states": lambda a, b: pscan(a.unsqueeze(2), b.unsqueeze(2)).squeeze(2),
    }


def accelerated_scan() -> Scan | None:
    """A CUDA warp kernel over (batch, channels, length)."""
    if importlib.util.find_spec("accelerated_scan") is None:
        return None
    from accelerated_scan.warp import scan

    return lambda a, b: scan(a.mT.contiguous(), b.mT.contiguous()).mT


def loop(a: Tensor, b: Tensor) -> Tensor:
    """The recurrence in Python, one addcmul a token."""
    h, states = torch.zeros_like(b[:, 0]), []
    for factor, added in zip(a.unbind(1), b.unbind(1), strict=True):
        h = torch.addcmul(added, factor, h)
        states.append(h)
    return torch.stack(states, 1)
