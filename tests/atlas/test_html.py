"""The page of a result: one file, nothing fetched, every text escaped."""

from __future__ import annotations

import builtins
import json
import re

import pytest

from carrel.atlas.html import LabMissing, _data, page
from carrel.atlas.report import Report, Result

pytest.importorskip("plotly", reason='needs the extra "lab"')
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>&\"'"


def result(text: str = "plain") -> Result:
    reports = []
    for seed in range(3):
        report = Report("made-up")
        report.check(text, 0.5, low=0)
        report.curve(text, x=[1, 2], y={text: [1, float("nan")], "b": [seed, 2]}, x_label=text, y_label=text)
        report.table(text, [text, "v"], [[text, seed]])
        report.verdict("caveat", text)
        reports.append(report)
    return Result.of(
        reports, title=text, claim=text, seconds=1.0, seeds=(0, 1, 2), parameters={"name": text}, machine=text
    )


def own(html: str) -> str:
    """The page without plotly itself."""
    scripts = re.findall(r"<script>.*?</script>", html, re.S)
    return html.replace(max(scripts, key=len), "")


def test_the_page_holds_verdict_checks_tables_equation_usage_and_sources(workshop):
    workshop.add("made-up")
    html = own(page(result(), workshop.catalogue["made-up"]))
    for words in (
        *("~ holds with a caveat, 3 seeds of 3", "worst of 3", "≥ 0", "± 1", "y = x", "made_up(1)", "✓ holds"),
        *("https://arxiv.org/abs/2303.06349", "It made this up.", "<svg viewBox"),
    ):
        assert words in html


def test_nothing_is_fetched_from_anywhere(workshop):
    workshop.add("made-up")
    html = own(page(result(), workshop.catalogue["made-up"]))
    assert not re.search(r"""<(?:link|img|iframe|script[^>]*\ssrc)|@import|url\(""", html)


def test_every_text_is_escaped(workshop):
    workshop.add("made-up", card=workshop.card.replace('"y = x"', f"'''{EVIL}'''"))
    html = own(page(result(EVIL), workshop.catalogue["made-up"]))
    assert "<img" not in html
    assert "alert(1)</script>" not in html.replace("alert(1)&lt;/script", "")
    assert html.count("<script") == html.count("</script>") == 2  # the figure's data and our own


def test_the_figures_data_are_json_without_unknown_numbers(workshop):
    workshop.add("made-up")
    html = page(result(EVIL), workshop.catalogue["made-up"])
    assert not set("<>&") & set(_data({"text": EVIL}))
    (data,) = re.findall(r'<script type="application/json">(.*?)</script>', html, re.S)
    figure = json.loads(data, parse_constant=lambda name: pytest.fail(name))
    assert figure["data"][-1]["name"] == "b"


def test_a_missing_plotly_is_one_sentence(workshop, monkeypatch):
    workshop.add("made-up")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("plotly"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(LabMissing, match=r"install carrel\[lab\]$"):
        page(result(), workshop.catalogue["made-up"])
