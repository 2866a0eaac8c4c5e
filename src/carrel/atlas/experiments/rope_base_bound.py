"""The least admissible base by length, beside the published ones, and random smaller bases that must fail."""

from __future__ import annotations

import math
import time

import numpy as np

from carrel.atlas.report import Report, number, progress
from carrel.theory import rope_base_bound, rope_context, rope_margin

_FIRST = 1024
# arXiv:2405.14591, table 2, for heads of 128 channels
_PAPER = {
    1 << k: base
    for k, base in zip(
        range(10, 21),
        (4.3e3, 1.6e4, 2.7e4, 8.4e4, 3.1e5, 6.4e5, 2.1e6, 7.8e6, 3.6e7, 6.4e7, 5.1e8),
        strict=True,
    )
}
_PAPERS_DIM = 128
_SEEN = 400  # points of the margin's plot


def run(*, seed: int, longest: str, dim: int, tried: int) -> Report:
    generator = np.random.default_rng(seed)
    lengths = [_FIRST << k for k in range((int(longest) // _FIRST).bit_length())]
    report = Report("rope-base-bound")
    bounds, grid, seconds, surviving = [], [], [], 0
    for done, length in enumerate(lengths):
        progress(2**done / 2 ** len(lengths), f"{length} tokens")
        started = time.perf_counter()
        bounds.append(rope_base_bound(length, dim))
        seconds.append(time.perf_counter() - started)
        grid.append(rope_base_bound(length, dim, method="sweep").base)
        below = np.exp(generator.uniform(math.log(1.5), math.log(bounds[-1].base) - 1e-5, tried))
        surviving += sum(rope_context(base, dim, length) >= length for base in below)

    report.check(
        "Context served by the bound over the one asked for",
        min(rope_context(b.base, dim, n + 1) / n for b, n in zip(bounds, lengths, strict=True)),
        low=1,
    )
    report.check("Random smaller bases that would serve the context", surviving, high=0)
    report.check("Part of ln(base) that no certificate covers", max(b.gap for b in bounds), high=1e-5)
    report.check(
        "Bound over the grid's answer", max(b.base / g for b, g in zip(bounds, grid, strict=True)), high=1 + 1e-9
    )
    published = dim == _PAPERS_DIM
    paper = [_PAPER[n] for n in lengths]
    report.curve(
        "The base that a context needs",
        x=lengths,
        y={
            "certified bound": [b.base for b in bounds],
            **({"published table": paper} if published else {}),
            "0.0424 L^1.628": [0.0424 * n**1.628 for n in lengths],
            "L / 0.6165, heads without end": [n / 0.6165 for n in lengths],
        },
        x_label="context (tokens)",
        y_label="base",
        log="xy",
    )
    at = np.unique(np.geomspace(1, lengths[-1] - 1, _SEEN).astype(int))
    report.curve(
        f"Margin at a context of {lengths[-1]} tokens",
        x=at.tolist(),
        y={f"base {number(base)}": rope_margin(base, dim, lengths[-1])[at].tolist() for base in (1e4, bounds[-1].base)},
        x_label="distance (tokens)",
        y_label="margin B",
        log="x",
    )
    heads = ["context", "certified", *(["published", "published / certified"] if published else [])]
    report.table(
        f"Least base, heads of {dim} channels",
        [*heads, "grid of 1.002", "excluded last by", "time (s)"],
        [
            [n, b.base, *([p, p / b.base] if published else []), g, b.witness, s]
            for n, b, g, p, s in zip(lengths, bounds, grid, paper, seconds, strict=True)
        ],
    )
    from_fit = max(abs(math.log(0.0424 * n**1.628 / b.base)) for n, b in zip(lengths, bounds, strict=True))
    far = [n for n, p, b in zip(lengths, paper, bounds, strict=True) if abs(p / b.base - 1) > 0.05]
    if surviving or from_fit > math.log(2):
        report.verdict("not-shown", "At some length the bound is more than twice or less than half of the paper's fit.")
    elif published and far:
        report.verdict(
            "caveat",
            "The bound stays within a factor of two of the paper's fit, but at some lengths its table asks for more "
            "than is needed: a grid steps over narrow windows of admissible bases.",
        )
    else:
        report.verdict("holds", "The bound stays within a factor of two of the paper's fit.")
    return report
