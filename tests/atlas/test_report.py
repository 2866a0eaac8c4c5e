"""Reports and results: what seeds add up to, what fails, and that JSON brings everything back."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.atlas.parts import cell
from carrel.atlas.report import Check, Report, ReportError, Result, listening, number, progress

NAN = math.nan


def report(
    *, check=1.0, low=0.0, high=None, verdict="holds", finding="It does.", y=(1.0, 2.0), cells=(1, "a")
) -> Report:
    made = Report("x")
    made.check("value", check, low=low, high=high)
    made.curve("c", x=[1, 2], y={"one": list(y)}, x_label="n", y_label="m (s)")
    made.table("t", ["k", "v"], [list(cells)])
    made.verdict(verdict, finding)
    return made


def joined(*reports: Report) -> Result:
    return Result.of(
        reports, title="T", claim="C", seconds=1.5, seeds=tuple(range(len(reports))), parameters={"n": 3, "on": True}
    )


def test_the_worst_of_values_inside_is_the_one_closest_to_its_bound():
    assert joined(*(report(check=v, low=0.5) for v in (0.9, 0.6, 0.7))).checks[0].worst == 0.6
    assert joined(*(report(check=v, low=None, high=2) for v in (0.9, 1.6, 0.7))).checks[0].worst == 1.6
    assert joined(*(report(check=v, low=0, high=2) for v in (0.2, 1.7, 1.9))).checks[0].worst == 1.9


def test_one_seed_outside_fails_the_check_and_the_result_and_is_the_worst():
    result = joined(*(report(check=v, low=0.5, high=1) for v in (0.9, 0.4, 1.05)))
    assert not result.checks[0].passed
    assert not result.passed
    assert result.checks[0].worst == 0.4
    assert result.checks[0].values == (0.9, 0.4, 1.05)


def test_a_value_on_the_bound_holds():
    assert report(check=0.5, low=0.5).passed
    assert report(check=0, low=None, high=0).passed


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_what_is_not_a_finite_number_fails_and_is_the_worst(value):
    check = joined(report(check=3.0), report(check=value)).checks[0]
    assert not check.passed
    assert not math.isfinite(check.worst)


def test_a_failed_check_leaves_the_verdict_alone_and_a_verdict_the_checks():
    assert joined(report(check=-1)).verdict == "holds"
    assert joined(report(verdict="not-shown")).passed


def test_seeds_that_agree_keep_the_verdict_and_its_sentence():
    result = joined(*(report(verdict="not-shown", finding="No.") for _ in range(3)))
    assert (result.verdict, result.finding, result.verdicts) == ("not-shown", "No.", ("not-shown",) * 3)


def test_seeds_that_disagree_make_a_caveat_with_the_counts_and_the_sentence_of_most():
    result = joined(report(), report(verdict="not-shown", finding="It does not."), report())
    assert result.verdict == "caveat"
    assert result.finding == ("The seeds disagree (2 of 3 seeds: holds; 1 of 3 seeds: does not show). It does.")
    assert result.verdicts == ("holds", "not-shown", "holds")


def test_curves_are_averaged_and_keep_every_seed():
    line = joined(report(y=(1, 2)), report(y=(3, 2)), report(y=(2, 5))).curves[0].series[0]
    assert line.mean == (2.0, 3.0)
    assert (line.low, line.high) == ((1.0, 2.0), (3.0, 5.0))
    assert line.seeds == ((1.0, 2.0), (3.0, 2.0), (2.0, 5.0))


def test_a_seed_that_diverged_is_not_averaged_away():
    line = joined(report(y=(1, NAN)), report(y=(3, 2))).curves[0].series[0]
    assert line.mean[0] == 2.0
    assert math.isnan(line.mean[1])
    assert line.high == (3.0, 2.0)


def test_table_cells_are_kept_where_equal_averaged_where_numbers_and_listed_where_texts():
    table = joined(report(cells=(1, "a")), report(cells=(4, "b")), report(cells=(1, "a"))).tables[0]
    assert table.rows == ((2.0, "a / b / a"),)
    assert table.spread == ((1.5, None),)
    same = joined(report(cells=(True, None)), report(cells=(True, None))).tables[0]
    assert same.rows == ((True, None),)
    assert joined(report(cells=(True, 1)), report(cells=(False, 2))).tables[0].rows == (("True / False", 1.5),)
    assert joined(report(cells=(None, 1)), report(cells=("x", 1))).tables[0].rows == (("– / x", 1),)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda r: r.check("another", 1, low=0), "checks"),
        (lambda r: r.curve("another", x=[1], y=[1], x_label="", y_label=""), "curves"),
        (lambda r: r.table("another", ["a"], [[1]]), "tables"),
    ],
)
def test_seeds_that_report_different_things_are_refused(change, what):
    odd = report()
    change(odd)
    with pytest.raises(ReportError, match=f"experiment 'x': the {what} differ from seed to seed"):
        joined(report(), odd)


def test_seeds_with_other_bounds_or_other_x_are_refused():
    with pytest.raises(ReportError, match="the checks differ"):
        joined(report(low=0), report(low=0.1))
    odd = report()
    odd.curves.clear()
    odd.curve("c", x=[1, 3], y={"one": [1, 2]}, x_label="n", y_label="m")
    with pytest.raises(ReportError, match="the curves differ"):
        joined(report(), odd)


def test_a_report_without_a_verdict_is_refused():
    bare = Report("x")
    with pytest.raises(ReportError, match="experiment 'x' gave no verdict"):
        joined(bare)
    with pytest.raises(ReportError, match="at least one seed"):
        joined()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: r.check("a", 1), "check 'a' needs a bound"),
        (lambda r: r.check("a", 1, low=2, high=1), "wants low <= high"),
        (lambda r: r.check("a", 1, low=NAN), "wants finite bounds"),
        (lambda r: (r.check("a", 1, low=0), r.check("a", 1, low=0)), "check 'a' is reported twice"),
        (lambda r: r.curve("c", x=[1, 2], y=[1], x_label="", y_label=""), "as many y as x, got 1 and 2"),
        (lambda r: r.curve("c", x=[], y=[], x_label="", y_label=""), "as many y as x, got 0 and 0"),
        (lambda r: r.curve("c", x=[1], y={}, x_label="", y_label=""), "has no lines"),
        (lambda r: r.curve("c", x=[1], y=[1], x_label="", y_label="", log="z"), "log must be"),
        (lambda r: r.table("t", ["a", "b"], [[1]]), "table 't' has 2 columns, got a row of 1"),
        (lambda r: r.verdict("maybe", "x"), "a verdict is one of holds, caveat, not-shown, got 'maybe'"),
        (lambda r: r.verdict("holds", " "), "a verdict needs a sentence"),
    ],
)
def test_reports_that_cannot_be_shown_are_refused_in_one_sentence(call, said):
    with pytest.raises(ReportError, match=said):
        call(Report("x"))


def test_arrays_and_their_scalars_are_taken_as_they_are():
    made = Report("x")
    made.check("a", np.float32(0.5), low=np.int64(0))
    made.check("b", np.True_, low=1)
    made.curve("c", x=np.arange(3), y={"y": np.array([1.0, NAN, 2.0])}, x_label="", y_label="")
    made.curve("d", x={"u": [1, 2], "v": [3]}, y={"u": [1, 2], "v": [1]}, x_label="", y_label="")
    made.table("t", ["n", "v"], [[np.int64(3), np.float64(NAN)]])
    made.verdict("holds", "It does.")
    text = json.dumps(made.to_json(), allow_nan=False)
    again = Report.from_json(json.loads(text))
    assert again.tables[0].rows == ((3, None),)
    assert again.curves[1].series[1].x == (3.0,)


def test_json_has_the_promised_shape_and_brings_everything_back():
    result = joined(report(check=NAN), report(y=(1, NAN)), report(cells=(2, "b")))
    d = json.loads(result.text())
    assert set(d) >= {
        *("slug", "title", "claim", "verdict", "finding", "passed", "seconds", "seeds", "parameters", "checks"),
        *("tables", "curves", "versions"),
    }
    assert set(d["checks"][0]) == {"name", "low", "high", "values", "worst", "passed"}
    assert d["checks"][0]["values"] == [None, 1.0, 1.0]
    assert d["checks"][0]["worst"] is None
    assert d["passed"] is False
    again = Result.from_json(result.text())
    assert again.to_json() == result.to_json() == Result.from_json(d).to_json() == d
    assert Result.from_json(result.text().encode()).text() == result.text()


@settings(deadline=None)
@given(st.lists(st.floats(), min_size=1, max_size=5), st.lists(st.floats(), min_size=1, max_size=5))
def test_any_numbers_survive_a_round_trip(values, ys):
    made = Report("x")
    made.curve("c", x=range(len(ys)), y=ys, x_label="", y_label="")
    made.check("v", 0, low=0)
    made.checks[0] = Check("v", 0, None, tuple(values))
    made.verdict("holds", "It does.")
    result = joined(made)
    assert Result.from_json(result.text()).to_json() == result.to_json()
    assert "NaN" not in result.text()
    assert "Infinity" not in result.text()


@pytest.mark.parametrize("text", ["", "3", "[]", "{}", '{"slug": "x"}', "{", b"\xff"])
def test_what_is_not_a_result_is_refused(text):
    with pytest.raises(ReportError, match="not a result"):
        Result.from_json(text)


def test_progress_reaches_the_listener_within_its_block_only_and_stays_between_0_and_1():
    heard = []
    progress(0.1, "before")
    with listening(lambda fraction, note: heard.append((fraction, note))):
        progress(0.5, "half")
        progress(7)
        progress(-1)
    progress(0.9, "after")
    assert heard == [(0.5, "half"), (1.0, ""), (0.0, "")]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.991, "0.991"),
        (-0.5, "−0.5"),
        (3e-15, "3·10⁻¹⁵"),
        (1e-10, "10⁻¹⁰"),
        (1234.5678, "1235"),
        (12345.678, "12346"),
        (1.2345e9, "1.23·10⁹"),
        (-1e6, "−10⁶"),
        (NAN, "not a number"),
        (None, "not a number"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_numbers_are_written_for_readers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "text"), [(0.95, None, "≥ 0.95"), (None, 1e-10, "≤ 10⁻¹⁰"), (0, 1, "0 to 1"), (3, 3, "= 3")]
)
def test_bounds_are_written_for_readers(low, high, text):
    assert Check("x", low, high, (1.0,)).bound == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (False, "no"),
        (12, "12"),
        (-12345, "−12,345"),
        (10**15, "10¹⁵"),
        (0.123456, "0.1235"),
        (math.nan, "not a number"),
        ("a / b", "a / b"),
    ],
)
def test_a_cell_is_written_the_same_way_everywhere(value, text):
    assert cell(value) == text
