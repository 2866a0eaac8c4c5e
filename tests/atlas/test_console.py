"""The terminal: everything of a result fits 80 columns, nothing in a text is taken for markup."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from carrel.atlas.console import print_methods, print_parameters, print_result, show_progress
from carrel.atlas.report import Report, Result

TRICKY = "[bold]not markup[/bold] :smile: 100%"


def written(call, *arguments, width: int = 80) -> str:
    out = io.StringIO()
    call(*arguments, console=Console(file=out, width=width, highlight=False, markup=False, emoji=False))
    return out.getvalue()


def result(*, passed: bool = True, verdict="holds", quick: bool = False) -> Result:
    reports = []
    for seed in range(3):
        report = Report("made-up")
        report.check("Accuracy", 0.99 - seed / 100, low=0.95)
        report.check("Whole against single steps", 3e-15 if passed else float("nan"), high=1e-10)
        report.curve(
            TRICKY, x=[1, 10, 100], y={"first": [1, 2, 3 + seed]}, x_label="steps", y_label="loss (nats)", log="x"
        )
        report.table("Numbers", ["what", "value"], [[TRICKY, 1.5 + seed], ["n", 12345]])
        report.verdict(verdict, "It adds up.")
        reports.append(report)
    return Result.of(
        reports,
        title="A made-up method",
        claim=TRICKY,
        seconds=41.2,
        seeds=(0, 1, 2),
        parameters={"size": 4, "on": True},
        machine="A processor, 2 cores",
        date="2026-01-02T03:04:05+00:00",
        quick=quick,
    )


def test_a_result_shows_verdict_checks_tables_curves_and_how_it_came_about(workshop):
    workshop.add("made-up")
    text = written(print_result, result(), workshop.catalogue["made-up"])
    for words in (
        *("✓ holds, 3 seeds of 3", "It adds up.", "worst of 3", "0.97", "≥ 0.95", "3·10⁻¹⁵", "≤ 10⁻¹⁰"),
        *(TRICKY, "2.5 ±1", "12,345", "loss (nats)", "steps", "size 4, on yes", "41.2 s", "A processor, 2 cores"),
        "2026-01-02 03:04",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_a_failed_check_says_so(workshop):
    workshop.add("made-up")
    text = written(print_result, result(passed=False, verdict="not-shown"), workshop.catalogue["made-up"])
    assert "not a number" in text
    assert "✗ fails" in text
    assert "✗ does not show" in text


def test_a_narrow_terminal_still_shows_everything(workshop):
    workshop.add("made-up")
    text = written(print_result, result(quick=True), workshop.catalogue["made-up"], width=40)
    assert "✓ holds" in text
    assert "quick form" in text
    assert max(map(len, text.splitlines())) <= 40


def test_methods_are_listed_by_family_with_the_state_of_their_claim(workshop):
    workshop.add("made-up")
    workshop.add("other")
    cards = list(workshop.catalogue.values())
    text = written(print_methods, cards, {"made-up": result(verdict="caveat"), "other": None})
    assert "Theory" in text
    assert "~ holds with a caveat" in text
    assert "not run yet" in text


def test_parameters_are_shown_with_default_range_and_meaning(workshop):
    workshop.add("made-up")
    text = written(print_parameters, workshop.catalogue["made-up"])
    for words in ("carrel run made-up", "--size", "4, quick 2", "1 to 100 things", "how many", "--html FILE"):
        assert words in text
    assert "carrel run SLUG" in written(print_parameters, None)


@pytest.mark.parametrize("quiet", [False, True])
def test_progress_waits_for_the_job_and_is_silent_when_asked_or_piped(workshop, runner_of, quiet):
    workshop.add("made-up")
    runner = runner_of()
    out = io.StringIO()
    console = Console(file=out, force_terminal=not quiet, width=80)
    job = show_progress(runner.submit("made-up"), runner, quiet=quiet, console=console)
    assert job.state == "done"
    assert ("made-up" in out.getvalue()) is not quiet
    assert show_progress(job, runner, quiet=True) is job


def test_ctrl_c_cancels_the_job(workshop, runner_of, monkeypatch):
    workshop.add("made-up", "import time\ndef run(*, seed, size):\n    time.sleep(600)\n")
    runner = runner_of()
    job = runner.submit("made-up")

    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        show_progress(job, runner, quiet=True)
    assert runner.wait(job, timeout=60).state == "cancelled"
