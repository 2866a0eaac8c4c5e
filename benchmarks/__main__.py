"""Time our kernels side by side with their peers.

    python -m benchmarks [CASE…] [--threads N] [--rounds N] [--json OUT]

A case is checked first: an op that is wrong is not timed. Then its sides run in turn, in one process; the figures are
medians, the ratios medians over rounds. Machine, versions and every bar are written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import sys
from pathlib import Path

import torch

from .case import Case, Problem
from .cases import CASES
from .machine import machine, slug, versions
from .memory import peak_bytes
from .timing import Timing, interleave

_RESULTS = Path(__file__).parent / "results"


def run(case: Case, *, threads: int, rounds: int | None) -> dict[str, object]:
    """Check, time and judge one case."""
    torch.set_num_threads(threads)
    device = torch.device(case.device)
    problem = case.build(device)
    error = problem.check()
    if not error <= problem.tolerance:
        raise SystemExit(f"{case.name}: wrong by {error:.1e} (allowed {problem.tolerance:.0e}), so nothing was timed")
    timings = interleave(
        problem.sides, rounds=rounds or case.rounds, inner=case.inner, warmup=case.warmup, device=device
    )
    ours = timings[0]
    ratios = {t.name: t.over(ours) for t in timings}
    peaks = {name: peak_bytes(side, device) for name, side in problem.sides.items()} if problem.memory else {}
    return {
        "case": case.name,
        "about": case.about,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "threads": threads,
        "rounds": rounds or case.rounds,
        "error": error,
        "machine": machine(device),
        "versions": versions(),
        "sides": [_side(t, ratios[t.name], problem, peaks.get(t.name)) for t in timings],
        "absent": problem.absent,
        "bars": [
            {"peer": bar.peer, "low": bar.low, "ratio": ratios[bar.peer], "passed": ratios[bar.peer] >= bar.low}
            for bar in case.bars
            if bar.peer in ratios
        ],
    }


def _side(timing: Timing, ratio: float, problem: Problem, peak: int | None) -> dict[str, object]:
    found: dict[str, object] = {
        "name": timing.name,
        "median_ms": timing.median * 1e3,
        "best_ms": min(timing.seconds) * 1e3,
        "ratio": ratio,
    }
    if problem.moved is not None and timing.name in (next(iter(problem.sides)), "copy of as many bytes"):
        found["gb_per_s"] = problem.moved / timing.median / 1e9
    if peak is not None:
        found["peak_mib"] = peak / 2**20
    return found


def show(result: dict[str, object]) -> None:
    """A table, with rich where it is installed."""
    title = f"{result['case']}: {result['about']}; {result['threads']} thread(s), error {result['error']:.1e}"
    rows = [
        (
            side["name"],
            *(f"{side[key]:.4g}" for key in ("median_ms", "best_ms", "ratio")),
            f"{side['gb_per_s']:.0f}" if "gb_per_s" in side else "",
            f"{side['peak_mib']:.0f}" if "peak_mib" in side else "",
        )
        for side in result["sides"]  # type: ignore[attr-defined]
    ]
    heads = ("side", "median ms", "best ms", "times ours", "GB/s", "peak MiB")
    notes = [f"{name}: {why}" for name, why in result["absent"].items()]  # type: ignore[attr-defined]
    for bar in result["bars"]:  # type: ignore[attr-defined]
        verdict = "holds" if bar["passed"] else "MISSED"
        notes.append(f"bar {verdict}: {bar['peer']} takes {bar['ratio']:.3g} times ours, promised {bar['low']:.3g}")
    if importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for head in heads:
            table.add_column(head, justify="left" if head == "side" else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        width = max(len(row[0]) for row in rows)
        print(title)
        for row in (heads, *rows):
            print(f"{row[0]:<{width}}", *(f"{cell:>12}" for cell in row[1:]))
    for note in notes:
        print(" ", note)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])  # type: ignore[union-attr]
    every = ", ".join(CASES)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{every}; by default all that fit this machine")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads (default 1)")
    parser.add_argument("--rounds", type=int, help="rounds instead of the case's own number")
    parser.add_argument("--json", type=Path, help="write here instead of benchmarks/results/")
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no case {', '.join(unknown)}; there are {every}")
    here = {"cpu", "cuda"} if torch.cuda.is_available() else {"cpu"}
    chosen = [CASES[name] for name in options.cases] or [c for c in CASES.values() if c.device in here]
    results = []
    for case in chosen:
        if case.device not in here:
            parser.error(f"{case.name} needs a CUDA device")
        result = run(case, threads=options.threads, rounds=options.rounds)
        results.append(result)
        show(result)
        if options.json is None:
            _RESULTS.mkdir(exist_ok=True)
            path = _RESULTS / f"{slug(torch.device(case.device), options.threads)}-{case.name}.json"
            path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if all(bar["passed"] for result in results for bar in result["bars"]) else 1)  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
