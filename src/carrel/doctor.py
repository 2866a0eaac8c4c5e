"""What ``carrel doctor`` looks at. Every finding says what is so and, where it is not well, what to do."""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from carrel import __version__

_EXTRAS = {
    "lab": ("scipy", "sklearn", "plotly"),
    "site": ("fastapi", "uvicorn", "jinja2", "sqlalchemy", "alembic", "tantivy", "bibtexparser", "pylatexenc"),
}

# Runs in a process of its own: this one must stay without torch, and a broken torch must not take it down.
_LIBRARY = """
import json, time
start = time.perf_counter()
import torch
from carrel.ops import linear_scan
a = torch.full((1, 64, 8), 0.5)
h, last = linear_scan(a, torch.ones(1, 64, 8), backend="cpu")
print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads(), "gpu": torch.cuda.is_available()
    and torch.cuda.get_device_name() or None, "right": bool((last - 2).abs().max() < 1e-5),
    "seconds": time.perf_counter() - start}))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: its name, whether it is well, what was seen, and what to do if it is not well."""

    name: str
    well: bool
    seen: str
    advice: str = ""

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def examine(data: Path | None = None, *, quiet: bool = False) -> list[Finding]:
    """Look at Python, extras, library, assets, data folder, shelf and atlas; never raises for what it finds."""
    findings = []
    for look in (_python, _extras, _library, _assets, _atlas, lambda: _shelf(data)):
        if not quiet and look is _library:
            print("trying the library in a process of its own, a few seconds …", file=sys.stderr)
        try:
            findings += list(look())
        except Exception as error:  # a doctor reports, whatever breaks
            name = getattr(look, "__name__", "").strip("_<>") or "shelf"
            findings.append(Finding("shelf" if name == "lambda" else name, False, str(error), ""))
    return findings


def _python() -> Iterator[Finding]:
    well = sys.version_info >= (3, 11)
    yield Finding(
        "python", well, f"{platform.python_version()}, carrel {__version__}", "" if well else "use Python 3.11+"
    )


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        yield Finding(
            f"extra [{extra}]",
            not missing,
            f"lacks {', '.join(missing)}" if missing else "complete",
            f"pip install 'carrel[{extra}]'" if missing else "",
        )


def _library() -> Iterator[Finding]:
    done = subprocess.run([sys.executable, "-c", _LIBRARY], capture_output=True, text=True, timeout=180, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        yield Finding("library", False, last, "reinstall torch and numba: make clean, then make run")
        return
    seen = json.loads(done.stdout.splitlines()[-1])
    where = seen["gpu"] or "no GPU, kernels run on the processor"
    text = (
        f"torch {seen['torch']}, {seen['threads']} threads, {where}; a scan ran in {seen['seconds']:.1f} s with start"
    )
    yield Finding("library", seen["right"], text, "" if seen["right"] else "the numba kernel gave a wrong result")


def _assets() -> Iterator[Finding]:
    built = (Path(__file__).parent / "web" / "static" / ".stamp").is_file()
    advice = "" if built else "run python hatch_build.py in the checkout, or install the wheel"
    yield Finding("assets", built, "built" if built else "the pages' styles and scripts are not built", advice)


def _atlas() -> Iterator[Finding]:
    from carrel.atlas.catalogue import load_catalogue

    catalogue = load_catalogue()
    without = [slug for slug in catalogue if catalogue.result(slug) is None]
    text = f"{len(catalogue)} methods" + (f"; no result yet for {', '.join(without)}" if without else "")
    yield Finding("atlas", not without, text, f"in the checkout: make claims SLUGS={without[0]}" if without else "")


def _shelf(data: Path | None) -> Iterator[Finding]:
    from carrel.desk import open_desk
    from carrel.folder import data_folder

    folder = data_folder(data)
    free = shutil.disk_usage(folder).free / 2**30
    yield Finding("data folder", free > 0.2, f"{folder}, {free:.1f} GiB free", "" if free > 0.2 else "make room")
    with open_desk(folder) as desk:
        desk.index.update(desk.store)
        with desk.store.begin() as papers:
            count = papers.count()
        indexed = desk.index.count()
        text = f"{count} papers, {indexed} in the search index"
        yield Finding(
            "shelf", count == indexed, text, "" if count == indexed else f"delete {folder / 'index'}: it is made anew"
        )


def print_findings(findings: list[Finding]) -> None:
    """The findings as a table, a mark and a word each."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for finding in findings:
        mark = "[green]✓ well[/]" if finding.well else "[red]✗ look[/]"
        advice = f"\n→ {finding.advice}" if finding.advice else ""
        table.add_row(mark, escape(finding.name), escape(finding.seen + advice))
    Console().print(table)
