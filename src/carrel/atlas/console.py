"""The atlas in a terminal: lists of methods, what a method can be asked, progress of a run, and its result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table as Grid
from rich.text import Text

from carrel.atlas.card import FAMILIES, Card
from carrel.atlas.parts import Cell, Table, cell, number, rough
from carrel.atlas.result import VERDICTS, Result
from carrel.atlas.runner import Job, Runner
from carrel.atlas.textplot import plot

_MARKS = {"holds": ("✓", "green"), "caveat": ("~", "yellow"), "not-shown": ("✗", "red")}
_WIDEST = 100


def print_methods(
    cards: Sequence[Card], results: Mapping[str, Result | None], *, console: Console | None = None
) -> None:
    """One line a method, by family: slug, title, how its claim stands."""
    out = terminal(console)
    for family, title in FAMILIES.items():
        mine = sorted((card for card in cards if card.family == family), key=lambda card: card.title.casefold())
        if not mine:
            continue
        grid = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
        grid.add_column(no_wrap=True)
        grid.add_column(ratio=1)
        grid.add_column(no_wrap=True)
        for card in mine:
            result = results.get(card.slug)
            state = _verdict(result.verdict) if result else Text("not run yet", style="dim")
            grid.add_row(Text(card.slug, style="bold"), Text(card.title), state)
        out.print(Text(title, style="dim"))
        out.print(Padding(grid, (0, 0, 1, 2)))
    out.print(Text("carrel run SLUG runs one; carrel run SLUG --help shows what can be set.", style="dim"))


def print_parameters(card: Card | None, *, console: Console | None = None) -> None:
    """The usage of ``carrel run``; for a card, its parameters with range, default and meaning."""
    out = terminal(console)
    out.print(Text(f"Usage: carrel run {card.slug if card else 'SLUG'} [--PARAMETER VALUE]… [OPTIONS]\n"))
    if card is None:
        out.print(Text("Run the experiment of a method: checks, verdict, tables and plots.\n"))
    else:
        out.print(Text(card.title, style="bold"))
        out.print(Text(card.claim + "\n"))
        grid = _grid(("Parameter", "default", "may be", ""), numeric=())
        for parameter in card.parameters:
            name = Text("--" + parameter.name.replace("_", "-"), style="bold")
            default, quick = _plain(parameter.default), _plain(parameter.value(quick=True))
            if quick != default:
                default += f", quick {quick}"
            grid.add_row(name, Text(default), Text(parameter.range), Text(parameter.help))
        if card.parameters:
            out.print(grid)
        out.print()
    options = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    for option, meaning in (
        ("--seeds N", "how many seeds, 3 by default"),
        ("--quick", "the short form"),
        ("--fresh", "run even if this result is kept"),
        ("--json", "print JSON"),
        ("--html FILE", "also write one self-contained page with interactive figures"),
        ("--data DIR", "the data folder, else CARREL_DATA"),
    ):
        options.add_row(Text(option, style="bold"), Text(meaning))
    out.print(options)
    if card is None:
        out.print(Text("\ncarrel methods lists the methods; carrel run SLUG --help shows what one takes."))


def named_parameters(words: Iterable[str], card: Card) -> dict[str, str]:
    """``--length 256`` and ``--length=256`` as a mapping; hyphens and underscores are the same. Raises ValueError."""
    values: dict[str, str] = {}
    words = iter(words)
    for word in words:
        if not word.startswith("--"):
            raise ValueError(
                f"unexpected {word!r}; parameters are written --name value, see carrel run {card.slug} --help"
            )
        name, given, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if not given:
            following = next(words, None)
            if following is None:
                raise ValueError(f"--{name} needs a value; see carrel run {card.slug} --help")
            value = following
        values[name] = value
    return values


def show_progress(job: Job, runner: Runner, *, quiet: bool = False, console: Console | None = None) -> Job:
    """Wait for a job with a bar on standard error: place in the queue, seed, note, time left. Ctrl-C cancels it."""
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
            task = bar.add_task(job.slug, total=1.0, left="")
            while not job.finished:
                bar.update(task, description=_doing(job), completed=job.fraction, left=_left(job))
                try:
                    runner.wait(job, timeout=0.25)
                except TimeoutError:
                    continue
    except KeyboardInterrupt:
        runner.cancel(job.id)
        raise
    return job


def print_result(result: Result, card: Card | None = None, *, console: Console | None = None) -> None:
    """The verdict, the checks, the tables and the curves of a result, in the width of the terminal."""
    out = terminal(console)
    family = f"  {FAMILIES[card.family]}" if card else ""
    out.print(Text.assemble((result.title, "bold"), (family, "dim")))
    lines = Grid(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    lines.add_column(style="dim", no_wrap=True)
    lines.add_column(ratio=1)
    agree = sum(state == result.verdict for state in result.verdicts)
    many = f", {agree} seeds of {len(result.seeds)}" if len(result.seeds) > 1 and agree else ""
    lines.add_row("Claim", Text(result.claim))
    lines.add_row("Found", Text.assemble(_verdict(result.verdict), many, ". ", result.finding))
    out.print(Padding(lines, (0, 0, 1, 0)))
    if result.checks:
        _print_checks(result, out)
    for table in result.tables:
        print_table(table, out)
    for curve in result.curves:
        out.print(plot(curve, width=out.width, height=10))
        out.print()
    given = ", ".join(f"{name} {_plain(value)}" for name, value in result.parameters.items())
    facts = [f"{number(result.seconds)} s", given, result.machine, result.date[:16].replace("T", " ")]
    if result.quick:
        facts.insert(0, "quick form")
    out.print(Text(" · ".join(fact for fact in facts if fact), style="dim"))


def _print_checks(result: Result, out: Console) -> None:
    many = len(result.seeds)
    grid = _grid(("Check", f"worst of {many}" if many > 1 else "value", "bound", ""), numeric=(1, 2))
    for check in result.checks:
        state = Text("✓ holds", style="green") if check.passed else Text("✗ fails", style="bold red")
        grid.add_row(Text(check.name), Text(number(check.worst)), Text(check.bound), state)
    out.print(grid)
    out.print()


def print_table(table: Table, out: Console) -> None:
    """A table with its title, numbers to the right."""
    numeric = [
        k
        for k in range(len(table.columns))
        if all(isinstance(row[k], int | float) or row[k] is None for row in table.rows)
    ]
    grid = _grid(table.columns, numeric=numeric)
    for at, row in enumerate(table.rows):
        spread = table.spread[at] if table.spread else (None,) * len(row)
        cells = [Text(cell(value)) for value in row]
        for text, half in zip(cells, spread, strict=True):
            if half is not None:
                text.append(f" ±{rough(half)}", style="dim")
        grid.add_row(*cells)
    out.print(Text(table.title, style="bold"))
    out.print(grid)
    out.print()


def _grid(columns: Iterable[str], numeric: Iterable[int]) -> Grid:
    """Numbers stay whole: their columns break at the unit, and where room is short it is the texts that fold."""
    right = set(numeric)
    grid = Grid(
        box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False, header_style="dim", border_style="dim"
    )
    for k, column in enumerate(columns):
        if k in right:
            grid.add_column(Text(column.replace(" (", "\n(")), justify="right", no_wrap=True)
        else:
            grid.add_column(Text(column), overflow="fold")
    return grid


def _plain(value: Cell) -> str:
    """A parameter's value as it is typed."""
    return cell(value) if isinstance(value, bool) else str(value)


def _verdict(state: str) -> Text:
    mark, colour = _MARKS[state]
    return Text(f"{mark} {VERDICTS[state]}", style=colour)


def _doing(job: Job) -> str:
    if job.state == "queued":
        return f"{job.slug}: number {job.position} in the queue"
    return f"{job.slug}: {job.note}" if job.note else job.slug


def _left(job: Job) -> str:
    return time_left(None if job.finished else job.eta_s)


def time_left(seconds: float | None) -> str:
    """How long it will take yet, in words; empty where that is not known."""
    if seconds is None:
        return ""
    return f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left"


def terminal(console: Console | None) -> Console:
    """The terminal's width up to where lines stay readable; nothing in a text is taken for markup."""
    out = console or Console(highlight=False, markup=False, emoji=False)
    if console is None and out.width > _WIDEST:
        out.width = _WIDEST
    return out
