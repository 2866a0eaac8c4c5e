"""Write docs/benchmarks.md from the results that are kept.

    python -m benchmarks.page

The page holds no figure of its own: every number is read from benchmarks/results/, losses too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent.parent
RESULTS, PAGE = _ROOT / "benchmarks" / "results", _ROOT / "docs" / "benchmarks.md"
_HEAD = """\
# Benchmarks

How long our side takes and how many times as long its peers do: medians of the times, and of the ratios round by
round. Every side was checked first, then all ran in turn in one process. A promise is the least ratio that we hold
ourselves to; one that was missed says so. Ratios travel between machines better than times do. Measure on yours with
`python -m benchmarks [CASE…]`; `python -m benchmarks.page` then writes this page.
"""


def results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What is kept of the cases, by machine and name."""
    kept = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    cases = [result for result in kept if "case" in result and "sides" in result]
    return sorted(cases, key=lambda result: (result["machine"]["processor"], result["case"], result["threads"]))


def page(kept: list[dict[str, Any]]) -> str:
    """The page, in Markdown."""
    bars = [bar for result in kept for bar in result["bars"]]
    missed = [
        f"- {result['case']}: {bar['peer']} takes {bar['ratio']:.3g} times as long, promised {bar['low']:.3g}"
        for result in kept
        for bar in result["bars"]
        if not bar["passed"]
    ]
    lines = [_HEAD, f"Of {len(bars)} promises {len(bars) - len(missed)} hold.{' Missed:' if missed else ''}", ""]
    lines += [*missed, ""] if missed else []
    machine = None
    for result in kept:
        here = result["machine"]["processor"]
        if here != machine:
            machine = here
            lines += [f"## {machine}", ""]
        lines += _case(result)
    return "\n".join(lines).rstrip("\n") + "\n"


def _case(result: dict[str, Any]) -> list[str]:
    promised = {bar["peer"]: bar for bar in result["bars"]}
    counted = any("peak_mib" in side for side in result["sides"])
    heads = ["side", "ms", "times ours", "promised", *(["peak MiB"] if counted else [])]
    lines = [
        f"### {result['case']}",
        "",
        f"{_sentence(result['about'])} {_threads(result['threads'])}, {result['date']}, {_versions(result)}.",
        "",
        f"| {' | '.join(heads)} |",
        f"| --- |{' ---: |' * (len(heads) - 1)}",
    ]
    for side in result["sides"]:
        bar = promised.get(side["name"])
        promise = "" if bar is None else f"{bar['low']:.3g}{'' if bar['passed'] else ', missed'}"
        cells = [side["name"], f"{side['median_ms']:.3g}", f"{side['ratio']:.3g}", promise]
        lines.append(f"| {' | '.join(cells + ([_peak(side)] if counted else []))} |")
    lines += [f"\nNot here: {name}, {why}." for name, why in result["absent"].items()]
    return [*lines, ""]


def _peak(side: dict[str, Any]) -> str:
    return f"{side['peak_mib']:.3g}" if "peak_mib" in side else ""


def _sentence(about: str) -> str:
    return f"{about[:1].upper()}{about[1:]}."


def _threads(count: int) -> str:
    return "One thread" if count == 1 else f"{count} threads"


def _versions(result: dict[str, Any]) -> str:
    """Of torch, and of the peers that some side is."""
    sides = " ".join(side["name"] for side in result["sides"])
    told = {"torch", *(name for name in result["versions"] if name in sides)}
    return ", ".join(f"{name} {version}" for name, version in result["versions"].items() if name in told)


if __name__ == "__main__":
    PAGE.write_text(page(results()), encoding="utf-8")
    print(f"docs/benchmarks.md: {len(results())} cases")
