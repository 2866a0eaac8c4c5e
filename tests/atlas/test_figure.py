"""Figures: our SVG is well formed, says its units, escapes every text; plotly's data are plain JSON."""

from __future__ import annotations

import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.atlas.axis import Axis
from carrel.atlas.figure import plotly, svg
from carrel.atlas.parts import Curve, Series
from carrel.atlas.textplot import plot

NAN = math.nan
EVIL = '</text><script>alert("1")</script><a href="javascript:alert(1)">&\'x'


def curve(*lines: Series, log: str = "", title: str = "Loss", x: str = "steps", y: str = "loss (nats)") -> Curve:
    return Curve(title, x, y, log, lines)


RISING = Series("rising", (0.0, 1.0, 2.0), ((0.0, 1.0, 2.0), (0.0, 2.0, 4.0)))


def texts(drawing: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing).iter() if element.tag.endswith("text")]


def test_a_figure_says_its_axes_with_units_and_names_its_lines_at_their_ends():
    drawing = svg(curve(RISING, Series("flat", (0.0, 2.0), ((1.0, 1.0),))), width=640, height=260)
    said = texts(drawing)
    assert {"steps", "loss (nats)", "rising", "flat", "0", "2"} <= set(said)
    assert 'aria-label="Loss: loss (nats) against steps"' in drawing


def test_points_stand_where_the_axes_say():
    root = ElementTree.fromstring(svg(curve(Series("", (0.0, 10.0), ((1.0, 4.0),))), width=600, height=300))
    dots = [(float(e.get("cx")), float(e.get("cy"))) for e in root.iter() if e.tag.endswith("circle")]
    marks = {
        (e.get("text-anchor"), e.text): (float(e.get("x")), float(e.get("y")))
        for e in root.iter()
        if e.tag.endswith("text")
    }
    assert dots[0][0] == pytest.approx(marks["middle", "0"][0], abs=0.2)
    assert dots[1][0] == pytest.approx(marks["middle", "10"][0], abs=0.2)
    assert dots[0][1] == pytest.approx(marks["end", "1"][1] - 4, abs=0.2)  # a text's foot is 4 below its rule
    assert dots[1][1] == pytest.approx(marks["end", "4"][1] - 4, abs=0.2)


def test_the_range_of_the_seeds_is_a_band_and_one_seed_has_none():
    assert "fill-opacity" in svg(curve(RISING))
    assert "fill-opacity" not in svg(curve(Series("", (0.0, 1.0), ((0.0, 1.0),))))


def test_a_gap_parts_the_line():
    drawing = svg(curve(Series("", (0.0, 1.0, 2.0, 3.0, 4.0), ((0.0, 1.0, NAN, 3.0, 4.0),))))
    (path,) = re.findall(r'<path d="(M[^"]*)" fill="none" stroke="var\(--series-1', drawing)
    assert path.count("M") == 2
    assert "nan" not in drawing


def test_every_text_is_escaped():
    for drawing in (
        svg(curve(Series(EVIL, (0.0, 1.0), ((0.0, 1.0),)), title=EVIL, x=EVIL, y=EVIL)),
        svg(curve(Series(EVIL, (0.0, 1.0), ((0.0, 1.0),)), title=EVIL), thumbnail=True),
        svg(curve(Series(EVIL, (NAN,), ((NAN,),)), title=EVIL)),
    ):
        tags = {element.tag.split("}")[-1] for element in ElementTree.fromstring(drawing).iter()}
        assert tags <= {"svg", "path", "text", "circle"}
        assert "<script" not in drawing
        assert not re.search(r"\son\w+=|\sstyle=|\sid=|href", drawing.replace("&lt;a href=", ""))


def test_plotly_texts_cannot_hold_tags():
    figure = plotly(curve(Series(EVIL, (0.0, 1.0), ((0.0, 1.0), (1.0, 2.0))), title=EVIL, x=EVIL, y=EVIL))
    assert "<" not in json.dumps(figure)


