"""What the kernel of a HiPPO state space costs: powers of the matrix, or sums over its diagonal and low-rank parts.

Four ways to the first L steps of one impulse response: a product with the matrix per step; the same powers in blocks (a
few squarings, then one product of matrices), the best that dense powers can do; S4's sums of fractions; and S4D's
sums of powers, of the diagonal part alone. Times are of one thread, the best of a few, and belong to the machine.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.ops import dplr_kernel, s4d_kernel
from carrel.recurrent import S4, discretize, hippo_matrices, legs_normal_part

_STEP, _BLOCKS, _FRACTIONS, _POWERS = "matrix, step by step", "matrix, in blocks", "S4, fractions", "S4D, powers"
_BLOCK = 128
_TIMES = 3


def run(*, seed: int, length: int, state_dim: int, channels: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(seed, length, state_dim + state_dim % 2, channels)
    finally:
        torch.set_num_threads(threads)


def _measure(seed: int, length: int, N: int, channels: int) -> Report:
    lengths = sorted({max(16, length // 16), max(16, length // 4), length})
    seconds: dict[str, list[float]] = {}
    errors: dict[str, float] = {}
    for done, steps in enumerate(lengths):
        progress(0.9 * done / len(lengths), f"{steps} steps")
        problem = _Problem(seed, steps, N, channels)
        exact = problem.by_steps(torch.float64)
        ways: dict[str, Callable[[], Tensor]] = {
            _STEP: lambda problem=problem: problem.by_steps(torch.float32),  # type: ignore[misc]
            _BLOCKS: lambda problem=problem: problem.by_blocks(),  # type: ignore[misc]
            _FRACTIONS: lambda problem=problem: problem.by_fractions(torch.float32),  # type: ignore[misc]
            _POWERS: lambda problem=problem: problem.by_powers(torch.float32),  # type: ignore[misc]
        }
        for name, way in ways.items():
            best, K = _timed(way)
            seconds.setdefault(name, []).append(best)
            errors[name] = _apart(K, problem.by_powers(torch.float64) if name == _POWERS else exact)
        errors["float64"] = _apart(problem.by_fractions(torch.float64), exact)

    progress(0.9, "streaming")
    report = Report("s4")
    report.check(f"Fractions, float32, share of the kernel's peak at {length} steps", errors[_FRACTIONS], high=1e-5)
    report.check("Fractions, float64, against powers of the matrix", errors["float64"], high=1e-9)
    report.check("S4D's powers, float32, against float64", errors[_POWERS], high=1e-5)
    report.check("A layer fed whole against pieces and single tokens, float64", _streaming_error(seed), high=1e-9)
    report.curve(
        f"Making {channels} kernels from a matrix of size {N}",
        x=lengths,
        y={name: [1e3 * s for s in times] for name, times in seconds.items()},
        x_label="steps L",
        y_label="time (ms, one thread)",
        log="xy",
    )
    ours = seconds[_FRACTIONS][-1]
    report.table(
        f"{channels} kernels of {length} steps, N = {N}",
        ["way", "time (ms)", "times that of S4", "error, share of the peak"],
        [[name, 1e3 * times[-1], times[-1] / ours, errors[name]] for name, times in seconds.items()],
    )
    step, blocks = seconds[_STEP][-1] / ours, seconds[_BLOCKS][-1] / ours
    if step >= 20 and blocks >= 20:
        report.verdict("holds", "The fractions are over twenty times faster than dense powers, even taken in blocks.")
    elif step >= 20:
        report.verdict(
            "caveat",
            "The fractions are over twenty times faster than a product with the matrix per step; powers of the matrix "
            "taken in blocks come much closer.",
        )
    else:
        report.verdict("not-shown", "At these sizes the fractions are not twenty times faster than dense powers.")
    return report


class _Problem:
    """LegS with random outputs, discretised by the bilinear rule at steps between 0.001 and 0.1."""

    def __init__(self, seed: int, length: int, N: int, channels: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.length = length
        self.log_dt = torch.linspace(math.log(1e-3), math.log(1e-1), channels, dtype=torch.float64)
        row = torch.randn(channels, N, dtype=torch.float64, generator=generator)
        steps = [discretize(*hippo_matrices("legs", N), float(dt)) for dt in self.log_dt.exp()]
        self.A, self.B, self.row = torch.stack([A for A, _ in steps]), torch.stack([B for _, B in steps]), row
        start = legs_normal_part(N)
        self.parts = tuple(x.expand(channels, -1).contiguous() for x in (start.rates, start.low_rank, start.input))
        eye = torch.eye(N, dtype=torch.float64)
        rest = torch.matmul(row.unsqueeze(1), eye - torch.linalg.matrix_power(self.A, length)).squeeze(1)
        self.truncated = rest.to(start.vectors.dtype) @ start.vectors
        self.output = row.to(start.vectors.dtype) @ start.vectors

    def by_steps(self, dtype: torch.dtype) -> Tensor:
        A, x, row = self.A.to(dtype), self.B.to(dtype).unsqueeze(2), self.row.to(dtype).unsqueeze(1)
        states = []
        for _ in range(self.length):
            states.append(x)
            x = torch.bmm(A, x)
        return torch.bmm(row, torch.cat(states, 2)).squeeze(1)

    def by_blocks(self) -> Tensor:
        """K_(qM + r) = (C A^(qM)) (A^r B) with M = 128; squared in float64, for float32 would lose digits."""
        A, inputs = self.A, self.B.unsqueeze(2)
        while inputs.shape[2] < _BLOCK:
            inputs = torch.cat([inputs, torch.bmm(A, inputs)], 2)
            A = torch.bmm(A, A)
        outputs = self.row.unsqueeze(1)
        while outputs.shape[1] * _BLOCK < self.length:
            outputs = torch.cat([outputs, torch.bmm(outputs, A)], 1)
            A = torch.bmm(A, A)
        return torch.bmm(outputs.float(), inputs.float()).flatten(1)[:, : self.length]

    def by_fractions(self, dtype: torch.dtype) -> Tensor:
        A, P, B, C = (x.to(dtype.to_complex()) for x in (*self.parts, self.truncated))
        return dplr_kernel(self.log_dt.to(dtype), A, P, B, C, self.length)

    def by_powers(self, dtype: torch.dtype) -> Tensor:
        """From parameters in float32, or those same numbers in float64."""
        rates, _, into = self.parts
        given = self.log_dt.float(), rates.to(torch.complex64), (self.output * into).to(torch.complex64)
        log_dt, A, C = (x.to(dtype.to_complex() if x.is_complex() else dtype) for x in given)
        return s4d_kernel(log_dt, A, C, self.length, disc="bilinear")


def _timed(way: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """The least time of a few calls, after one that compiles."""
    K = way()
    best = math.inf
    for _ in range(_TIMES):
        start = time.thread_time()
        way()
        best = min(best, time.thread_time() - start)
    return best, K


def _apart(K: Tensor, wanted: Tensor) -> float:
    return float(((K - wanted).abs().amax(1) / wanted.abs().amax(1)).max())


@torch.no_grad()
def _streaming_error(seed: int) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer, x = S4(4, 16, length=200).double(), torch.randn(2, 450, 4, dtype=torch.float64)
    whole, _ = layer(x)
    state, parts = None, []
    for piece in torch.split(x, [130, 0, 1, 1, 7, 201, 110], dim=1):
        y, state = layer(piece, state)
        parts.append(y)
    return float((torch.cat(parts, 1) - whole).abs().max())
