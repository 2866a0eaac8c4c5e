"""The command ``carrel``. Commands are thin: they read options, ask the desk, and print.

Exit status: 0 done; 1 a check failed or nothing was found; 2 wrong usage or bad input, with one sentence on stderr.
Rooms load inside the commands, so that ``carrel --help`` answers at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from carrel import __version__

if TYPE_CHECKING:
    from carrel.atlas.catalogue import Card

_STOPPED = 130  # what the parser makes of Ctrl+C

app = typer.Typer(
    name="carrel",
    help="A desk for research: read the paper, run the method.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Data = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="The data folder (else CARREL_DATA).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; every expected error becomes one sentence on stderr and exit status 2."""
    try:
        status = app(args=arguments, standalone_mode=False)
    except (ValueError, LookupError, OSError) as error:
        if isinstance(error, (KeyError, IndexError)):  # ours carry sentences; these are faults in the program
            raise
        _say(str(error))
        sys.exit(2)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _say(f"{error.format_message()}  (carrel --help shows the usage)")  # wrong usage, from the parser
        sys.exit(2)
    if status == _STOPPED:
        _say("stopped; what was finished is kept")
    sys.exit(status if isinstance(status, int) else 0)


def _say(sentence: str) -> None:
    print(f"carrel: {sentence}", file=sys.stderr)


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"carrel {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


@app.command()
def serve(
    data: Data = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free port.")] = 8477,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the site in the browser.")] = False,
) -> None:
    """Open the site on this machine (127.0.0.1 only)."""
    from carrel.web.serve import serve as run_site

    run_site(data, port=port, open_browser=open_browser)


@app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE…", help="Daily JSON lines, Kaggle arXiv, BibTeX.")],
    data: Data = None,
    rejects: Annotated[Path | None, typer.Option(metavar="DIR", help="Where rejected records go.")] = None,
    as_json: AsJson = False,
) -> None:
    """Bring papers in from files; formats and compression are found out."""
    from carrel.desk import open_desk
    from carrel.papers.console import importing, print_import
    from carrel.papers.ingest import UnreadableFile

    reports, troubles = [], []
    with open_desk(data) as desk, importing(quiet=as_json) as on_progress:
        for file in files:
            try:
                reports += desk.import_files([file], rejects=rejects, on_progress=on_progress)
            except UnreadableFile as error:  # the others come in all the same
                troubles.append(str(error))
    if as_json:
        _print_json([report.to_json() for report in reports])
    elif reports:
        print_import(reports)
    troubles += [report.broken for report in reports if report.broken]
    if troubles:
        raise ValueError("; ".join(troubles))


@app.command()
def search(
    words: Annotated[list[str], typer.Argument(metavar="QUERY…")],
    data: Data = None,
    limit: Annotated[int, typer.Option(min=1, max=200)] = 10,
    sort: Annotated[str, typer.Option(help="relevance, newest or oldest.")] = "relevance",
    as_json: AsJson = False,
) -> int:
    """Find papers: words, "phrases", author:, cat:, year:, -not."""
    from carrel.desk import open_desk
    from carrel.papers.console import print_found

    if sort not in ("relevance", "newest", "oldest"):
        raise ValueError(f"--sort is relevance, newest or oldest, not {sort!r}")
    with open_desk(data) as desk:
        desk.refill()
        found = desk.browse.search(" ".join(words), limit=limit, sort=sort)
        if as_json:
            _print_json(found.to_json())
        else:
            print_found(found)
    return 0 if found.papers else 1


@app.command()
def methods(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    as_json: AsJson = False,
) -> int:
    """List the methods that run here, and how their claims stand."""
    from carrel.atlas.catalogue import load_catalogue

    catalogue = load_catalogue()
    cards = [card for card in catalogue.values() if family in (None, card.family)]
    if not cards:
        _say(
            f"no method of the family {family!r}; there are {', '.join(sorted({c.family for c in catalogue.values()}))}"
        )
        return 1
    if as_json:
        _print_json([_method_json(card, catalogue.result(card.slug)) for card in cards])
    else:
        from carrel.atlas.console import print_methods

        print_methods(cards, {card.slug: catalogue.result(card.slug) for card in cards})
    return 0


def _method_json(card: Card, result: Any) -> dict[str, object]:
    return {
        "slug": card.slug,
        "title": card.title,
        "family": card.family,
        "module": card.module,
        "claim": card.claim,
        "verdict": result.verdict if result else None,
        "papers": [paper.id for paper in card.papers],
    }


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    options_metavar="[--PARAMETER VALUE]… [--seeds N] [--quick] [--fresh] [--json] [--html FILE]",
)
def run(
    context: typer.Context,
    slug: Annotated[str | None, typer.Argument(help="Which method; see carrel methods.")] = None,
    data: Data = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="How many seeds.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="The short form.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run even if this result is kept.")] = False,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write one self-contained page.")] = None,
) -> int:
    """Run the experiment of a method: checks, verdict, tables and plots."""
    from carrel.atlas.catalogue import load_catalogue
    from carrel.atlas.console import named_parameters, print_parameters, print_result, show_progress
    from carrel.atlas.html import page
    from carrel.atlas.runner import Runner
    from carrel.folder import data_folder, runs_folder

    catalogue = load_catalogue()
    wants_help = any(word in ("--help", "-h") for word in context.args) or slug in (None, "--help", "-h")
    if slug in (None, "--help", "-h"):
        print_parameters(None)
        return 0 if wants_help and slug else 2
    card = catalogue[slug]
    if wants_help:
        print_parameters(card)
        return 0
    _check_page(html)
    values = card.parse(named_parameters(context.args, card), quick=quick)
    with Runner(catalogue, cache=runs_folder(data_folder(data))) as runner:
        job = runner.submit(slug, values, seeds=seeds, quick=quick, fresh=fresh)
        show_progress(job, runner, quiet=as_json)
    if job.result is None:
        raise ValueError(f"{slug} did not finish: {job.error or job.state}")
    if html is not None:
        html.write_text(page(job.result, card), encoding="utf-8")
    if as_json:
        print(job.result.text(), end="")
    else:
        print_result(job.result, card)
        if html is not None:
            print(f"\nThe figures are in {html}")
    return 0 if job.result.passed else 1


