"""`selective_scan` composed of `linear_scan` and operations that torch differentiates: all of h, in full size."""

import torch
from torch import Tensor
from torch.nn import functional

from .._linear_scan import linear_scan

_SMALL = 1e3  # torch.softplus is the identity above its threshold; here it never is where that could be seen


def per_channel(B: Tensor, channels: int) -> Tensor:
    """(B, L, G, N) as (B, L, e, N)."""
    batch, length, groups, state = B.shape
    return B.unsqueeze(3).expand(batch, length, groups, channels // groups, state).flatten(2, 3)


def per_group(B: Tensor, groups: int) -> Tensor:
    """The sum over the channels of each group of (B, L, e, N)."""
    batch, length, channels, state = B.shape
    return B.reshape(batch, length, groups, channels // groups, state).sum(3)


class Composed:
    """Every intermediate of the operation, in the accumulation type and in operations that torch differentiates."""

    def __init__(
        self,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        z: Tensor,
        h0: Tensor,
        bias: Tensor,
        softplus: bool,
    ) -> None:
        wide = h0.dtype
        self.x, self.channels = x.to(wide), x.shape[-1]
        self.B, self.C = (per_channel(t.to(wide), self.channels) for t in (B, C))
        raw = delta.to(wide) + bias
        self.d = functional.softplus(raw, threshold=_SMALL) if softplus else raw
        self.slope = torch.sigmoid(raw) if softplus else None  # of d in delta
        self.a = torch.exp(self.d.unsqueeze(-1) * A)
        self.u = (self.d * self.x).unsqueeze(-1)
        self.h, self.last = linear_scan(self.a, self.u * self.B, h0)
        self.before = torch.cat([h0.unsqueeze(1), self.h[:, :-1]], 1)
        self.z = z.to(wide) if z.numel() else None
        self.open = None if self.z is None else torch.sigmoid(self.z)

    def plain(self, D: Tensor) -> Tensor:
        """y before the gate."""
        return (self.C * self.h).sum(-1) + D * self.x

    def gate_slope(self) -> Tensor:
        assert self.z is not None
        assert self.open is not None
        return self.open * (1 + self.z * (1 - self.open))

    def sloped(self, d_raw: Tensor) -> Tensor:
        return d_raw if self.slope is None else d_raw * self.slope
