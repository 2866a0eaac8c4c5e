"""How imports and finds look in a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from carrel.papers.browse import SearchView
from carrel.papers.ingest import ImportProgress, ImportReport


@contextmanager
def importing(*, quiet: bool = False) -> Iterator[Callable[[ImportProgress], None]]:
    """A progress bar on stderr, by bytes of the file, for the time of an import."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[rows]:,} records"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        tasks: dict[str, object] = {}

        def on_progress(now: ImportProgress) -> None:
            name = now.path.name
            if name not in tasks:
                tasks[name] = progress.add_task(escape(name), total=now.bytes_total, rows=0)
            progress.update(tasks[name], completed=now.bytes_read, rows=now.read)  # type: ignore[arg-type]

        yield on_progress


def print_import(reports: Sequence[ImportReport]) -> None:
    """One row a file: read, new, updated, unchanged, rejected, and how fast."""
    table = Table(box=None, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("file")
    table.add_column("format")
    for name in ("read", "new", "updated", "unchanged", "rejected", "s", "read/s"):
        table.add_column(name, justify="right")
    for report in reports:
        counts = (report.read, report.new, report.updated, report.unchanged, report.rejected)
        rate = report.read / report.seconds if report.seconds else 0.0
        row = (
            escape(report.path.name),
            report.format,
            *(f"{n:,}" for n in counts),
            f"{report.seconds:.1f}",
            f"{rate:,.0f}",
        )
        table.add_row(*row)
    console = Console(emoji=False)  # a title may hold :words: between colons
    console.print(table)
    for report in reports:
        if report.rejects_file:
            console.print(f"rejected records, with reasons: {escape(str(report.rejects_file))}", soft_wrap=True)


def print_found(found: SearchView) -> None:
    """Numbered papers with their day and the methods that can be run for them."""
    console = Console(emoji=False)
    for notice in found.notices:
        console.print(f"[dim]{escape(notice)}[/]")
    if not found.papers:
        console.print("Nothing was found. Fewer or other words may help; author:NAME, cat:cs.LG and year:2023 narrow.")
        return
    console.print(f"[dim]{found.total:,} found[/]")
    table = Table.grid(padding=(0, 2, 1, 0))
    table.add_column(justify="right", style="dim")
    table.add_column()
    for number, paper in enumerate(found.papers, 1):
        when = paper.announced or (paper.submitted.date() if paper.submitted else paper.year) or ""
        authors = ", ".join(paper.authors[:3]) + (" et al." if len(paper.authors) > 3 else "")
        about = f"{authors} · {when} · {paper.arxiv_id or paper.key}"
        methods = "".join(f"\n[cyan]▸ carrel run {slug}[/]" for slug in found.methods.get(paper.key, ()))
        table.add_row(str(number), f"[bold]{escape(paper.title)}[/]\n[dim]{escape(about)}[/]{methods}")
    console.print(table)
