"""Two gated attention units beside attention and an MLP of as many weights: what they learn, and what they cost."""

from __future__ import annotations

from functools import partial

import torch
from torch.nn.functional import silu

from carrel.atlas.report import Report
from carrel.attention import GAU

from .chain_training import VOCAB, ChainsTrained
from .gated_blocks import BLOCK, TWO_GAU, BlockTimes, small

_NEAR = 0.02  # nats that count as none


def run(*, seed: int, steps: int, longest: int, rounds: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two
    try:
        return _compare(seed, steps, longest, rounds)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, steps: int, longest: int, rounds: int) -> Report:
    sides = (BLOCK, TWO_GAU)
    trained = ChainsTrained({side: partial(small, side, vocab=VOCAB) for side in sides}, seed, steps)
    times = BlockTimes(sides, longest, rounds, seed)
    ours, theirs = trained.sides[TWO_GAU], trained.sides[BLOCK]
    report = Report("gau")
    report.check("Against all pairs, float64", _apart(seed), high=1e-12)
    report.check("Whole against pieces, trained, float64", ours.streaming_error(), high=1e-10)
    report.check("Weights, over those of attention and MLP", ours.weights / theirs.weights, low=0.95, high=1.05)
    report.check("Nats above the least after training", ours.final, high=0.75)  # knowing nothing leaves 0.86
    trained.tell(report)
    times.tell(report, TWO_GAU)
    good, fast = ours.final <= theirs.final + _NEAR, times.ratio(TWO_GAU, BLOCK) > 1
    if good and fast:
        report.verdict(
            "holds", "Two gated units learn as well as attention and an MLP of as many weights, in less time."
        )
    elif good:
        report.verdict(
            "caveat",
            "Two gated units learn as well as attention and an MLP of as many weights, but beside fused softmax "
            "attention they are the slower, even without a matrix of all pairs.",
        )
    elif fast:
        report.verdict(
            "caveat", "Two gated units are faster than attention and an MLP, but learn less in as many steps."
        )
    else:
        report.verdict(
            "not-shown",
            "With as many weights and steps, two gated units learn less than attention and an MLP, and beside fused "
            "softmax attention they are the slower, even without a matrix of all pairs.",
        )
    return report


def _apart(seed: int) -> float:
    """The layer from its equation over all pairs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer, x = GAU(16, key_dim=8, rotary_base=None).double(), torch.randn(2, 70, 16, dtype=torch.float64)
    with torch.no_grad():
        u, v, z = silu(mixer.gates.uvz(x)).split([32, 32, 8], -1)
        q, k = (z * g + b for g, b in zip(mixer.gates.gamma, mixer.gates.beta, strict=True))
        seen = torch.arange(1, 71, dtype=torch.float64)[:, None]
        A = (torch.relu(q @ k.mT / 8**0.5).square() / seen).tril()
        return float((mixer(x)[0] - mixer.gates.out(u * (A @ v))).abs().max())
