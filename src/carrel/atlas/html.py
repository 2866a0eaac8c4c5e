"""A result as one HTML file that needs nothing else: figures drawn by plotly, by our own SVG where scripts are off."""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from carrel.atlas.card import FAMILIES, Card
from carrel.atlas.figure import plotly, svg
from carrel.atlas.parts import Check, Curve, Table, cell, number, rough
from carrel.atlas.result import VERDICTS, Result

_STYLE = """
:root { color-scheme: light dark;
  --paper: #faf8f3; --sheet: #fffdf9; --ink: #1d1c1a; --quiet: #67635b; --line: #e2dcd0; --accent: #1f4e8c;
  --holds: #2c683a; --caveat: #855600; --not-shown: #9b2c2c;
  --series-1: #1f4e8c; --series-2: #6f6a61; --series-3: #a8641b; --series-4: #3d6f9e; --series-5: #8a4a6f;
  --series-6: #5c7431; --sans: system-ui, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", sans-serif; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14161a; --sheet: #1a1d22; --ink: #ece7dc; --quiet: #a39d90; --line: #2d3138; --accent: #8fb6ee;
  --holds: #86c794; --caveat: #e0b25c; --not-shown: #ec9191;
  --series-1: #8fb6ee; --series-2: #a8a296; --series-3: #dda35f; --series-4: #86b4dd; --series-5: #d39bbb;
  --series-6: #b2cb86; } }
body { margin: 0 auto; padding: 24px; max-width: 52rem; background: var(--paper); color: var(--ink);
  font: 17px/1.55 Charter, "Bitstream Charter", "Source Serif 4", Georgia, "Noto Serif", "Noto Serif CJK SC", serif; }
h1, h2 { line-height: 1.2; font-weight: 600; margin: 0 } h1 { font-size: 1.8rem }
h2 { font-size: 1.15rem; margin: 32px 0 8px }
.quiet { color: var(--quiet); font: .82rem/1.45 var(--sans) }
.claim { font-size: 1.16rem; margin: 8px 0 }
.verdict { font: 600 .86rem/1.4 var(--sans); display: block }
.holds { color: var(--holds) } .caveat { color: var(--caveat) } .not-shown { color: var(--not-shown) }
.found { border-left: 3px solid currentColor; padding-left: 12px; margin: 16px 0 }
.found span + span { color: var(--ink) }
pre { background: var(--sheet); border: 1px solid var(--line); border-radius: 6px; padding: 12px 16px; overflow-x: auto;
  font: .84rem/1.5 ui-monospace, "Cascadia Code", "DejaVu Sans Mono", monospace; white-space: pre-wrap }
figure { margin: 16px 0; padding: 12px 16px; background: var(--sheet); border: 1px solid var(--line);
  border-radius: 6px }
figure svg { display: block; width: 100%; height: auto } figcaption { font-weight: 600; margin-bottom: 4px }
.plot { height: 340px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font: .86rem/1.4 var(--sans); font-variant-numeric: tabular-nums }
th { text-align: left; color: var(--quiet); font-weight: 500 }
th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); vertical-align: top }
.v { text-align: right; white-space: nowrap } td small { color: var(--quiet) } a { color: var(--accent) }
"""
_SCRIPT = """
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const hues = () => [1, 2, 3, 4, 5, 6].map((n) => css(`--series-${n}`));
function axis(own) {
  return { ...own, gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, showline: true,
    ticks: "outside", tickcolor: css("--line"), color: css("--quiet"), automargin: true,
    ...(own.type === "log" ? { exponentformat: "power" } : {}) };
}
function draw() {
  for (const figure of document.querySelectorAll("figure")) {
    const given = JSON.parse(figure.querySelector("script").textContent);
    const groups = [...new Set(given.data.map((trace) => trace.legendgroup))];
    const data = given.data.map((trace) => {
      const hue = hues()[groups.indexOf(trace.legendgroup) % 6];
      const line = { ...trace.line, color: hue, width: trace.fill ? 0 : 2.2 };
      return { ...trace, line, marker: { color: hue, size: 6 },
        ...(trace.fill ? { fillcolor: hue + "29" } : {}) };
    });
    const layout = { ...given.layout, title: undefined,
      xaxis: axis(given.layout.xaxis), yaxis: axis(given.layout.yaxis),
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: css("--sans"), size: 12 },
      showlegend: groups.length > 1,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", font: { color: css("--ink") } },
      hovermode: "x unified", hoverlabel: { bgcolor: css("--sheet"), bordercolor: css("--line") },
      margin: { l: 50, r: 14, t: 30, b: 44 } };
    const at = figure.querySelector(".plot");
    at.hidden = false;
    figure.querySelector(".drawing").hidden = true;
    Plotly.react(at, data, layout, { responsive: true, displaylogo: false,
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
"""


class LabMissing(ValueError):
    """A page with interactive figures needs plotly."""