@app.command()
def compare(
    mixers: Annotated[list[str] | None, typer.Argument(metavar="MIXER…", help="None: list what there is.")] = None,
    task: Annotated[str | None, typer.Option(help="On what; none: list the tasks.")] = None,
    data: Data = None,
    length: Annotated[int | None, typer.Option(help="Tokens; else the task's own.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; 3 by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Training steps; else the task's own.")] = None,
    batch: Annotated[int | None, typer.Option(help="Sequences in a step; else the task's own.")] = None,
    dim: Annotated[int | None, typer.Option(help="Width; 32 by default.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks; 2 by default.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine or constant.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run even what is kept.")] = False,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write one self-contained page.")] = None,
) -> int:
    """Put mixers side by side on one task: accuracy, speed, state, memory."""
    from carrel.atlas.catalogue import load_catalogue
    from carrel.atlas.compare.comparison import Comparison
    from carrel.atlas.compare.console import print_offers, print_outcome, show_comparison
    from carrel.atlas.compare.html import page
    from carrel.atlas.compare.plan import Plan
    from carrel.atlas.runner import Runner
    from carrel.folder import data_folder, runs_folder

    catalogue = load_catalogue()
    if task is None:
        print_offers(catalogue)
        return 2 if mixers else 0
    given = {"length": length, "seeds": seeds, "steps": steps, "batch": batch}
    plan = Plan.of(mixers or [], task, {**given, "dim": dim, "depth": depth, "schedule": schedule}, catalogue)
    _check_page(html)
    with Runner(catalogue, cache=runs_folder(data_folder(data))) as runner:
        comparison = show_comparison(Comparison(plan, runner, fresh=fresh), quiet=as_json)
    if comparison.outcome is None:
        raise ValueError(comparison.error or "the comparison was stopped; what was finished is kept")
    if html is not None:
        html.write_text(page(comparison.outcome), encoding="utf-8")
    if as_json:
        print(comparison.outcome.text(), end="")
    else:
        print_outcome(comparison.outcome)
        if html is not None:
            print(f"\nThe figures are in {html}")
    return 0


def _check_page(html: Path | None) -> None:
    """What a page will need is asked for before the run, not after it."""
    from carrel.atlas.html import plotly_source

    if html is not None:
        plotly_source()
        if not html.absolute().parent.is_dir():
            raise ValueError(f"--html {html}: there is no folder {html.absolute().parent}")


@app.command()
def nbce(
    model: Annotated[Path, typer.Option(metavar="PATH", help="A checkpoint of transformers on this machine.")],
    ask: Annotated[str, typer.Option(metavar="QUESTION", help="What to ask of all files.")],
    context: Annotated[list[Path], typer.Option(metavar="FILE", help="A text to answer from; any number of them.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE…", help="More of them.")] = None,
    pooling: Annotated[str, typer.Option(help="min-entropy, mean or max.")] = "min-entropy",
    beta: Annotated[float, typer.Option(help="How much of the model's own opinion is taken away.")] = 0.25,
    top_p: Annotated[float, typer.Option(help="Likeliest tokens kept, by their probability.")] = 0.95,
    tokens: Annotated[int, typer.Option(min=1, help="At most so many.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="Ends the answer; any number.")] = None,
    template: Annotated[str | None, typer.Option(help="The prompt, with {context} and {question}.")] = None,
    context_batch: Annotated[int | None, typer.Option(min=1, help="Files read together; else all.")] = None,
    prune: Annotated[
        int | None, typer.Option(min=1, help="Give up files that none of the last so many tokens came from.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; else a GPU if there is one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question from files that need not fit into the model together."""
    from carrel.decoding.console import answer, load_checkpoint, seeded, to_json
    from carrel.decoding.nbce import NBCE, TEMPLATE

    files = [*context, *(more or [])]
    language_model, tokenizer = load_checkpoint(model, device)
    reader = NBCE(language_model, tokenizer, pooling, beta, top_p, context_batch, prune=prune)
    steps = answer(
        reader,
        files,
        ask,
        quiet=as_json,
        template=(template or TEMPLATE),
        max_new_tokens=tokens,
        temperature=temperature,
        generator=seeded(language_model, seed),
        stop=stop or (),
    )
    if as_json:
        _print_json(to_json(steps, files, ask))


@app.command()
def doctor(data: Data = None, as_json: AsJson = False) -> int:
    """Look at this installation: what works, what does not, and what to do."""
    from carrel.doctor import examine, print_findings

    findings = examine(data, quiet=as_json)
    if as_json:
        _print_json([finding.to_json() for finding in findings])
    else:
        print_findings(findings)
    return 0 if all(finding.well for finding in findings) else 1
