"""Comparisons in a terminal: what can be compared, progress, and the outcome."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table as Grid
from rich.text import Text

from carrel.atlas.catalogue import Catalogue
from carrel.atlas.compare.comparison import Comparison
from carrel.atlas.compare.contender import offers
from carrel.atlas.compare.outcome import Outcome
from carrel.atlas.compare.plan import RATES
from carrel.atlas.compare.problems import PROBLEMS
from carrel.atlas.compare.signature import options_of
from carrel.atlas.console import print_table, terminal, time_left
from carrel.atlas.parts import number
from carrel.atlas.textplot import plot


def print_offers(catalogue: Catalogue, *, console: Console | None = None) -> None:
    """What ``carrel compare`` takes: the mixers with their options, the tasks with their lengths."""
    out = terminal(console)
    out.print(Text("Usage: carrel compare MIXER… --task TASK [OPTIONS]\n"))
    out.print(Text("Train mixers on one task, tuned alike, and put accuracy, speed, state and memory side by side.\n"))
    out.print(Text("Mixers", style="dim"))
    known = offers(catalogue).values()
    out.print(_rows((offer.name, f"{offer.title}: {', '.join(options_of(offer.module))}, mlp") for offer in known))
    out.print(Text("A variant is written mamba:selective=false or s4d:state_dim=8,init=lin.\n"))
    out.print(Text("Tasks", style="dim"))
    out.print(
        _rows((p.name, f"{p.about} (length {p.length}; {p.steps} steps of {p.batch})") for p in PROBLEMS.values())
    )
    rates = ", ".join(number(rate) for rate in RATES)
    out.print(
        Text(
            f"\nEvery mixer gets the same sweep of learning rates ({rates}): on one fixed seed, at a quarter of the "
            "steps. Finished pieces are kept: stop with Ctrl+C and go on with the same command."
        )
    )


def show_comparison(comparison: Comparison, *, quiet: bool = False, console: Console | None = None) -> Comparison:
    """Run it here with a bar on standard error. Ctrl+C stops it; what was finished is kept."""
    err = console or Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[left]}", markup=False, style="dim"),
        console=err,
        transient=True,
        disable=quiet or not err.is_terminal,
    )
    try:
        with bar:
            task = bar.add_task("starting", total=1.0, left="")

            def tell(now: Comparison) -> None:
                left = time_left(None if now.finished else now.eta_s)
                bar.update(task, description=now.note or "starting", completed=now.fraction, left=left)

            comparison.run(tell)
    except KeyboardInterrupt:
        comparison.cancel()
        raise
    return comparison


def print_outcome(outcome: Outcome, *, console: Console | None = None) -> None:
    """The table, what to know of it, and accuracy against steps, in the width of the terminal."""
    out = terminal(console)
    for table in outcome.tables():
        print_table(table, out)
    for caution in outcome.cautions:
        out.print(Text(caution, style="yellow"))
    if outcome.cautions:
        out.print()
    out.print(plot(outcome.curves()[0], width=out.width, height=12))
    out.print()
    out.print(Text(outcome.facts, style="dim"))
    out.print(Text(f"{outcome.seconds:.0f} s · {outcome.date[:16].replace('T', ' ')}", style="dim"))


def _rows(pairs: Iterable[tuple[str, str]]) -> Padding:
    grid = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1)
    for name, about in pairs:
        grid.add_row(Text(name, style="bold"), Text(about))
    return Padding(grid, (0, 0, 0, 2))
