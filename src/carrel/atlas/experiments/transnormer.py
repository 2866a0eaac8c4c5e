"""Two faults of linear attention, measured: gradients without a bound, and attention spread over everything.

Scores are shrunk step by step and every form's gradient is taken by autograd: of weights (softmax, and division by the
sum) and of outputs (division by the sum, and division by the root mean square, which replaces it).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.report import Report, progress
from carrel.attention import DiagAttention, NormAttention

_SCALES = (1.0, 1e-2, 1e-4, 1e-6)
_SPREADS = (1.0, 2.0, 4.0)
_SCORES, _DIM, _EPS = 64, 64, 1e-6


def run(*, seed: int, keys: int, rows: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _report(seed, keys, rows)
    finally:
        torch.set_num_threads(threads)


def _report(seed: int, keys: int, rows: int) -> Report:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(rows, _SCORES, generator=generator, dtype=torch.float64)
    v = torch.randn(_SCORES, 16, generator=generator, dtype=torch.float64)
    progress(0.1, "gradients")
    weights = {
        "softmax": [_steepest(lambda s: torch.softmax(s, -1), e * drawn) for e in _SCALES],
        "divided by the sum": [_steepest(_share, e * drawn) for e in _SCALES],
    }
    outputs = {
        "divided by the sum": [_steepest(lambda s: _share(s) @ v, e * drawn) for e in _SCALES],
        "divided by the root mean square": [_steepest(lambda s: _normed(s @ v), e * drawn) for e in _SCALES],
    }
    spread = _Spread(keys, rows, generator)
    share, norm = outputs.values()
    growth = min(b / a for a, b in zip(weights["divided by the sum"], weights["divided by the sum"][1:], strict=False))
    report = Report("transnormer")
    report.check("Gradient of a softmax", _any_softmax(generator), high=0.25)
    report.check("Gradient of a share, by its formula, relative", _formula_error(drawn), high=1e-10)
    report.check("Growth of a share's gradient per hundredth of the scores", growth, low=50)
    # |y_i| <= 4 for 16 channels bounds the derivative by max|v| / √ε times √(1 - t) (1 + 4 t), which is 2.16 at most
    report.check("Largest gradient through the norm, over 1/√ε", max(norm) * _EPS**0.5 / float(v.abs().max()), high=2.2)
    least = min(spread.linear) / keys
    report.check("Effective keys of elu + 1, as a share of all", least, low=0.95, high=1)
    report.check("Effective keys within blocks", max(spread.blocks), low=1, high=spread.block)
    report.check("Keys' size against the norm's output, float64", _invariance(seed), high=1e-6)
    report.curve(
        "Largest gradient as scores shrink",
        x=list(_SCALES),
        y={
            "weight, softmax": weights["softmax"],
            "weight, divided by the sum": weights["divided by the sum"],
            "output, divided by the sum": share,
            "output, divided by the root mean square": norm,
        },
        x_label="size of the scores",
        y_label="largest derivative by a score",
        log="xy",
    )
    report.table(
        "Largest derivative by a score",
        ["size of the scores", "weight, softmax", "weight, share", "output, share", "output, norm"],
        [[f"{e:g}", *(row[i] for row in (*weights.values(), share, norm))] for i, e in enumerate(_SCALES)],
    )
    report.table(
        f"Effective keys out of {keys}, 1 / Σp²",
        ["size of q", "softmax", "elu + 1", f"softmax in blocks of {spread.block}"],
        [[s, *row] for s, *row in zip(_SPREADS, spread.softmax, spread.linear, spread.blocks, strict=True)],
    )
    unbounded, diluted = growth >= 50, least > 0.95 and spread.softmax[-1] < 0.1 * keys
    alike = norm[1] / norm[0] > 50
    if unbounded and diluted and alike:
        report.verdict(
            "caveat",
            "Both faults are there: the gradient of a share grows without bound as scores shrink, and elu + 1 "
            "attends to nearly all keys however long the queries are. But the norm's gradient grows likewise until "
            "its ε stops it; what bounds it is that ε, not the norm.",
        )
    elif unbounded and diluted:
        report.verdict("holds", "Both faults are there, and the norm's gradient stays bounded.")
    else:
        report.verdict("not-shown", "At these settings the two faults do not show.")
    return report


def _share(s: Tensor) -> Tensor:
    return s / s.sum(-1, keepdim=True)


def _normed(o: Tensor) -> Tensor:
    return functional.rms_norm(o, o.shape[-1:], eps=_EPS)


def _steepest(form: Callable[[Tensor], Tensor], scores: Tensor) -> float:
    """The largest derivative of any entry of a row's result by any of its scores."""
    jacobian = torch.func.vmap(torch.func.jacrev(form))(scores)
    return float(jacobian.abs().max())


def _formula_error(scores: Tensor) -> float:
    """|dp_j / ds_j| = p_j (1 - p_j) / s_j."""
    p = _share(scores)
    jacobian = torch.func.vmap(torch.func.jacrev(_share))(scores).diagonal(dim1=1, dim2=2)
    return float((jacobian / (p * (1 - p) / scores) - 1).abs().max())


def _any_softmax(generator: torch.Generator) -> float:
    sizes = torch.logspace(-2, 2, 41, dtype=torch.float64)[:, None]
    return _steepest(lambda s: torch.softmax(s, -1), sizes * torch.randn(41, 8, generator=generator).double())


class _Spread:
    """How many keys a query attends to, by the size of the queries: means over rows of 1 / Σp²."""

    def __init__(self, keys: int, rows: int, generator: torch.Generator) -> None:
        self.block = DiagAttention(4, 1).block
        self.softmax: list[float] = []
        self.linear: list[float] = []
        self.blocks: list[float] = []
        q = torch.randn(rows, _DIM, generator=generator, dtype=torch.float64)
        k = torch.randn(keys, _DIM, generator=generator, dtype=torch.float64)
        for size in _SPREADS:
            scores = size * q @ k.T / _DIM**0.5
            self.softmax.append(_effective(torch.softmax(scores, -1)))
            self.linear.append(_effective(_share((functional.elu(size * q) + 1) @ (functional.elu(k) + 1).T)))
            self.blocks.append(_effective(torch.softmax(scores[:, -self.block :], -1)))


def _effective(p: Tensor) -> float:
    return float((1 / p.square().sum(-1)).mean())


@torch.no_grad()
def _invariance(seed: int) -> float:
    """What scaling every key's features does to the mixer: nothing but for eps. relu lets the weights do it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer, x = NormAttention(32, 2, feature="relu").double(), torch.randn(2, 100, 32, dtype=torch.float64)
    mixer.qkv.weight[:32] *= 1e3  # so that eps is small beside every row but those of zeros
    before = mixer(x)[0]
    mixer.qkv.weight[32:64] *= 1e3
    return float((mixer(x)[0] - before).abs().median())
