"""A comparison as it goes, with pieces that take no time: joined, kept, resumed, stopped, and what it says."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.compare import plan as plan_module
from carrel.atlas.compare.comparison import Comparison
from carrel.atlas.compare.console import print_offers, print_outcome, show_comparison
from carrel.atlas.compare.html import page
from carrel.atlas.compare.outcome import Outcome, Side, best_rate
from carrel.atlas.compare.plan import RATES, Plan
from carrel.atlas.parts import ReportError
from carrel.atlas.runner import Runner

CATALOGUE = load_catalogue()
TRIAL = """
import time
from pathlib import Path
from carrel.atlas.report import Report, progress

BEST = {"LRU": 0.003, "Mamba": 0.1, "S4D": 0.01}

def run(*, seed, mixer, rate, steps, looks, held_out, length, **rest):
    name = mixer["module"].split(":")[1]
    with (Path(__file__).parent / "calls").open("a") as calls:
        calls.write(f"{name} {rate} {seed} {steps}\\n")
    if name == "S4D" and held_out:
        time.sleep(600)
    report = Report("compare-trial")
    loss = None if rate == 0.03 else abs(rate - BEST[name])
    right = 0.5 + seed / 10 + (0.2 if name == "LRU" else 0)
    report.table("Fresh sequences", ["right", "loss (nats)", "chance"], [[right, loss, 0.125]])
    if looks:
        y = [right / 2, right]
        report.curve("On the way", x=[steps // 2, steps], y=y, x_label="training steps", y_label="right")
    report.verdict("holds", "It learns.")
    return report
"""
SPEED = """
from carrel.atlas.report import Report

COLUMNS = ["parameters", "training (tokens/s)", "decoding (tokens/s)", "state (bytes)", "peak memory (bytes)",
           "training step (s)"]

def run(*, seed, mixer, **rest):
    if mixer["options"].get("state_dim") == 7:
        raise ValueError("LRU wants an even state_dim, not 7")
    report = Report("compare-speed")
    peak = None if mixer["module"].endswith("Mamba") else 2_500_000
    report.table("Costs", COLUMNS, [[12345, 67891.5, 1234.5, 512, peak, 0.002]])
    report.verdict("holds", "It streams.")
    return report
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pieces that answer at once; every trial leaves a line in ``calls``."""
    folder = tmp_path / "stage"
    folder.mkdir()
    (folder / "trial.py").write_text(TRIAL)
    (folder / "speed.py").write_text(SPEED)
    monkeypatch.setattr(plan_module, "_HERE", folder)
    return folder


@pytest.fixture
def runner(tmp_path: Path):
    with Runner(CATALOGUE, cache=tmp_path / "cache") as made:
        yield made


def plan(*mixers: str, **given: object) -> Plan:
    return Plan.of(mixers or ("lru", "mamba"), "copying", {"seeds": 2, **given}, CATALOGUE)


def calls(stage: Path) -> list[str]:
    path = stage / "calls"
    return path.read_text().splitlines() if path.exists() else []


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_every_seed_is_trained_with_the_rate_that_won_the_sweep(stage, runner):
    comparison = Comparison(plan(), runner).run()
    assert (comparison.state, comparison.error) == ("done", "")
    made = calls(stage)
    assert made[:5] == [f"LRU {rate} 1000 100" for rate in RATES]
    assert made[10:] == ["LRU 0.003 0 400", "Mamba 0.1 0 400", "LRU 0.003 1 400", "Mamba 0.1 1 400"]
    lru, mamba = comparison.outcome.sides
    assert (lru.rate, lru.edge) == (0.003, "")
    assert (mamba.rate, mamba.edge) == (0.1, "larger")
    assert lru.right == pytest.approx((0.7, 0.8))
    assert lru.mean == pytest.approx(0.75)
    assert lru.worst == pytest.approx(0.7)
    assert lru.sweep[3] == (0.03, None)
    assert (lru.parameters, lru.state_bytes, lru.peak_bytes, mamba.peak_bytes) == (12345, 512, 2_500_000, None)
    assert lru.on_the_way == ((0.35, 0.7), (0.4, 0.8))
    assert comparison.outcome.chance == 0.125


def test_progress_only_grows_names_what_it_does_and_ends_at_one(stage, runner):
    seen: list[tuple[float, str, str]] = []
    Comparison(plan(), runner).run(lambda now: seen.append((now.fraction, now.note, now.state)))
    fractions = [fraction for fraction, _, _ in seen]
    assert fractions == sorted(fractions)
    assert seen[-1][0::2] == (1.0, "done")
    said = " ".join(note for _, note, _ in seen)
    for words in ("lru: measuring speed and memory", "mamba: trying learning rate 0.01", "lru: training seed 1"):
        assert words in said


def test_asked_again_it_is_there_without_a_run_and_another_seed_costs_that_seed_alone(stage, runner):
    first = Comparison(plan(), runner).run()
    before = len(calls(stage))
    again = Comparison(plan(), runner).run()
    assert again.cached
    assert not first.cached
    assert len(calls(stage)) == before
    assert again.outcome.sides == first.outcome.sides
    Comparison(plan(seeds=3), runner).run()
    assert calls(stage)[before:] == ["LRU 0.003 2 400", "Mamba 0.1 2 400"]
    Comparison(plan(), runner, fresh=True).run()
    assert len(calls(stage)) == 2 * before + 2


def test_stopped_in_the_middle_it_keeps_what_was_finished_and_goes_on_there(stage, runner):
    stuck = Comparison(plan("lru", "s4d"), runner)
    thread = threading.Thread(target=stuck.run)
    thread.start()
    until(lambda: any(line.startswith("S4D 0.01 0") for line in calls(stage)))
    assert 0 < stuck.fraction < 1
    assert stuck.cancel()
    thread.join(30)
    assert (stuck.state, stuck.error, stuck.outcome) == ("cancelled", "", None)
    assert not stuck.cancel()
    before = calls(stage)
    assert before.count("LRU 0.003 0 400") == 1
    other = Comparison(plan("lru"), runner).run()
    assert other.state == "done"
    assert calls(stage)[len(before) :] == ["LRU 0.003 1 400"], "sweep and first seed are kept"


def test_one_who_waited_for_the_same_piece_asks_again_when_the_other_stops(stage, runner):
    first, second = Comparison(plan("s4d"), runner), Comparison(plan("s4d"), runner)
    threads = [threading.Thread(target=one.run) for one in (first, second)]
    for thread in threads:
        thread.start()
    until(lambda: first.note == second.note == "s4d: training seed 0")
    until(lambda: any(line.startswith("S4D 0.01 0") for line in calls(stage)))
    first.cancel()
    threads[0].join(30)
    until(lambda: sum(line.startswith("S4D 0.01 0") for line in calls(stage)) == 2)
    assert second.state == "running"
    second.cancel()
    threads[1].join(30)


def test_a_mixer_that_cannot_be_built_ends_it_before_anything_is_trained(stage, runner):
    comparison = Comparison(plan("mamba", "lru:state_dim=7"), runner).run()
    assert comparison.state == "failed"
    assert comparison.error == "lru:state_dim=7: LRU wants an even state_dim, not 7"
    assert "Traceback" in comparison.log
    assert calls(stage) == []


def test_a_runner_that_is_closed_ends_it_as_if_stopped(stage, runner):
    runner.close()
    assert Comparison(plan(), runner).run().state == "cancelled"


def test_a_rate_that_gave_no_number_is_never_chosen_while_another_did():
    assert best_rate({0.1: None, 0.01: 3.0, 0.001: 2.0}) == 0.001
    assert best_rate({0.1: float("nan"), 0.01: 3.0}) == 0.01
    assert best_rate({0.1: None, 0.01: None}) == 0.1


def side(label: str, *right: float, **other: object) -> Side:
    given: dict[str, object] = {
        "module": "m:M", "options": {}, "mlp": 0.0, "rate": 0.01, "sweep": tuple((rate, 1.0) for rate in RATES),
        "parameters": 17448, "training_tokens_per_s": 123456.0, "decoding_tokens_per_s": 1234.0, "state_bytes": 5632,
        "peak_bytes": 12_345_678, "step_s": 0.01, "at": (50, 100), "on_the_way": tuple((r / 2, r) for r in right),
    }  # fmt: skip
    return Side(label, right=right, **{**given, **other})


def outcome(*sides: Side, seeds: int = 3) -> Outcome:
    numbers = {"steps": 1000, "batch": 32, "dim": 32, "depth": 2, "schedule": "cosine"}
    facts = {"task": "mqar", "length": 64, "seeds": seeds, **numbers}
    return Outcome(facts, 0.03125, sides, 312.4, "2026-01-02T03:04:05+00:00", "A processor, 2 cores", {"torch": "2"})


MADE = outcome(side("mamba", 1.0, 0.99, 0.95), side("s4d:state_dim=<8>", 0.2, 0.3, 0.25, rate=0.001, peak_bytes=None))


def test_an_outcome_survives_json_and_what_is_none_is_refused():
    data = json.loads(MADE.text())
    assert data["mixers"][0]["right"] == {"seeds": [1.0, 0.99, 0.95], "mean": pytest.approx(0.98), "worst": 0.95}
    assert data["mixers"][1]["edge"] == "smaller"
    assert Outcome.from_json(MADE.text()) == MADE
    for text in ("{", "[]", '{"task": "mqar"}'):
        with pytest.raises(ReportError, match="not a comparison"):
            Outcome.from_json(text)


def test_bytes_that_a_token_adds_are_told_where_there_are_any():
    assert "grow" not in MADE.facts
    growing = outcome(side("lru", 0.5), side("gqa", 0.5, token_bytes=256), side("mla", 0.5, token_bytes=96), seeds=1)
    assert growing.facts.endswith("States that grow with every token: gqa by 256 bytes, mla by 96 bytes.")
    assert Outcome.from_json(growing.text()) == growing


def test_the_table_has_what_was_promised():
    main, seeds, rates = MADE.tables()
    assert main.rows[0] == ("mamba", 98.0, 95.0, 17448, 123000, 1230, 5632, 12.3)
    assert main.rows[1][-1] is None
    assert seeds.rows[0] == ("mamba", 100.0, 99.0, 95.0)
    assert rates.rows[1][-1] == "0.001, edge"
    assert "loss after 250 steps" in rates.title
    assert len(outcome(side("mamba", 1.0), seeds=1).tables()) == 2, "one seed needs no table of seeds"


def test_the_figures_are_one_line_a_mixer_and_points_against_two_costs():
    way, time_, state = MADE.curves()
    assert [line.name for line in way.series] == ["mamba", "s4d:state_dim=<8>", "guessing"]
    assert way.series[0].seeds == ((0.5, 1.0), (0.495, 0.99), (0.475, 0.95))
    assert time_.points
    assert state.points
    assert time_.series[0].x == (10.0,)
    assert state.series[1].x == (5632.0,)


def written(show: Callable[..., object], *given: object, width: int = 80) -> str:
    out = io.StringIO()
    show(*given, console=Console(file=out, width=width, highlight=False, markup=False, emoji=False))
    return out.getvalue()


def test_the_terminal_shows_table_seeds_rates_cautions_and_a_plot():
    text = written(print_outcome, MADE)
    read = " ".join(text.split())
    for words in (
        *("Mixers on mqar, length 64: mean of 3 seeds", "17,448", "123,000", "5,632", "12.3", "seed 2", "0.001, edge"),
        *("a smaller", "Peak memory was not measured", "Learning mqar", "training steps", "guessing", "A processor"),
    ):
        assert words in read
    assert max(map(len, text.splitlines())) <= 80


def test_a_narrow_terminal_folds_names_and_not_numbers():
    one = outcome(side("mamba:selective=false", 1.0, 1.0, 1.0))
    assert "mamba:selective=false " in written(print_outcome, one, width=100)
    assert "17,448     123,000       1,230    5,632    12.3" in written(print_outcome, one, width=80)


def test_what_can_be_compared_is_listed_with_options_and_tasks():
    text = " ".join(written(print_offers, CATALOGUE).split())
    for words in ("transformer Transformer: heads", "mamba Mamba: state_dim", "selective", "mqar many keys", "0.001,"):
        assert words in text


@pytest.mark.parametrize("quiet", [False, True])
def test_a_bar_tells_what_is_done_unless_asked_not_to(stage, runner, quiet):
    out = io.StringIO()
    console = Console(file=out, force_terminal=not quiet, width=100)
    comparison = show_comparison(Comparison(plan("lru"), runner), quiet=quiet, console=console)
    assert comparison.state == "done"
    assert ("lru" in out.getvalue()) is not quiet


def test_ctrl_c_stops_it_and_ends_the_piece_that_runs(stage, runner, monkeypatch):
    comparison = Comparison(plan("s4d"), runner)
    real = Runner.wait

    def interrupted(self: Runner, job: object, *rest: object, **more: object) -> object:
        if any(line.startswith("S4D 0.01 0") for line in calls(stage)):
            monkeypatch.undo()
            raise KeyboardInterrupt
        return real(self, job, *rest, **more)

    monkeypatch.setattr(Runner, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        show_comparison(comparison, quiet=True)
    until(lambda: runner.jobs()[0].state == "cancelled")


def test_the_page_stands_alone_and_escapes_every_text():
    text = page(MADE)
    assert "s4d:state_dim=&lt;8&gt;" in text
    assert "<8>" not in text.split("<script")[0]
    assert text.count("<figure>") == 3
    assert 'src="http' not in text
