"""How concentrated rows of attention are: formulas, draws, finitely many keys, and the ranks of whole matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import elu
from torch.utils._python_dispatch import TorchDispatchMode

from carrel.atlas.report import Report, number, progress
from carrel.theory import (
    attention_concentration,
    concentration,
    decay_sparsity,
    effective_rank,
    sparsity,
)

_REAL = torch.float64
_LAWS = ((0.0, 1.0), (1.0, 1.0), (-1.0, 1.0), (-2.0, 1.0), (-3.0, 1.0), (0.0, 2.0))
_WEIGHT: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "identity": torch.abs,
    "relu2": lambda s: torch.relu(s).square(),
}
_SIZES = (1.0, 2.0, 4.0)
_GAMMAS = [0.25 * k for k in range(1, 25)]
_TOKENS, _CHANNELS = 256, 16  # of the matrices whose ranks are compared
_QUERIES = 64


def run(*, seed: int, keys: int, dim: int, draws: int) -> Report:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    report = Report("concentration")
    report.check("Closed forms against integrals, relative", max(_integral_error(*law) for law in _LAWS), high=1e-6)
    decayed = [(0.99, n) for n in (100, 1000, 10_000)]
    exact = max(
        abs(decay_sparsity(d, n) - float(concentration(d ** torch.arange(n, dtype=_REAL)).S)) for d, n in decayed
    )
    report.check("Decaying rows against their formula", exact, high=1e-12)
    report.check("Running sums against the matrix, relative", _streaming_error(generator), high=1e-9)
    report.check("Largest tensor over the matrix, 2048 tokens", _largest(generator), high=0.1)

    progress(0.1, "draws")
    z = torch.randn(draws, generator=generator, dtype=_REAL)
    report.table(
        f"S of a row of {draws} scores beside the formula for endless ones",
        ["β", "γ", *(f"{kind}, {what}" for kind in _WEIGHT for what in ("formula", "drawn"))],
        [[number(b), number(g), *(v for kind, weight in _WEIGHT.items()
                                  for v in (sparsity(kind, b, g), float(concentration(weight(b + g * z)).S)))]
         for b, g in _LAWS],
    )  # fmt: skip

    progress(0.3, "finitely many keys")
    counts = [keys // 64, keys // 8, keys]
    floors = {n: _by_size(n, dim, generator) for n in counts}
    report.curve(
        "S of softmax rows, by the size of their scores",
        x=_GAMMAS,
        y={
            "formula, endless keys": [sparsity("exp", 0.0, g) for g in _GAMMAS],
            f"leading order, {keys} keys": [sparsity("exp", 0.0, g, keys) for g in _GAMMAS],
            **{f"drawn, {n} keys": values for n, values in floors.items()},
        },
        x_label="standard deviation γ of a row's scores",
        y_label="S (1: flat)",
        log="y",
    )
    leaves = {n: _leaves(floors[n]) for n in counts}
    report.table(
        "Where rows of softmax leave the formula, being half as much again",
        ["keys", "γ, drawn", "sqrt(ln n / 2)", "S at γ = 6, drawn", "1 / sqrt(n)"],
        [[n, leaves[n], math.sqrt(math.log(n) / 2), floors[n][-1], n**-0.5] for n in counts],
    )

    progress(0.6, "ways of attention")
    k = torch.randn(keys, dim, generator=generator)
    ways: dict[str, list[float]] = {}
    for size in _SIZES:
        q = size * torch.randn(_QUERIES, dim, generator=generator)
        for name, found in {
            "softmax": attention_concentration(q, k),
            "linear, elu + 1": attention_concentration(elu(q) + 1, elu(k) + 1, "identity"),
            "linear, no features": attention_concentration(q, k, "identity"),
            "squared ReLU": attention_concentration(q, k, "relu2"),
        }.items():
            ways.setdefault(name, []).append(float(found.S.mean()))
    report.check("S of elu + 1 at its least", min(ways["linear, elu + 1"]), low=0.95)
    report.check("S of softmax at queries of size 4", ways["softmax"][-1], high=0.15)
    report.table(
        f"S by the size of the queries, {keys} random keys of {dim} channels",
        ["way", *(f"size {size:g}" for size in _SIZES)],
        [[name, *values] for name, values in ways.items()],
    )

    progress(0.8, "ranks")
    ranks = _ranks(generator)
    report.check("Rank of linear attention without a mask", ranks["linear"][0], low=_CHANNELS, high=_CHANNELS)
    report.check(
        "Least diagonal entry of causal matrices", min(row[2] for n, row in ranks.items() if "causal" in n), low=1e-300
    )
    report.table(
        f"Ranks of {_TOKENS} by {_TOKENS} matrices from {_CHANNELS} channels",
        ["matrix", "rank in floating point", "effective rank", "least diagonal entry"],
        [[name, *values] for name, values in ranks.items()],
    )
    reaches = ways["softmax"][-1] < 0.15 and min(ways["linear, elu + 1"]) > 0.95
    parts = all(floors[n][-1] > 2 * sparsity("exp", 0.0, _GAMMAS[-1]) for n in counts)
    full = ranks["linear, causal"][0] == _TOKENS and ranks["linear, causal"][1] < ranks["softmax, causal"][1]
    if reaches and parts and full:
        report.verdict(
            "caveat",
            "Softmax concentrates at will and linear attention hardly, and rank does not tell them apart once the "
            "future is hidden, though effective rank still does; but with finitely many keys softmax leaves its "
            "formula where γ nears sqrt(ln n / 2), and can go down to 1 / sqrt(n), no further.",
        )
    elif reaches and full:
        report.verdict("holds", "Softmax concentrates at will and linear attention hardly, whatever the rank.")
    else:
        report.verdict("not-shown", "At these sizes softmax is not far more concentrated than linear attention.")
    return report


def _integral_error(beta: float, gamma: float) -> float:
    z = torch.linspace(-40, 40, 200_001, dtype=_REAL)
    density = -z.square() / 2
    worst = 0.0
    for kind, weight in _WEIGHT.items():
        log_a = beta + gamma * z if kind == "exp" else torch.log(weight(beta + gamma * z))
        one, two, all_of_it = (torch.logsumexp(density + m * log_a if m else density, 0) for m in (1, 2, 0))
        worst = max(worst, abs(float(torch.exp(one - (two + all_of_it) / 2)) / sparsity(kind, beta, gamma) - 1))
    return worst


def _by_size(n: int, dim: int, generator: torch.Generator) -> list[float]:
    """S of softmax, the mean over directions of the query, with scores of every size in turn."""
    q = torch.randn(_QUERIES, dim, generator=generator)
    q = q / q.norm(dim=-1, keepdim=True)
    k = torch.randn(n, dim, generator=generator)
    return [float(attention_concentration(gamma * q, k, scale=1.0, block=4096).S.mean()) for gamma in _GAMMAS]


def _leaves(values: list[float]) -> float:
    return next((g for g, s in zip(_GAMMAS, values, strict=True) if s > 1.5 * sparsity("exp", 0.0, g)), _GAMMAS[-1])


def _streaming_error(generator: torch.Generator) -> float:
    q, k = 2 * torch.randn(2, 300, 16, generator=generator, dtype=_REAL)
    seen = torch.ones(300, 300, dtype=torch.bool).tril()
    scores = q @ k.mT / 4
    worst = 0.0
    for kind, a in {"exp": torch.exp(scores), "identity": scores, "relu2": torch.relu(scores).square()}.items():
        wanted = concentration(a, mask=seen, top=5)
        found = attention_concentration(q, k, kind, causal=True, top=5, block=37)
        for x, y in zip(found, wanted, strict=True):
            worst = max(worst, float(((x - y).abs() / (1 + y.abs())).nan_to_num().max()))
    return worst


class _Watch(TorchDispatchMode):
    """The most numbers in any one tensor that an operation made."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = out if isinstance(out, (tuple, list)) else (out,)
        self.numbers = max([self.numbers, *(x.numel() for x in made if isinstance(x, Tensor))])
        return out


def _largest(generator: torch.Generator) -> float:
    q, k = torch.randn(2, 2048, 16, generator=generator)
    with _Watch() as seen:  # type: ignore[no-untyped-call]
        attention_concentration(q, k, causal=True)
    return seen.numbers / 2048**2


def _ranks(generator: torch.Generator) -> dict[str, tuple[int, float, float]]:
    q, k = torch.randn(2, _TOKENS, _CHANNELS, generator=generator, dtype=_REAL)
    seen = torch.ones(_TOKENS, _TOKENS, dtype=torch.bool).tril()
    linear, scores = (elu(q) + 1) @ (elu(k) + 1).mT, q @ k.mT / math.sqrt(_CHANNELS)
    matrices = {
        "linear": linear,
        "linear, causal": linear.masked_fill(~seen, 0.0),
        "softmax": torch.exp(scores),
        "softmax, causal": torch.exp(scores).masked_fill(~seen, 0.0),
    }
    found = {}
    for name, a in matrices.items():
        a = a / a.sum(-1, keepdim=True)
        found[name] = (int(torch.linalg.matrix_rank(a)), float(effective_rank(a)), float(a.diagonal().min()))
    return found
