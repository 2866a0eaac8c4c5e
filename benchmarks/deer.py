"""deer: a GRU along the whole sequence by Newton's method, beside torch's GRU and loops.

    python -m benchmarks.deer [--widths 1 2 4] [--length 4096] [--training]

prints the whole table: width, Jacobian, iterations, how many times as long the others take, errors, and the crossover.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from numba import njit
from torch import Tensor, nn

from carrel.recurrent import GRU, deer

from .case import Bar, Case, Problem, Side
from .timing import interleave

_BATCH, _LENGTH = 4, 4096
_WIDTHS = (1, 2, 4, 8, 16, 32, 64)
_GRU, _LOOP, _COMPILED = "torch nn.GRU", "torch loop of nn.GRUCell", "loop compiled by numba"


@njit(cache=True, fastmath=True)
def _compiled(u, W, bias, y):  # type: ignore[no-untyped-def]
    """Token by token, without torch: u (B, L, 3 D), y (B, L, D), from zeros."""
    batch, length, size = y.shape
    v = np.empty(3 * size, y.dtype)
    h = np.empty(size, y.dtype)
    for b in range(batch):
        h[:] = 0
        for t in range(length):
            for g in range(3 * size):
                value = bias[g]
                for j in range(size):
                    value += W[g, j] * h[j]
                v[g] = value
            for i in range(size):
                r = 1 / (1 + np.exp(-u[b, t, i] - v[i]))
                z = 1 / (1 + np.exp(-u[b, t, size + i] - v[size + i]))
                n = np.tanh(u[b, t, 2 * size + i] + r * v[2 * size + i])
                y[b, t, i] = n + z * (h[i] - n)
            for i in range(size):
                h[i] = y[b, t, i]


class _Rivals:
    """One GRU with random weights and white input, in every implementation."""

    def __init__(self, width: int, length: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.module = nn.GRU(width, width, batch_first=True, device=device)
        self.single = nn.GRUCell(width, width, device=device)
        self.single.load_state_dict({n.removesuffix("_l0"): p for n, p in self.module.named_parameters()})
        self.cell = GRU.from_torch(self.module)
        self.x = torch.randn(_BATCH, length, width, device=device)
        self.y0 = torch.zeros(_BATCH, width, device=device)

    def ours(self, jac: str) -> Tensor:
        y: Tensor = deer(self.cell, self.x, self.y0, jac=jac)[0]
        return y

    def loop(self) -> Tensor:
        y, found = self.y0, []
        for x in self.x.unbind(1):
            y = self.single(x, y)
            found.append(y)
        return torch.stack(found, 1)

    def compiled(self) -> Tensor:
        y, u = torch.empty_like(self.x), self.cell.prepare(self.x)
        assert self.cell.bias_hh is not None
        _compiled(u.numpy(), self.cell.weight_hh.detach().numpy(), self.cell.bias_hh.detach().numpy(), y.numpy())
        return y

    def error(self, got: Callable[[], Tensor]) -> float:
        """The largest, against torch's GRU in float64."""
        exact = nn.GRU(self.x.shape[2], self.x.shape[2], batch_first=True, device=self.x.device).double()
        exact.load_state_dict(self.module.state_dict())
        with torch.no_grad():
            return float((got() - exact(self.x.double())[0]).abs().max())

    def forward_sides(self) -> dict[str, Callable[[], Tensor]]:
        sides: dict[str, Callable[[], Tensor]] = {
            "carrel deer, full": lambda: self.ours("full"),
            "carrel deer, diagonal": lambda: self.ours("diag"),
            _GRU: lambda: self.module(self.x)[0],
            _LOOP: self.loop,
        }
        if self.x.device.type == "cpu":
            sides[_COMPILED] = self.compiled
        return sides

    def training_sides(self) -> dict[str, Side]:
        x = self.x.requires_grad_()
        arrived = torch.randn_like(x)

        def both(run: Callable[[], Tensor], module: nn.Module) -> Side:
            return lambda: torch.autograd.grad(run(), (x, *module.parameters()), arrived)

        forward = self.forward_sides()
        forward.pop(_COMPILED, None)
        owners = {_GRU: self.module, _LOOP: self.single}
        return {name: both(run, owners.get(name, self.cell)) for name, run in forward.items()}


