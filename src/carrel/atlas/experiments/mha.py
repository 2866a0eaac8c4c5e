"""What heads are worth at equal width: naming the tokens at six distances at once with one head, two, up to sixteen.

All sides have the same number of parameters and of operations; only how the width is cut differs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch.nn import functional

from carrel.atlas.report import Report
from carrel.attention import MHA

from .recent_recall import DISTANCES, VOCAB, RecallTrained

_HEADS = (1, 2, 4, 8, 16)


def run(*, seed: int, length: int, long: int, width: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare(seed, length, long, width, steps)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, length: int, long: int, width: int, steps: int) -> Report:
    mixers = {_name(heads): (lambda dim, heads=heads: MHA(dim, heads)) for heads in _HEADS}
    trained = RecallTrained(mixers, seed, length=length, width=width, steps=steps, long=long)
    means = [trained.mean(name) for name in mixers]
    report = Report("mha")
    sizes = {sum(p.numel() for p in side.model.parameters()) for side in trained.sides.values()}
    report.check("Sizes of the models that differ", len(sizes), high=1)
    report.check("One token by one against the whole, float64", trained.sides[_name(8)].streaming_error(), high=1e-10)
    report.check("All heads at once against the sum of each by itself, float64", _sum_of_heads(seed), high=1e-10)
    report.curve(
        f"Naming tokens at {len(DISTANCES)} distances at once",
        x=list(_HEADS),
        y={"share named right": means, "guessing": [1 / VOCAB] * len(_HEADS)},
        x_label=f"heads that a width of {width} is cut into",
        y_label="share named right",
        log="x",
    )
    report.table(
        f"Distances named right more than half of the time, of {len(DISTANCES)}",
        ["side", "channels of a head", "distances"],
        [
            [name, width // heads, sum(right > 0.5 for right in trained.near[name])]
            for name, heads in zip(mixers, _HEADS, strict=True)
        ],
    )
    trained.tell(report)
    best = max(means)
    if best >= means[0] + 0.2 and all(b >= a - 0.05 for a, b in pairwise(means)):
        report.verdict(
            "holds",
            "A single head names little more than one of the distances; cut into more heads, the same width looks to "
            "more places at once.",
        )
    elif best >= means[0] + 0.2:
        report.verdict(
            "caveat",
            "Several heads name more of the distances than a single one, but at these steps more heads are not always "
            "better: they also have to be learnt, and each has fewer channels to tell places apart.",
        )
    else:
        report.verdict("not-shown", "Here several heads name no more than a single one.")
    return report


def _name(heads: int) -> str:
    return "1 head" if heads == 1 else f"{heads} heads"


@torch.no_grad()
def _sum_of_heads(seed: int) -> float:
    """Each head alone is a mixer of one head with its rows of W_q, W_k, W_v and its columns of W_o."""
    heads, size, dim = 4, 6, 24
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer, alone = MHA(dim, heads).double(), MHA(dim, 1, head_dim=size).double()
        x = torch.randn(2, 20, dim, dtype=torch.float64)
    rows = mixer.qkv.weight.view(3, heads, size, dim)
    total = torch.zeros_like(x)
    for head in range(heads):
        alone.qkv.weight.copy_(rows[:, head].flatten(0, 1))
        alone.out.weight.copy_(mixer.out.weight[:, head * size : (head + 1) * size])
        total += alone(x)[0]
    return float((mixer(x)[0] - total).abs().max() / functional.relu(total.abs().max()))