def test_a_thumbnail_has_lines_and_nothing_else():
    drawing = svg(curve(RISING), width=220, height=56, thumbnail=True)
    assert texts(drawing) == []
    assert 'aria-hidden="true"' in drawing
    assert drawing.count("<path") == 1


def test_colours_come_from_the_page():
    drawing = svg(curve(RISING))
    assert set(re.findall(r'(?:stroke|fill)="([^"]*)"', drawing)) <= {
        *("none", "var(--line,currentColor)", "var(--quiet,currentColor)", "var(--series-1,currentColor)"),
    }


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show_and_marks_powers_of_ten():
    line = Series("", (1.0, 10.0, 1e6), ((0.0, 1e-3, 1e3),))
    drawing = svg(curve(line, log="xy"))
    assert "10⁶" in texts(drawing)
    assert drawing.count("<circle") == 2
    assert all(value is None or value > 0 for value in plotly(curve(line, log="xy"))["data"][0]["y"][1:])


@pytest.mark.parametrize("log", ["", "x", "y", "xy"])
def test_a_curve_without_a_finite_point_says_so(log):
    empty = curve(Series("a", (NAN, 1.0), ((NAN, NAN),)), log=log)
    assert texts(svg(empty)) == ["nothing to draw: no finite values"]
    assert "nothing to draw" in plot(empty).plain
    json.dumps(plotly(empty), allow_nan=False)


def test_names_at_close_ends_do_not_overlap():
    lines = [Series(f"line {k}", (0.0, 1.0), ((0.0, 1.0 + k / 1000),)) for k in range(6)]
    root = ElementTree.fromstring(svg(curve(*lines), width=640, height=260))
    places = sorted(
        float(e.get("y")) for e in root.iter() if e.tag.endswith("text") and (e.text or "").startswith("line")
    )
    assert len(places) == 6
    assert all(below - above >= 12 for above, below in itertools.pairwise(places))
    assert 0 < places[0] < places[-1] < 240


def test_a_line_of_many_points_is_thinned_but_keeps_its_peaks():
    ys = [0.0] * 50_000
    ys[31_415] = 9.0
    drawing = svg(curve(Series("", tuple(float(k) for k in range(50_000)), (tuple(ys),))))
    assert len(drawing) < 60_000
    peak = min(float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", drawing.split("--series-1")[0].split("<path")[-1]))
    assert peak < 60


finite = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None)
@given(
    st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=20),
    st.sampled_from(["", "x", "y", "xy"]),
    st.booleans(),
)
def test_any_numbers_make_a_well_formed_figure_in_every_form(points, log, thumbnail):
    xs, ys, zs = (tuple(column) for column in zip(*points, strict=True))
    drawn = curve(Series("a", xs, (ys, zs)), Series("b", xs, (zs, zs)), log=log)
    drawing = svg(drawn, thumbnail=thumbnail)
    ElementTree.fromstring(drawing)
    assert not re.search(r'="[^"]*\b(nan|inf)\b', drawing)
    json.dumps(plotly(drawn), allow_nan=False)
    assert all(len(line) <= 80 for line in plot(drawn, width=80).plain.splitlines())


@settings(deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12), st.booleans(), st.integers(2, 8))
def test_ticks_are_within_the_range_few_and_rising(low, span, log, wanted):
    axis = Axis.over([abs(low) + 1e-9, abs(low) + span + 1e-9] if log else [low, low + span], log)
    ticks = [value for value, _ in axis.ticks(wanted)]
    assert ticks == sorted(ticks)
    assert len(ticks) <= 3 * wanted + 2
    assert all(-0.01 <= axis.place(value) <= 1.01 for value in ticks)


def test_plotly_gets_the_mean_a_band_and_the_axes():
    figure = plotly(curve(RISING, log="x"))
    band, line = figure["data"]
    assert band["fill"] == "toself"
    assert line["y"] == [0.0, 1.5, 3.0]
    assert line["name"] == "rising"
    assert band["legendgroup"] == line["legendgroup"]
    assert figure["layout"]["xaxis"] == {"title": {"text": "steps"}, "type": "log"}
    assert figure["layout"]["yaxis"] == {"title": {"text": "loss (nats)"}, "type": "linear"}


