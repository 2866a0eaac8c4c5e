"""Does it pay that a linear memory forgets as each token chooses? Gated linear attention with its gates and without.

Neither side has positions, so what tells near from far is the forgetting alone.
"""

from __future__ import annotations

import copy
import math

import torch
from torch.nn import functional

from carrel.atlas.report import Report
from carrel.attention import GatedLinearAttention

from .recent_recall import DISTANCES, VOCAB, RecallTrained


def run(*, seed: int, length: int, long: int, width: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two, the longer the busier the machine
    try:
        return _compare(seed, length, long, width, steps)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, length: int, long: int, width: int, steps: int) -> Report:
    mixers = {
        "gates": lambda dim: GatedLinearAttention(dim),
        "no gates": lambda dim: GatedLinearAttention(dim, temperature=math.inf),
    }
    trained = RecallTrained(mixers, seed, length=length, width=width, steps=steps, long=long)
    report = Report("gla")
    report.check("Whole against pieces, trained, float64", trained.sides["gates"].streaming_error(), high=1e-10)
    report.check("Kernel against the recurrence, trained, float64", _kernel_error(trained, length), high=1e-10)
    report.check("Right with gates, as a multiple of guessing", trained.mean("gates") * VOCAB, low=1.2)
    trained.tell(report)
    gained = {
        far: [on - off for on, off in zip(scores["gates"], scores["no gates"], strict=True)]
        for far, scores in ((False, trained.near), (True, trained.far))
    }
    if all(gain >= 0.05 for gains in gained.values() for gain in gains):
        report.verdict(
            "holds",
            f"With gates the memory names all of the last {max(DISTANCES)} tokens better than with none, at the length "
            "of training and beyond it.",
        )
    elif all(gains[0] >= 0.05 for gains in gained.values()):
        report.verdict(
            "caveat",
            "With gates the memory names the last few tokens, also in sequences longer than those of training, and "
            f"without them hardly any. But at these steps the gates do not reach all of the last {max(DISTANCES)}: "
            "tokens further back are named no better than without.",
        )
    else:
        report.verdict("not-shown", "At these settings the gates make no clear difference.")
    return report


@torch.no_grad()
def _kernel_error(trained: RecallTrained, length: int) -> float:
    """The trained mixer's output for noise, by the kernel and by its equations."""
    side = trained.sides["gates"]
    mixer = copy.deepcopy(next(m for m in side.model.modules() if isinstance(m, GatedLinearAttention))).double()
    x = torch.randn(2, length, mixer.dim, dtype=torch.float64, generator=side.generator)
    q, k = (t.unflatten(-1, (mixer.heads, -1)) for t in mixer.qk(x).chunk(2, -1))
    v, gate = (t.unflatten(-1, (mixer.heads, -1)) for t in mixer.vg(x).chunk(2, -1))
    chosen = torch.sigmoid(mixer.forget_up(mixer.forget_down(x)) + mixer.forget_bias) ** (1 / mixer.temperature)
    a = chosen.view(*chosen.shape[:2], mixer.heads, mixer.key_dim)
    S, rows = x.new_zeros(2, mixer.heads, mixer.key_dim, mixer.head_dim), []
    for t in range(length):
        S = a[:, t].unsqueeze(-1) * S + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        rows.append((q[:, t].unsqueeze(-1) * S).sum(-2) / math.sqrt(mixer.key_dim))
    o = mixer.norm(torch.stack(rows, 1))
    return float((mixer.out((functional.silu(gate) * o).flatten(2)) - mixer(x)[0]).abs().max())