def _quiet(run: Callable[[], Tensor]) -> Side:
    def side() -> object:
        with torch.no_grad():
            return run()

    return side


def _forward(width: int) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        rivals = _Rivals(width, _LENGTH, device)
        forward = rivals.forward_sides()
        return Problem(
            lambda: max(rivals.error(run) for run in forward.values()),
            2e-6,
            {name: _quiet(run) for name, run in forward.items()},
        )

    return build


def _training(width: int) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        rivals = _Rivals(width, _LENGTH, device)
        sides = rivals.training_sides()

        def check() -> float:
            """Our gradients against those of torch's GRU, each in units of its largest entry."""
            found = [dict(zip(_names(owner), side(), strict=True)) for owner, side in (  # type: ignore[call-overload]
                (rivals.cell, sides["carrel deer, full"]), (rivals.module, sides[_GRU])
            )]  # fmt: skip
            return max(float((found[0][n] - g).abs().max() / g.abs().max()) for n, g in found[1].items())

        return Problem(check, 1e-4, sides)

    return build


def _names(module: nn.Module) -> list[str]:
    return ["x", *(name.removesuffix("_l0") for name, _ in module.named_parameters())]


_BARS = (Bar(_GRU, 1.3), Bar(_LOOP, 3))

CASES = (
    *(
        Case(
            f"deer-{width}",
            f"forward, GRU of width {width}, 4 x 4096 float32",
            _forward(width),
            bars=_BARS if width <= 4 else (),
            rounds=5,
        )
        for width in (1, 2, 4, 16)
    ),
    Case("deer-training", "forward and backward, GRU of width 4, 4 x 4096 float32", _training(4), rounds=5),
    Case("gpu-deer", "forward, GRU of width 4, 4 x 4096 float32", _forward(4), "cuda", rounds=5),
)


def table(widths: list[int], length: int, rounds: int, training: bool) -> None:
    """Print a line for each width and Jacobian, and where the gain ends."""
    print(
        f"GRU, batch {_BATCH}, length {length}, float32, one thread, "
        f"{'forward and backward' if training else 'forward'}"
    )
    print("times as long as ours; error: the largest, against nn.GRU in float64\n")
    heads = ("width", "Jacobian", "iterations", "ours ms", "nn.GRU", "torch loop", "compiled loop", "error")
    print(" ".join(f"{head:>13}" for head in heads))
    ahead: dict[str, list[int]] = {"full": [], "diag": []}
    for width in widths:
        rivals = _Rivals(width, length, torch.device("cpu"))
        errors = {jac: rivals.error(partial(rivals.ours, jac)) for jac in ("full", "diag")}
        with torch.no_grad():
            iterations = {jac: deer(rivals.cell, rivals.x, rivals.y0, jac=jac)[1].iterations for jac in errors}
        forward = {name: _quiet(run) for name, run in rivals.forward_sides().items()}
        sides = rivals.training_sides() if training else forward
        timed = {t.name: t for t in interleave(sides, rounds=rounds, inner=1, warmup=1, device=torch.device("cpu"))}
        for jac, name in (("full", "carrel deer, full"), ("diag", "carrel deer, diagonal")):
            ours = timed[name]
            ratios = [f"{timed[n].over(ours):.3g}" if n in timed else "" for n in (_GRU, _LOOP, _COMPILED)]
            cells = (width, jac, iterations[jac], f"{ours.median * 1e3:.3g}", *ratios, f"{errors[jac]:.1e}")
            print(" ".join(f"{cell:>13}" for cell in cells), flush=True)
            if timed[_GRU].over(ours) > 1:
                ahead[jac].append(width)
    for jac, found in ahead.items():
        print(f"\n{jac}: ahead of nn.GRU at widths {_listed(found) or 'none'} of {_listed(widths)}", end="")
    print()


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.deer", description="The table of deer for a GRU.")
    parser.add_argument("--widths", type=int, nargs="+", default=list(_WIDTHS))
    parser.add_argument("--length", type=int, default=_LENGTH)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="forward and backward instead of forward")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table(options.widths, options.length, options.rounds, options.training)


if __name__ == "__main__":
    main()
