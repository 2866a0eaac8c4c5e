"""Recall with the second-order polynomial in place of the exponential: beside elu + 1 and beside softmax.

One layer reads pairs of key and value and is asked for the values of some keys. As the polynomial's features are many,
elu + 1 takes part twice: with keys as wide, and with keys so wide that its state is as large. Every side gets its own
learning rate, the best of four on one fixed seed at half the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from carrel.atlas.report import Report, number, progress
from carrel.attention import (
    MHA,
    LinearAttention,
    LinearAttentionState,
    linear_attention,
    normalize,
    taylor_features,
    taylor_softmax,
)
from carrel.layers import Mixer

from .fitting import fit

_KEYS, _VALUES, _DIM, _HEADS = 64, 16, 32, 2
_BATCH, _ASKED, _TESTED, _SWEEP_SEED = 32, 16, 256, 1000
_RATES = (0.01, 0.03, 0.1, 0.3)
_REAL = torch.float64


def run(*, seed: int, pairs: int, key_dim: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _report(seed, pairs, key_dim, steps)
    finally:
        torch.set_num_threads(threads)


def _report(seed: int, pairs: int, key_dim: int, steps: int) -> Report:
    report = Report("taylor-softmax")
    _exactness(report, torch.Generator().manual_seed(seed))
    wide = taylor_features(torch.ones(key_dim)).numel()
    mixers: dict[str, Callable[[int], Mixer]] = {
        "Taylor": lambda dim: LinearAttention(dim, _HEADS, key_dim=key_dim, feature="taylor"),
        "elu + 1": lambda dim: LinearAttention(dim, _HEADS, key_dim=key_dim),
        "elu + 1, as large a state": lambda dim: LinearAttention(dim, _HEADS, key_dim=wide),
        "softmax": lambda dim: MHA(dim, _HEADS, rotary_base=None),
    }
    asked = [n for n in (4, 8, 16, 32, 64) if n <= _KEYS]
    rows: dict[str, list[float]] = {}
    rates, sweep, sizes = {}, {}, {}
    for i, (name, mixer) in enumerate(mixers.items()):
        losses = []
        for j, rate in enumerate(_RATES):
            progress((i + j / 6) / len(mixers), f"{name}: learning rate {number(rate)}")
            losses.append(_trained(_SWEEP_SEED, mixer, pairs, max(1, steps // 2), rate)[1])
        sweep[name], rates[name] = losses, _RATES[min(range(len(_RATES)), key=losses.__getitem__)]
        progress((i + 0.67) / len(mixers), name)
        reader, _ = _trained(seed, mixer, pairs, steps, rates[name])
        generator = torch.Generator().manual_seed(seed)
        rows[name] = [reader.score(n, generator) for n in asked]
        sizes[name] = [_kept(reader.mixer, n) for n in (asked[0], asked[-1])]
    report.curve(
        f"Values named right after training on {pairs} pairs",
        x=asked,
        y=rows | {"guessing": [1 / _VALUES] * len(asked)},
        x_label="pairs to remember",
        y_label="share named right",
        log="x",
    )
    report.table(
        f"After {steps} steps of {_BATCH} (% named right)",
        [
            "side",
            "learning rate",
            *(f"{n} pairs" for n in asked),
            f"numbers kept, {asked[0]} pairs",
            f"{asked[-1]} pairs",
        ],
        [[name, number(rates[name]), *(100 * r for r in row), *sizes[name]] for name, row in rows.items()],
    )
    report.table(
        f"Choosing the learning rate: loss after {max(1, steps // 2)} steps at one seed (nats)",
        ["side", *(number(rate) for rate in _RATES)],
        [[name, *losses] for name, losses in sweep.items()],
    )
    taylor, narrow, large, softmax = (row[-1] for row in rows.values())
    if taylor >= softmax - 0.02 and taylor >= narrow + 0.05:
        report.verdict("holds", "The polynomial recalls what softmax recalls, from a state that does not grow.")
    elif taylor >= narrow + 0.05 and taylor <= large + 0.05:
        report.verdict(
            "caveat",
            "The polynomial recalls far more than elu + 1 with keys as wide, but no more than elu + 1 with a state "
            "as large, and less than softmax: what counts is how much is kept.",
        )
    elif taylor >= narrow + 0.05:
        report.verdict(
            "caveat",
            "The polynomial recalls far more than elu + 1, even where that has a state as large, but less than "
            "softmax.",
        )
    else:
        report.verdict("not-shown", "Here the polynomial recalls no more than elu + 1 does.")
    return report


class _Reader(nn.Module):
    """Pairs as sums of two embeddings, questions as one; a mixer, and an MLP that names the value."""

    def __init__(self, mixer: Callable[[int], Mixer]) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(_KEYS, _DIM), nn.Embedding(_VALUES, _DIM)
        self.mixer = mixer(_DIM)
        self.tell = nn.Sequential(
            nn.LayerNorm(_DIM), nn.Linear(_DIM, 2 * _DIM), nn.GELU(), nn.Linear(2 * _DIM, _VALUES)
        )

    def forward(self, keys: Tensor, values: Tensor, questions: Tensor) -> Tensor:
        x = torch.cat((self.key(keys) + self.value(values), self.key(questions)), 1)
        return self.tell(self.mixer(x)[0][:, keys.shape[1] :])

    @torch.no_grad()
    def score(self, pairs: int, generator: torch.Generator) -> float:
        *shown, answers = _drawn(_TESTED, pairs, generator)
        return float((self(*shown).argmax(-1) == answers).double().mean())


def _drawn(rows: int, pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, questions and answers; no key stands twice in a row."""
    keys = torch.rand(rows, _KEYS, generator=generator).argsort(-1)[:, :pairs]
    values = torch.randint(_VALUES, (rows, pairs), generator=generator)
    order = torch.rand(rows, pairs, generator=generator).argsort(-1)[:, :_ASKED]
    return keys, values, keys.gather(1, order), values.gather(1, order)


