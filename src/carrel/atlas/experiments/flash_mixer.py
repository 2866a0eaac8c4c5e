"""Two FLASH layers beside two gated attention units and beside attention and an MLP, of as many weights each."""

from __future__ import annotations

from functools import partial

import torch

from carrel.atlas.report import Report
from carrel.attention import FLASH, GAU

from .chain_training import VOCAB, ChainsTrained
from .gated_blocks import BLOCK, TWO_FLASH, TWO_GAU, BlockTimes, small

_NEAR = 0.02  # nats that count as none
_FASTER = 1.2


def run(*, seed: int, steps: int, longest: int, rounds: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two
    try:
        return _compare(seed, steps, longest, rounds)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, steps: int, longest: int, rounds: int) -> Report:
    sides = (BLOCK, TWO_FLASH)
    trained = ChainsTrained({side: partial(small, side, vocab=VOCAB) for side in sides}, seed, steps)
    times = BlockTimes((BLOCK, TWO_GAU, TWO_FLASH), longest, rounds, seed)
    ours, theirs = trained.sides[TWO_FLASH], trained.sides[BLOCK]
    report = Report("flash-mixer")
    report.check("One chunk against the gated unit with its count, float64", _apart(seed), high=1e-12)
    report.check("Whole against pieces, trained, float64", ours.streaming_error(), high=1e-10)
    report.check("Weights, over those of attention and MLP", ours.weights / theirs.weights, low=0.95, high=1.05)
    report.check("Nats above the least after training", ours.final, high=0.75)  # knowing nothing leaves 0.86
    trained.tell(report)
    times.tell(report, TWO_FLASH)
    good, fast = ours.final <= theirs.final + _NEAR, times.ratio(TWO_FLASH, BLOCK) >= _FASTER
    if good and fast:
        report.verdict(
            "holds",
            "Two FLASH layers learn as well as attention and an MLP of as many weights, and over long sequences they "
            "take less time even beside fused softmax attention.",
        )
    elif fast:
        report.verdict(
            "caveat",
            "Over long sequences two FLASH layers are faster than fused softmax attention and an MLP, but in as many "
            "steps they learn less.",
        )
    elif good:
        report.verdict(
            "caveat", "Two FLASH layers learn as well as attention and an MLP, but at these lengths save little time."
        )
    else:
        report.verdict("not-shown", "Two FLASH layers learn less than attention and an MLP and save little time.")
    return report


def _apart(seed: int) -> float:
    """FLASH of a single chunk from the gated unit with the same weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        flash, gau = FLASH(16, key_dim=8, chunk=70).double(), GAU(16, key_dim=8, count=70).double()
        x = torch.randn(2, 70, 16, dtype=torch.float64)
    weights = flash.state_dict()
    gau.load_state_dict(weights | {name: weights[name][:2] for name in ("gates.gamma", "gates.beta")})
    with torch.no_grad():
        return float((flash(x)[0] - gau(x)[0]).abs().max())