def page(result: Result, card: Card) -> str:
    """The whole page, about 5 MB of which all but a few kB is plotly.

    Raises LabMissing, with what to install, if plotly is not there.
    """
    title = escape(result.title)
    many = len(result.seeds)
    seeds = f"{many} seeds" if many > 1 else "one seed"
    agree = sum(state == result.verdict for state in result.verdicts)
    count = f", {agree} seeds of {many}" if many > 1 and agree else ""
    given = ", ".join(f"{name} {value}" for name, value in result.parameters.items())
    versions = ", ".join(f"{name} {version}" for name, version in result.versions.items())
    facts = [given, seeds, f"{number(result.seconds)} s", result.machine, result.date[:16].replace("T", " "), versions]
    if result.quick:
        facts.insert(0, "quick form")
    body = [
        f'<p class="quiet">{escape(FAMILIES[card.family])}</p><h1>{title}</h1>',
        f'<p class="claim">{escape(result.claim)}</p>',
        f'<p class="found {escape(result.verdict)}"><span class="verdict">{_mark(result.verdict)} '
        f"{escape(VERDICTS[result.verdict] + count)}</span><span>{escape(result.finding)}</span></p>",
        *(figure_block(curve) for curve in result.curves),
        _checks(result.checks, many),
        *(table_block(table) for table in result.tables),
        f"<h2>Equation, in LaTeX</h2><pre>{escape(card.equation)}</pre>",
        f"<h2>Use it</h2><pre>{escape(card.usage)}</pre>",
        _sources(card),
        f'<p class="quiet">{escape(" · ".join(fact for fact in facts if fact))}</p>',
    ]
    return document(title, body)


def document(title: str, body: Iterable[str]) -> str:
    """A page that needs nothing else, about 5 MB of plotly in it; ``title`` and ``body`` are HTML.

    Raises LabMissing if plotly is not there.
    """
    library = plotly_source()
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(body)
        + f"\n<script>{library}</script>\n<script>{_SCRIPT}</script></body></html>\n"
    )


def plotly_source() -> str:
    """The text of plotly.js from the Python package. Raises LabMissing."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise LabMissing(
            'interactive figures need plotly, which comes with the extra "lab": install carrel[lab]'
        ) from None
    return str(get_plotlyjs())


def figure_block(curve: Curve) -> str:
    """A figure: our drawing, and the data from which plotly makes another where scripts are on."""
    return (
        f"<figure><figcaption>{escape(curve.title)}</figcaption>"
        f'<div class="drawing">{svg(curve, width=720, height=320)}</div><div class="plot" hidden></div>'
        f'<script type="application/json">{_data(plotly(curve))}</script></figure>'
    )


def _data(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _checks(checks: tuple[Check, ...], many: int) -> str:
    if not checks:
        return ""
    rows = "".join(
        f'<tr><td>{escape(check.name)}</td><td class="v">{number(check.worst)}</td><td class="v">{check.bound}</td>'
        f'<td class="{"holds" if check.passed else "not-shown"}">{"✓ holds" if check.passed else "✗ fails"}</td></tr>'
        for check in checks
    )
    worst = f"worst of {many}" if many > 1 else "value"
    head = f'<tr><th>Check</th><th class="v">{worst}</th><th class="v">bound</th><th></th></tr>'
    return f'<div class="scroll"><table>{head}{rows}</table></div>'


def table_block(table: Table) -> str:
    """A table with its title above it."""
    head = "".join(f"<th{_right(table, k)}>{escape(column)}</th>" for k, column in enumerate(table.columns))
    rows = []
    for at, row in enumerate(table.rows):
        spread = table.spread[at] if table.spread else (None,) * len(row)
        cells = (
            f"<td{_right(table, k)}>{escape(cell(value))}"
            + (f" <small>± {rough(half)}</small>" if half is not None else "")
            + "</td>"
            for k, (value, half) in enumerate(zip(row, spread, strict=True))
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f'<h2>{escape(table.title)}</h2><div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _sources(card: Card) -> str:
    items = [
        f'<li><a href="https://arxiv.org/abs/{escape(paper.id)}">{escape(paper.title)}</a>, {escape(paper.author)}, '
        f"{paper.year}. {escape(paper.remark)}</li>"
        for paper in card.papers
    ]
    items += [
        f'<li><a href="{escape(source.url)}">{escape(source.title)}</a>, '
        f"{escape(source.author) + ', ' if source.author else ''}{source.year}. {escape(source.remark)}</li>"
        for source in card.references
    ]
    return f"<h2>Sources</h2><ul>{''.join(items)}</ul>"


def _right(table: Table, k: int) -> str:
    numeric = all(row[k] is None or isinstance(row[k], int | float) for row in table.rows)
    return ' class="v"' if numeric else ""


def _mark(verdict: str) -> str:
    return {"holds": "✓", "caveat": "~"}.get(verdict, "✗")
