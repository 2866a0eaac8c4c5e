"""How many steps ``min_abc`` takes as N grows, and whether its answers are the least ones."""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from carrel.algorithms import min_abc, min_abc_batch
from carrel.atlas.report import Report, number, progress

_FIRST = 6  # the smallest size drawn, as a power of ten
_FITTED = 9  # sizes from here on enter the slope: below, the walk is too short for the law
_EXPECTED = 1.183  # steps over N^(1/6) if c falls evenly: Gamma(5/3) (3/2)^(2/3)


def run(*, seed: int, samples: int, decades: int, exhaustive: int) -> Report:
    generator = np.random.default_rng(seed)
    report = Report("min-abc")
    progress(0.0, f"every N below {exhaustive}")
    every = np.arange(exhaustive)
    wrong = int((min_abc_batch(every).total != _by_trying_every_a(every)).sum())

    sizes = range(_FIRST, decades + 1)
    started = time.perf_counter()
    drawn = []
    for done, power in enumerate(sizes):
        progress(0.1 + 0.9 * done / len(sizes), f"N about {number(10.0**power)}")
        drawn.append(_Size(power, samples, generator))
    seconds = time.perf_counter() - started

    fitted = [size for size in drawn if _FITTED <= size.power <= 18]
    slope = float(np.polyfit([size.power for size in fitted], [np.log10(size.steps.mean()) for size in fitted], 1)[0])
    report.check(f"Wrong sums among all N below {exhaustive}", wrong, high=0)
    report.check("Answers that do not make up their N", sum(size.broken for size in drawn), high=0)
    report.check("Compiled answers unlike those in exact integers", sum(size.unlike for size in drawn), high=0)
    report.check(
        f"Power of N in the mean steps, {number(10.0**_FITTED)} to {number(10.0 ** fitted[-1].power)}",
        slope,
        low=0.1567,
        high=0.1767,
    )
    report.check("Most steps as a share of the proven bound", max(size.share for size in drawn), high=1)
    report.check("Time for the whole table (s)", seconds, high=10)

    N = [10.0**size.power for size in drawn]
    report.curve(
        "Steps grow like the sixth root of N",
        x=N,
        y={
            "mean steps": [size.steps.mean() for size in drawn],
            "most steps": [size.steps.max() for size in drawn],
            "1.18 · ⁶√N": [_EXPECTED * n ** (1 / 6) for n in N],
            "trying every a, √N": [n**0.5 for n in N],
        },
        x_label="N",
        y_label="values tried",
        log="xy",
    )
    report.table(
        f"Steps for {samples} random N of each size",
        ["N about", "mean steps", "mean / ⁶√N", "most / ⁶√N", "time per N (µs)"],
        [
            [
                number(n),
                float(size.steps.mean()),
                float(size.steps.mean() / n ** (1 / 6)),
                float(size.steps.max() / n ** (1 / 6)),
                size.microseconds,
            ]
            for size, n in zip(drawn, N, strict=True)
        ],
    )
    if wrong == 0 and abs(slope - 1 / 6) <= 0.01:
        report.verdict("holds", "Every answer compared is the least one, and steps grow like the sixth root of N.")
    elif wrong == 0:
        report.verdict("caveat", "Every answer compared is the least one, but steps do not grow like the sixth root.")
    else:
        report.verdict("not-shown", "Some answers are not the least ones.")
    return report


class _Size:
    """Random N within half of 10^power and one and a half times it, solved and looked over."""

    def __init__(self, power: int, samples: int, generator: np.random.Generator) -> None:
        self.power = power
        # two draws, because one does not reach beyond 63 bits
        whole, rest = generator.integers(0, 10 ** (power // 2), samples), generator.integers(0, 10**9, samples)
        unit = 10 ** (power - power // 2)
        numbers = [10**power // 2 + int(w) * unit + int(r) * unit // 10**9 for w, r in zip(whole, rest, strict=True)]
        started = time.perf_counter()
        if power <= 18:
            columns = [column.tolist() for column in min_abc_batch(numbers)]
        else:
            columns = [list(column) for column in zip(*(min_abc(n) for n in numbers), strict=True)]
        self.microseconds = (time.perf_counter() - started) / samples * 1e6
        total, a, b, c, steps = columns
        self.steps = np.array(steps, dtype=float)
        rows = list(zip(numbers, total, a, b, c, steps, strict=True))
        self.broken = sum(a * b + c != n or a + b + c != total or min(a, b, c) < 0 for n, total, a, b, c, _ in rows)
        self.unlike = sum(tuple(row[1:]) != tuple(min_abc(row[0])) for row in rows[: samples // 4])
        self.share = max(steps / ((4 * n**0.5 + 1) ** 0.5 + 2) for n, *_, steps in rows)


def _by_trying_every_a(N: NDArray[np.int64]) -> NDArray[np.int64]:
    """One b less costs a - 1 more, so the best b of each a is the largest, floor(N / a); a need not pass sqrt N."""
    best = N.copy()
    for a in range(1, int(np.sqrt(N[-1])) + 1):
        best = np.minimum(best, np.where(a <= N, a + N // a + N % a, best))
    return best
