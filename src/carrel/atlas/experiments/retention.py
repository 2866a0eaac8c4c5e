"""Does forgetting help a linear memory to name recent tokens? Retention with its decays and with none.

Beside that, how concentrated a pure decay is: the weights that `decay_attention` gives to the tokens before one,
against the closed form of their sparsity.
"""

from __future__ import annotations

import copy
import math

import torch

from carrel.atlas.report import Report
from carrel.attention import Retention
from carrel.ops import decay_attention

from .recent_recall import DISTANCES, VOCAB, RecallTrained

_DECAYS, _LENGTHS = (0.9, 0.99, 0.999), (100, 1000, 10000)


def run(*, seed: int, length: int, long: int, width: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two, the longer the busier the machine
    try:
        return _compare(seed, length, long, width, steps)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, length: int, long: int, width: int, steps: int) -> Report:
    mixers = {"decays": lambda dim: Retention(dim), "no decay": lambda dim: Retention(dim, decay=1.0)}
    trained = RecallTrained(mixers, seed, length=length, width=width, steps=steps, long=long)
    sparsity = {g: [_sparsity(g, n) for n in _LENGTHS] for g in _DECAYS}
    wrong = max(abs(s - _formula(g, n)) for g, row in sparsity.items() for n, s in zip(_LENGTHS, row, strict=True))
    report = Report("retention")
    report.check("Sparsity of a pure decay against its formula, float64", wrong, high=1e-10)
    report.check("Whole against pieces, trained, float64", trained.sides["decays"].streaming_error(), high=1e-10)
    report.check("Token by token against the whole, trained, float64", _stepping_error(trained, length), high=1e-10)
    report.check("Right with decays, as a multiple of guessing", trained.mean("decays") * VOCAB, low=1.2)
    trained.tell(report)
    report.table(
        "Sparsity of a pure decay, mean over root mean square of its weights (1: all alike)",
        ["factor kept per token", *(f"{n} tokens" for n in _LENGTHS)],
        [[g, *row] for g, row in sparsity.items()],
    )
    _judge(report, trained, "decays", "no decay")
    return report


def _judge(report: Report, trained: RecallTrained, on: str, off: str) -> None:
    near, far = (trained.mean(on, far=far) - trained.mean(off, far=far) for far in (False, True))
    if near >= 0.05 and far >= 0.05:
        report.verdict(
            "holds", f"A memory that forgets names the last {max(DISTANCES)} tokens better than one that keeps all."
        )
    elif far >= 0.05:
        report.verdict(
            "caveat",
            "At the length of training forgetting makes no clear difference; on longer sequences the memory that keeps "
            "everything falls behind.",
        )
    elif near <= -0.05:
        report.verdict("not-shown", "Here the memory that keeps everything names recent tokens better.")
    else:
        report.verdict("not-shown", "At these settings forgetting makes no clear difference.")


def _sparsity(decay: float, length: int) -> float:
    """Of the weights of a row, which are what its output changes by with each value."""
    one = torch.ones(1, 1, length, 1, dtype=torch.float64)
    v = one.clone().requires_grad_()
    o, _ = decay_attention(one, one, v, torch.full((1, 1, length), math.log(decay), dtype=torch.float64))
    (weights,) = torch.autograd.grad(o[0, 0, -1, 0], v)
    return float(weights.sum() / (math.sqrt(length) * weights.norm()))


def _formula(decay: float, length: int) -> float:
    end = decay**length
    return math.sqrt((1 - end) * (1 + decay) / (length * (1 - decay) * (1 + end)))


@torch.no_grad()
def _stepping_error(trained: RecallTrained, length: int) -> float:
    """The trained mixer's output for noise, whole and token by token."""
    mixer = copy.deepcopy(next(m for m in trained.sides["decays"].model.modules() if isinstance(m, Retention))).double()
    x = torch.randn(2, length, mixer.dim, dtype=torch.float64, generator=trained.sides["decays"].generator)
    whole, _ = mixer(x)
    state, rows = None, []
    for t in range(length):
        y, state = mixer(x[:, t : t + 1], state)
        rows.append(y)
    return float((torch.cat(rows, 1) - whole).abs().max())