def test_plotly_writes_powers_of_ten_alone_where_an_axis_holds_some():
    def ticks(*x):
        line = Series("rising", x, (tuple(range(len(x))),))
        return plotly(curve(line, log="x"))["layout"]["xaxis"].get("dtick")

    assert ticks(64.0, 16384.0) == 1
    assert ticks(2.0, 9.0) is None
    assert ticks(1.0, 1e9) is None


def test_the_plot_for_terminals_shows_title_labels_ticks_and_names_in_80_columns():
    drawn = plot(curve(RISING, Series("flat", (0.0, 2.0), ((1.0, 1.0),))), width=80, height=10).plain
    lines = drawn.splitlines()
    assert lines[0] == "Loss"
    assert lines[1].strip() == "loss (nats)"
    assert lines[-1].strip() == "steps"
    assert any(line.endswith(" rising") for line in lines)
    assert any(line.endswith(" flat") for line in lines)
    assert len(lines) == 15
    rising = next(line for line in lines if line.endswith("rising"))
    assert any(0x2800 < ord(letter) < 0x2900 for letter in rising)


def scatter(*points: tuple[str, float, tuple[float, ...]], log: str = "") -> Curve:
    lines = tuple(Series(name, (x,), tuple((y,) for y in ys)) for name, x, ys in points)
    return Curve("Accuracy against cost", "seconds", "share right", log, lines, points=True)


def test_points_are_named_where_they_stand_without_covering_one_another():
    crowd = scatter(
        ("alpha", 1.0, (0.5, 0.7)), ("beta", 1.02, (0.6,)), ("gamma", 1.01, (0.61,)), ("delta", 100.0, (1,))
    )
    root = ElementTree.fromstring(svg(Curve(**{**vars_of(crowd), "log": "x"}), width=560, height=280))
    dots = [(float(e.get("cx")), float(e.get("cy"))) for e in root.iter() if e.tag.endswith("circle")]
    names = {e.text: (float(e.get("x")), float(e.get("y"))) for e in root.iter() if e.tag.endswith("text")}
    assert len(dots) == 4
    for name, dot in zip(("alpha", "beta", "gamma", "delta"), dots, strict=True):
        x, y = names[name]
        assert x >= 0
        assert x + 6.3 * len(name) <= 560
        assert abs(y - dot[1]) < 70
    feet = [names[name][1] for name in ("alpha", "beta", "gamma")]
    assert all(abs(a - b) >= 13 for a, b in itertools.combinations(feet, 2))


def vars_of(curve: Curve) -> dict[str, object]:
    return {name: getattr(curve, name) for name in ("title", "x_label", "y_label", "log", "series", "points")}


def test_points_have_bars_for_the_range_of_their_seeds_and_no_lines():
    one = scatter(("a", 1.0, (0.5, 0.7)), ("b", 2.0, (0.9,)))
    paths = [e.get("d") for e in ElementTree.fromstring(svg(one)).iter() if e.tag.endswith("path")]
    assert len(paths) == 3, "grid, axes, one bar"
    first, second = plotly(one)["data"]
    assert (first["mode"], first["text"], first["error_y"]["array"]) == ("markers+text", ["a"], [pytest.approx(0.1)])
    assert second["error_y"]["array"] == [0]
    low, high = plotly(one)["layout"]["xaxis"]["range"]
    assert low < 1 < 2 < high


def test_points_survive_json_and_lines_stay_as_they_were_written():
    one = scatter(("a", 1.0, (0.5, 0.7)))
    assert Curve.from_json(json.loads(json.dumps(one.to_json()))) == one
    assert "points" not in curve(RISING).to_json()


def test_names_of_points_close_together_go_to_different_sides_and_inwards_at_the_edges():
    crowd = scatter(("left", 1.0, (0.5,)), ("close", 1.1, (0.51,)), ("middle", 5.0, (0.9,)), ("right", 10.0, (0.7,)))
    places = [trace["textposition"] for trace in plotly(crowd)["data"]]
    assert places == ["top right", "bottom right", "top center", "top left"]
