"""Is a state space with one rate per head attention, at linear cost, and does it still choose what to keep?

The block's heads are computed twice: as the recurrence, and as one matrix of masked products of queries and keys. Their
values must agree; their times are taken at growing lengths. Then stacks of SSD blocks learn selective copying with
selection on and off, and with the full selective scan of Mamba beside them, each side at a learning rate of its own and
all with the same steps at the start, longer than usual because the sequences are short.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor

from carrel.atlas.report import Report
from carrel.layers import Mixer
from carrel.ops import ssd
from carrel.recurrent import SSD, Mamba

from .selective_training import VOCAB, Side, Tuned

_SHORTEST, _REPEATS = 64, 5
_LOW, _HIGH = 0.01, 0.5  # steps at the start
_HEADS, _SIZE = 2, 64  # of the heads that are timed


def run(*, seed: int, length: int, symbols: int, width: int, state_dim: int, steps: int, longest: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two, the longer the busier the machine
    try:
        return _compare(seed, length, symbols, width, state_dim, steps, longest)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, length: int, symbols: int, width: int, state_dim: int, steps: int, longest: int) -> Report:
    mixers: dict[str, Callable[[int], Mixer]] = {
        "SSD": lambda dim: SSD(dim, state_dim, head_dim=dim // 2, dt_min=_LOW, dt_max=_HIGH),
        "Mamba": lambda dim: Mamba(dim, state_dim, dt_min=_LOW, dt_max=_HIGH),
        "SSD without selection": lambda dim: SSD(
            dim, state_dim, head_dim=dim // 2, selective=False, dt_min=_LOW, dt_max=_HIGH
        ),
    }

    def builder(mixer: Callable[[int], Mixer]) -> Callable[[int], Side]:
        return lambda seed: Side(seed, mixer, length, symbols, width)

    tuned = Tuned({name: builder(mixer) for name, mixer in mixers.items()}, seed, steps)
    on, _, off = tuned.sides.values()
    lengths, linear, square = _times(longest, seed)
    report = Report("ssd")
    report.check("Recurrence against masked attention, trained, float64", _duality_error(on), high=1e-10)
    report.check("Whole against pieces, trained, float64", max(s.streaming_error() for s in (on, off)), high=1e-10)
    report.check("Right with selection, as a multiple of guessing", on.final[0] * VOCAB, low=1.5)
    report.check("Time of the matrix over that of the recurrence, at the longest", square[-1] / linear[-1], low=1.5)
    tuned.tell(report)
    report.curve(
        f"The same numbers two ways, {_HEADS} heads, N = P = {_SIZE}, one thread",
        x=lengths,
        y={"recurrence": linear, "matrix": square},
        x_label="tokens",
        y_label="milliseconds, forward",
        log="xy",
    )
    gap = on.final[0] - off.final[0]
    if gap < 0.1:
        report.verdict("not-shown", "The two forms agree, but at these settings selection made no clear difference.")
    elif on.final[0] < 0.9:
        report.verdict("caveat", "The two forms agree and selection is clearly ahead, but has not learnt the task.")
    else:
        report.verdict(
            "holds",
            "The recurrence gives the numbers of masked attention, at a cost that grows with the length and not its "
            "square; and one rate per head is enough to copy selectively, where fixed weights are not.",
        )
    return report


def _as_matrix(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """All of y at once: (C B' masked and decayed) Δ x."""
    reach = (dt * A.unsqueeze(-1)).cumsum(-1)
    future = torch.ones(x.shape[2], x.shape[2], dtype=torch.bool).triu(1)
    decay = (reach.unsqueeze(-1) - reach.unsqueeze(-2)).masked_fill_(future, -torch.inf).exp_()
    return decay.mul_(C @ B.mT) @ (dt.unsqueeze(-1) * x)


@torch.no_grad()
def _duality_error(side: Side) -> float:
    """What the first block's heads make of noise, by the recurrence and as a matrix; in units of the largest."""
    block = copy.deepcopy(next(m for m in side.model.modules() if isinstance(m, SSD))).double()
    u = torch.randn(4, side.length, block.dim, dtype=torch.float64, generator=side.generator)
    _, x, delta = torch.split(block.in_proj(u), block.sizes, -1)
    x = torch.nn.functional.silu(block.conv(x)[0])
    x, B, C = torch.split(x, [block.channels, block.state_dim, block.state_dim], -1)
    x = x.reshape(*x.shape[:2], block.heads, block.head_dim).transpose(1, 2)
    dt = torch.nn.functional.softplus(delta + block.dt_bias).transpose(1, 2)
    given = (x, dt, -block.A_log.exp(), B.unsqueeze(1), C.unsqueeze(1))
    y = _as_matrix(*given)
    return float((ssd(*given)[0] - y).abs().max() / y.abs().max())


@torch.no_grad()
def _times(longest: int, seed: int) -> tuple[list[int], list[float], list[float]]:
    """Lengths, and milliseconds of this thread for both forms at each: the least of a few, taken in turn."""
    generator = torch.Generator().manual_seed(seed)
    lengths, ours, theirs = [], [], []
    for length in (_SHORTEST << k for k in range((longest // _SHORTEST).bit_length())):
        x = torch.randn(1, _HEADS, length, _SIZE, generator=generator)
        B, C = torch.randn(2, 1, 1, length, _SIZE, generator=generator)
        # a slow rate: products too small for normal numbers would slow the matrix down for a reason of their own
        given = (x, torch.rand(1, _HEADS, length, generator=generator), torch.full((_HEADS,), -0.005), B, C)
        spent: dict[str, list[float]] = {"ours": [], "theirs": []}
        for _ in range(_REPEATS):
            for name, form in (("ours", ssd), ("theirs", _as_matrix)):
                start = time.thread_time()
                form(*given)
                spent[name].append(1e3 * (time.thread_time() - start))
        lengths.append(length)
        ours.append(min(spent["ours"]))
        theirs.append(min(spent["theirs"]))
    return lengths, ours, theirs
