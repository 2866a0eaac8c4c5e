"""Sparse distributions beside the `entmax` package, torch's selection of the largest, and torch.softmax."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from carrel.ops import entmax, entmax15, sparse_softmax, sparsemax

from .case import Bar, Case, Problem, Side

_ROWS, _ENTRIES, _SIZE = 4096, 1024, 2.0
_SORTED, _PARTLY, _HALVED = "entmax package, sorting", "entmax package, its best 64 first", "entmax package, halving"
_SOFTMAX, _TOPK = "torch softmax", "torch topk, softmax and scatter"
_KEPT = 10


def _both(f: Callable[[Tensor], Tensor], x: Tensor, g: Tensor) -> Side:
    def run() -> Tensor:
        leaf = x.detach().requires_grad_()
        p = f(leaf)
        (dx,) = torch.autograd.grad(p, leaf, g)
        return dx

    return run


def _problem(ours: Callable[[Tensor], Tensor], alpha: float) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        x = (_SIZE * torch.randn(_ROWS, _ENTRIES, generator=generator)).to(device)
        g = torch.randn(_ROWS, _ENTRIES, generator=generator).to(device)
        few, its_g = x[:64].double(), g[:64].double()

        def check() -> float:
            wanted = _both(partial(entmax, alpha=alpha, backend="reference"), few, its_g)()
            found = _both(ours, few.float(), its_g.float())()
            return float((found.double() - wanted).abs().max())

        sides: dict[str, Side] = {"carrel": _both(ours, x, g), _SOFTMAX: _both(partial(torch.softmax, dim=-1), x, g)}
        absent = {}
        if importlib.util.find_spec("entmax") is None:
            absent["entmax package"] = "not installed"
        elif alpha in (1.5, 2.0):
            import entmax as package

            peer = package.entmax15 if alpha == 1.5 else package.sparsemax
            sides[_SORTED] = _both(partial(peer, dim=-1), x, g)
            sides[_PARTLY] = _both(partial(peer, dim=-1, k=64), x, g)
        else:
            import entmax as package

            sides[_HALVED] = _both(partial(package.entmax_bisect, alpha=alpha, dim=-1), x, g)
        return Problem(check, 1e-5, sides, absent=absent)

    return build


def _selected(x: Tensor) -> Tensor:
    values, index = x.topk(_KEPT, -1)
    return torch.zeros_like(x).scatter(-1, index, torch.softmax(values, -1))


def _largest(device: torch.device) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = (_SIZE * torch.randn(_ROWS, _ENTRIES, generator=generator)).to(device)
    g = torch.randn(_ROWS, _ENTRIES, generator=generator).to(device)
    ours = partial(sparse_softmax, k=_KEPT)

    def check() -> float:
        return float((_both(ours, x[:64], g[:64])() - _both(_selected, x[:64].double(), g[:64].double())()).abs().max())

    sides = {"carrel": _both(ours, x, g), _TOPK: _both(_selected, x, g)}
    return Problem(check, 1e-5, sides | {_SOFTMAX: _both(partial(torch.softmax, dim=-1), x, g)})


_WORDS = f"forward and backward, {_ROWS} rows of {_ENTRIES}, float32, scores of size {_SIZE:g}"
CASES = (
    Case("sparsemax", _WORDS, _problem(sparsemax, 2.0), bars=(Bar(_SORTED, 5), Bar(_PARTLY, 5))),
    Case("entmax15", _WORDS, _problem(entmax15, 1.5), bars=(Bar(_SORTED, 5), Bar(_PARTLY, 5))),
    Case(
        "entmax",
        f"alpha 1.25, {_WORDS}",
        _problem(partial(entmax, alpha=1.25), 1.25),
        bars=(Bar(_HALVED, 5),),
        rounds=5,
    ),
    Case("sparse-softmax", f"the {_KEPT} largest, {_WORDS}", _largest, bars=(Bar(_TOPK, 1.2),)),
)
