"""Does it pay that each token chooses the state space's weights? Selective copying with selection on and off.

Both sides are the same residual stack of two Mamba blocks, with gate and convolution, on the same data in the same
order; without selection Δ, B and C are weights, B and C with a number of their own for every channel and state, which
makes that side a stronger model than one whose B and C the channels share. Each side gets its own learning rate, the
best of four on one fixed seed at a quarter of the steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch.nn import functional

from carrel.atlas.report import Report
from carrel.recurrent import Mamba

from .selective_training import VOCAB, Side, Tuned

_SIDES = {"selection on": True, "selection off": False}


def run(*, seed: int, length: int, symbols: int, width: int, state_dim: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two, the longer the busier the machine
    try:
        return _compare(seed, length, symbols, width, state_dim, steps)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, length: int, symbols: int, width: int, state_dim: int, steps: int) -> Report:
    def builder(selective: bool) -> Callable[[int], _Side]:
        return lambda seed: _Side(seed, selective, length, symbols, width, state_dim)

    tuned = Tuned({name: builder(selective) for name, selective in _SIDES.items()}, seed, steps)
    on, off = tuned.sides.values()
    report = Report("mamba")
    report.check("Whole against pieces, trained, float64", max(s.streaming_error() for s in (on, off)), high=1e-10)
    report.check("Fused kernel against the equations in torch, trained, float64", on.kernel_error(), high=1e-10)
    report.check("Right with selection, as a multiple of guessing", on.final[0] * VOCAB, low=1.5)
    tuned.tell(report)
    gap = on.final[0] - off.final[0]
    if gap >= 0.1 and on.final[0] >= 0.9:
        report.verdict(
            "holds", "With selection the block copies the scattered symbols; without, it stays clearly behind."
        )
    elif gap >= 0.1:
        report.verdict("caveat", "Selection is clearly ahead, but has not learnt the task in these steps.")
    else:
        report.verdict("not-shown", "At these settings selection made no clear difference.")
    return report


class _Side(Side):
    """A stack of Mamba blocks."""

    def __init__(self, seed: int, selective: bool, length: int, symbols: int, width: int, state_dim: int) -> None:
        super().__init__(seed, lambda dim: Mamba(dim, state_dim, selective=selective), length, symbols, width)

    @torch.no_grad()
    def kernel_error(self) -> float:
        """The first block's output for noise against its equations, in torch's own operations and one loop."""
        block = copy.deepcopy(next(m for m in self.model.modules() if isinstance(m, Mamba))).double()
        u = torch.randn(4, self.length, block.dim, dtype=torch.float64, generator=self.generator)
        x, z = block.in_proj(u).chunk(2, -1)
        padded = functional.pad(x.transpose(1, 2), (block.conv.width - 1, 0))
        taps = block.conv.weight.unsqueeze(1)
        x = functional.silu(functional.conv1d(padded, taps, block.conv.bias, groups=block.channels)).transpose(1, 2)
        delta, B, C = torch.split(block.x_proj(x), [block.dt_rank, block.state_dim, block.state_dim], -1)
        step = functional.softplus(block.dt_proj(delta) + block.dt_bias).unsqueeze(-1)
        h, rows = torch.zeros(len(x), block.channels, block.state_dim, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = torch.exp(-step[:, t] * block.A_log.exp()) * h + step[:, t] * B[:, t, None] * x[:, t, :, None]
            rows.append((h * C[:, t, None]).sum(-1))
        y = (torch.stack(rows, 1) + block.D * x) * functional.silu(z)
        return float((block.out_proj(y) - block(u)[0]).abs().max())