def _trained(seed: int, mixer: Callable[[int], Mixer], pairs: int, steps: int, rate: float) -> tuple[_Reader, float]:
    """A reader, and its loss on fresh rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = _Reader(mixer)
    generator = torch.Generator().manual_seed(seed)

    def loss(rows: int) -> Tensor:
        *shown, answers = _drawn(rows, pairs, generator)
        return cross_entropy(reader(*shown).flatten(0, 1), answers.flatten())

    for _ in fit(reader, lambda: loss(_BATCH), steps, rate):
        pass
    with torch.no_grad():
        return reader, float(loss(_TESTED))


@torch.no_grad()
def _kept(mixer: Mixer, pairs: int) -> int:
    """Numbers that stand for the pairs."""
    state: Any = mixer(torch.zeros(1, pairs, _DIM))[1]
    return sum(part.numel() for part in state if part.is_floating_point())


def _exactness(report: Report, generator: torch.Generator) -> None:
    q, k, v = torch.randn(3, 1, 2, 150, 6, generator=generator, dtype=_REAL)
    whole, _ = linear_attention(q, k, v, feature="taylor")
    seen = torch.ones(150, 150, dtype=torch.bool).tril()
    matrix = normalize(q @ k.mT, "taylor-softmax", mask=seen) @ v
    report.check("Linear form against the matrix of weights, float64", (whole - matrix).abs().max(), high=1e-12)
    state: LinearAttentionState | None = None
    pieces = []
    for some_q, some_k, some_v in zip(*(x.split([1, 63, 0, 65, 21], 2) for x in (q, k, v)), strict=True):
        o, state = linear_attention(some_q, some_k, some_v, state, feature="taylor")
        pieces.append(o)
    report.check("Pieces against the whole", (torch.cat(pieces, 2) - whole).abs().max(), high=1e-12)
    scores = q[0, 0] @ k[0, 0].mT
    products = taylor_features(q[0, 0]) @ taylor_features(k[0, 0]).mT
    report.check(
        "Products of features against 1 + x + x² / 2", (products - 1 - scores - scores**2 / 2).abs().max(), high=1e-11
    )
    line = torch.linspace(-10, 10, 20001, dtype=_REAL)
    for order, least in ((2, 0.5), (4, 0.2704), (6, 0.1493)):
        value = sum(line**m / math.factorial(m) for m in range(order + 1))
        report.check(
            f"Least value of the polynomial of order {order}",
            float(torch.as_tensor(value).min()),
            low=least - 1e-4,
            high=least + 1e-4,
        )
    x = torch.randn(50, 20, generator=generator, dtype=_REAL)
    gap = (taylor_softmax(x, 20) - torch.softmax(x, -1)).abs().max()
    report.check("Order 20 against softmax", gap, high=1e-9)
