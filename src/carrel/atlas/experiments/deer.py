"""How many Newton iterations a recurrent trajectory takes: by Jacobian, by length, by memory and by gain."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.recurrent import GRU, LSTM, TanhRNN, deer
from carrel.recurrent.newton import Recurrence

_NEAR = 1e-6  # error at which a trajectory counts as found
_GAINS = (0.5, 0.8, 1.0, 1.2, 1.5, 2.0, 3.0)
_BIASES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
_SHOWN = 16  # iterations of the curve of errors
_HIDDEN = 16  # of the tanh RNN whose gain is raised
_NAMES = {False: "full Jacobian", True: "diagonal"}


def run(*, seed: int, length: int, width: int) -> Report:
    generator = torch.Generator().manual_seed(seed)
    report = Report("deer")
    lengths = [n for n in (16, 64, 256, 1024, 4096, 16384) if n < length] + [length]

    progress(0.0, "exactness")
    worst, apart, early = 0.0, 0.0, 0.0
    for cell in (GRU(width, width), LSTM(width, width), TanhRNN(width, width)):
        cell = _drawn(cell, generator)
        x, y0 = _noise(generator, 2, 200, width), _noise(generator, 2, cell.state_dim)
        leaves = (x.requires_grad_(), y0.requires_grad_(), *cell.parameters())
        wanted = _loop(cell, x, y0)
        arrived = _noise(generator, *wanted.shape)
        exact = torch.autograd.grad(wanted, leaves, arrived)
        for jac in ("full", "diag"):
            y, _ = deer(cell, x, y0, jac=jac, on_fail="raise")
            worst = max(worst, float((y - wanted).detach().abs().max()))
            found = torch.autograd.grad(y, leaves, arrived)
            apart = max(apart, *(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)))
        with torch.no_grad():
            of = Recurrence(cell, x, y0.detach(), None)
            sweeps = of.newton(3 * _noise(generator, *wanted.shape))
            for k in range(1, 6):
                sweeps.sweep(True)
                early = max(early, float((sweeps.y - wanted)[:, :k].abs().max()))
    report.check("States against the loop, float64, three cells", worst, high=1e-9)
    report.check("Gradients against backpropagation through time", apart, high=1e-8)
    report.check("First k states after k iterations", early, high=1e-12)

    progress(0.15, "errors by iteration")
    cell = _drawn(GRU(width, width), generator)
    x, y0 = _noise(generator, 4, length, width), torch.zeros(4, width, dtype=torch.float64)
    wanted = Recurrence(cell, x, y0, None).sequential()
    errors = {name: _errors(cell, x, y0, wanted, diagonal, _SHOWN) for diagonal, name in _NAMES.items()}
    with torch.no_grad():
        narrow = deer(cell.float(), x.float(), y0.float())[0]
        away = float((narrow - wanted).abs().max())
        cell.double()
    report.check("States of the GRU in float32 against the loop in float64", away, high=2e-6)

    progress(0.3, "lengths")
    by_length = {
        name: [len(_errors(cell, x[:, :n], y0, wanted, diagonal, 60)) - 1 for n in lengths]
        for diagonal, name in _NAMES.items()
    }
    report.check("Iterations of the GRU at the full length, full Jacobian", by_length["full Jacobian"][-1], high=8)

    progress(0.45, "memories")
    by_memory: dict[str, list[int]] = {name: [] for name in _NAMES.values()}
    memory = []
    part = x[:, : min(length, 1024)]
    for bias in _BIASES:
        slow = _drawn(GRU(width, width), torch.Generator().manual_seed(seed))
        with torch.no_grad():
            slow.bias_ih[width : 2 * width] += bias  # z near 1 keeps the state
        memory.append(1 + math.exp(bias))  # 1 / (1 - sigmoid(bias))
        kept = Recurrence(slow, part, y0, None).sequential()
        for diagonal, name in _NAMES.items():
            by_memory[name].append(len(_errors(slow, part, y0, kept, diagonal, 200)) - 1)

    rows: list[list[float]] = []
    by_gain: dict[str, list[int]] = {name: [] for name in _NAMES.values()}
    tokens = max(96, min(256, length // 4))
    for done, gain in enumerate(_GAINS):
        progress(0.55 + 0.4 * done / len(_GAINS), f"gain {gain:g}")
        wild, x_, y_ = _with_gain(seed, gain, tokens)
        kept = Recurrence(wild, x_, y_, None).sequential()
        counts = [len(_errors(wild, x_, y_, kept, diagonal, tokens + 5)) - 1 for diagonal in _NAMES]
        for name, count in zip(_NAMES.values(), counts, strict=True):
            by_gain[name].append(count)
        growth = Recurrence(wild, x_, y_, None).growth()
        rows.append([gain, growth, *counts, _left_to_the_loop(wild, x_, y_)])
    report.check("A chaotic cell (gain 3, float32) takes the loop", rows[-1][-1], low=1)
    report.check("and gives the loop's states", _difference_after_fallback(seed, tokens), high=0)

    report.curve(
        "Error by iteration: squared by the full Jacobian, divided by its diagonal",
        x=list(range(_SHOWN + 1)),
        y={name: [max(e, 1e-17) for e in _filled(values, _SHOWN + 1)] for name, values in errors.items()},
        x_label="iteration",
        y_label="largest error of a state (float64)",
        log="y",
    )
    report.curve(
        "Iterations hardly depend on the length",
        x=lengths,
        y=by_length,
        x_label="length (tokens)",
        y_label=f"iterations to an error of {_NEAR:g}",
        log="x",
    )
    report.curve(
        "A longer memory of the GRU costs no iterations",
        x=memory,
        y=by_memory,
        x_label="memory set by the update gate's bias (tokens)",
        y_label=f"iterations to an error of {_NEAR:g}",
        log="x",
    )
    report.curve(
        f"A gain that amplifies differences costs up to as many iterations as tokens ({tokens})",
        x=list(_GAINS),
        y=by_gain,
        x_label=f"gain of a tanh RNN of width {_HIDDEN}",
        y_label=f"iterations to an error of {_NEAR:g}, overflows put back to 0",
        log="y",
    )
    report.table(
        f"Tanh RNN of width {_HIDDEN}, {tokens} tokens",
        [
            "gain",
            "growth of differences (powers of ten)",
            "iterations, full",
            "diagonal",
            "share of float32 runs left to the loop",
        ],
        rows,
    )
    full = by_length["full Jacobian"]
    flat = max(full) <= 8 and full[-1] <= full[len(full) // 2] + 1
    if not flat:
        report.verdict("not-shown", "The number of iterations grows with the length even for a freshly drawn GRU.")
    elif by_gain["full Jacobian"][-1] > 10 * full[-1]:
        report.verdict(
            "caveat",
            "For cells that forget, a handful of iterations with the full Jacobian gives the sequential answer, "
            "whatever the length and the memory; for cells that amplify differences it takes about as many iterations "
            "as tokens. The diagonal alone needs many more, long before that.",
        )
    else:
        report.verdict(
            "holds", "A handful of iterations gives the sequential answer, whatever the length and the gain."
        )
    return report


def _noise(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@torch.no_grad()
def _drawn(cell: Any, generator: torch.Generator) -> Any:
    """Started as torch starts it, from the seed."""
    cell = cell.double()
    for parameter in cell.parameters():
        parameter.uniform_(-(cell.hidden_dim**-0.5), cell.hidden_dim**-0.5, generator=generator)
    return cell


def _with_gain(seed: int, gain: float, tokens: int) -> tuple[TanhRNN, Tensor, Tensor]:
    """A tanh RNN whose recurrent weights have the variance gain^2 / width: differences grow from a gain of about 1."""
    generator = torch.Generator().manual_seed(1000 + seed)
    cell = _drawn(TanhRNN(_HIDDEN, _HIDDEN), generator)
    with torch.no_grad():
        cell.weight_hh.copy_(gain * _HIDDEN**-0.5 * _noise(generator, _HIDDEN, _HIDDEN))
        cell.weight_ih.mul_(0.3)
    return cell, _noise(generator, 2, tokens, _HIDDEN), torch.zeros(2, _HIDDEN, dtype=torch.float64)


def _loop(cell: Any, x: Tensor, y0: Tensor) -> Tensor:
    y, found = y0, []
    for t in range(x.shape[1]):
        y = cell(y, x[:, t])
        found.append(y)
    return torch.stack(found, 1)


@torch.no_grad()
def _errors(cell: Any, x: Tensor, y0: Tensor, wanted: Tensor, diagonal: bool, most: int) -> list[float]:
    """The largest error of the guess, zeros, and after each iteration, until it is small."""
    wanted = wanted[:, : x.shape[1]]
    sweeps = Recurrence(cell, x, y0, None).newton(torch.zeros_like(wanted))
    errors = [float(wanted.abs().max())]
    for _ in range(most):
        sweeps.sweep(diagonal)
        y = sweeps.y
        if not y.isfinite().all():
            sweeps.y = y = torch.where(y.isfinite(), y, 0)
        errors.append(float((y - wanted).abs().max()))
        if errors[-1] < (1e-14 if most == _SHOWN else _NEAR):
            break
    return errors


def _filled(values: list[float], count: int) -> list[float]:
    return (values + values[-1:] * count)[:count]


@torch.no_grad()
def _left_to_the_loop(cell: TanhRNN, x: Tensor, y0: Tensor) -> int:
    """1 if Newton's method gave up in float32, with damping too."""
    quiet = logging.getLogger("carrel.recurrent.deer")
    before, quiet.disabled = quiet.disabled, True
    try:
        _, info = deer(cell.float(), x.float(), y0.float(), max_iter=40)
    finally:
        quiet.disabled = before
        cell.double()
    return int(info.fell_back)


def _difference_after_fallback(seed: int, tokens: int) -> float:
    cell, x, y0 = _with_gain(seed, 3.0, tokens)
    cell, x, y0 = cell.float(), x.float(), y0.float()
    quiet = logging.getLogger("carrel.recurrent.deer")
    before, quiet.disabled = quiet.disabled, True
    try:
        with torch.no_grad():
            y, _ = deer(cell, x, y0, max_iter=5)
    finally:
        quiet.disabled = before
    return float((y - Recurrence(cell, x, y0, None).sequential()).abs().max())
