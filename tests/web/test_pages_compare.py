"""The page of comparisons: form, progress, cancelling, table and figures, with JavaScript and without."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lxml import html
from lxml.html import HtmlElement
from starlette.testclient import TestClient

from carrel.atlas.compare import plan as plan_module
from carrel.atlas.compare import running
from carrel.desk import Desk
from carrel.papers.model import Paper

Page = Callable[..., HtmlElement]
TRIAL = """
import time
from carrel.atlas.report import Report, progress

def run(*, seed, mixer, rate, steps, looks, **rest):
    for k in range(mixer["options"]["heads"] - 4):  # so many tenths of a second
        progress(0.5)
        time.sleep(0.1)
    report = Report("compare-trial")
    report.table("Fresh sequences", ["right", "loss (nats)", "chance"], [[0.5 + seed / 10, rate, 0.125]])
    if looks:
        report.curve("On the way", x=[1, steps], y=[0.2, 0.5], x_label="training steps", y_label="right")
    report.verdict("holds", "It learns.")
    return report
"""
SPEED = """
from carrel.atlas.report import Report

def run(*, seed, mixer, **rest):
    if mixer["options"]["heads"] == 3:
        raise ValueError("MHA wants heads that divide dim")
    report = Report("compare-speed")
    report.table("Costs", ["parameters", "training (tokens/s)", "decoding (tokens/s)", "state (bytes)",
                 "peak memory (bytes)", "training step (s)"], [[12345, 67891.5, 1234.5, 512, 2_500_000, 0.002]])
    report.verdict("holds", "It streams.")
    return report
"""


@pytest.fixture(autouse=True)
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces that answer at once; no outcome came with the package."""
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage/trial.py").write_text(TRIAL)
    (tmp_path / "stage/speed.py").write_text(SPEED)
    monkeypatch.setattr(plan_module, "_HERE", tmp_path / "stage")
    monkeypatch.setattr(running, "_RESULTS", tmp_path)


@pytest.fixture
def browser(client_with: Callable[[list[Paper]], TestClient]) -> Iterator[TestClient]:
    with client_with([]) as client:
        yield client


def form(**changes: object) -> dict[str, object]:
    return {"mixers": ["transformer"], "variants": "", "task": "copying", "steps": "8", "seeds": "2", **changes}


def tree(client: TestClient, path: str, status: int = 200) -> HtmlElement:
    answer = client.get(path)
    assert answer.status_code == status
    return html.document_fromstring(answer.content)


def words(element: HtmlElement) -> str:
    return " ".join(element.text_content().split())


def finished(client: TestClient, path: str, seconds: float = 60) -> HtmlElement:
    """The page once the comparison is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        text = client.get(path).text
        page = html.document_fromstring(text)
        if not page.cssselect("[data-events]"):
            return page
        assert '<meta http-equiv="refresh"' in text, "a page without JavaScript comes again by itself"
        time.sleep(0.1)
    raise AssertionError(f"{path} was not over after {seconds} s")


def test_the_form_offers_mixers_tasks_and_sizes_and_says_that_nothing_is_there_yet(browser: TestClient) -> None:
    page = tree(browser, "/compare")
    assert [box.get("value") for box in page.cssselect("[name=mixers]")] == ["transformer"]
    assert page.cssselect("[name=mixers]")[0].get("checked") is not None
    assert "mqar" in [option.get("value") for option in page.cssselect("[name=task] option")]
    assert {field.get("name") for field in page.cssselect("form#run input.input")} == {
        *("variants", "length", "steps", "seeds", "batch", "dim", "depth")
    }
    for field in page.cssselect("form#run input.input, form#run select"):
        assert page.cssselect(f"label[for={field.get('id')}]"), field.get("name")
    assert "Nothing has been compared yet" in words(page)
    assert page.cssselect("nav a[aria-current]")[0].get("href") == "/compare"
    assert browser.get("/methods").text.count('href="/compare"') == 2, "from the navigation and from the atlas"


def test_a_plain_form_leads_to_the_comparison_its_table_and_figures(browser: TestClient) -> None:
    answer = browser.post("/compare", data=form(variants="transformer:heads=4"))
    assert answer.status_code == 303
    page = finished(browser, answer.headers["location"])
    table, seeds, rates = page.cssselect("table.numbers")
    rows = [[words(cell) for cell in row.cssselect("td")] for row in table.cssselect("tbody tr")]
    assert rows == [
        ["transformer", "55", "50", "12,345", "67,900", "1,230", "512", "2.5"],
        ["transformer:heads=4", "55", "50", "12,345", "67,900", "1,230", "512", "2.5"],
    ]
    assert "60" in words(seeds)
    assert "0.001, edge" in words(rates)
    assert "a smaller one might do better" in words(page.cssselect(".notices")[0])
    drawings = page.cssselect("figure.figure .drawing svg")
    assert len(drawings) == 3
    assert "transformer:heads=4" in words(drawings[0])
    assert json.loads(page.cssselect("figure script")[1].text)["data"][0]["mode"] == "markers+text"
    assert "one thread" in words(page)
    kept = page.cssselect("form#run")[0]
    assert kept.cssselect("[name=variants]")[0].get("value") == "transformer:heads=4"
    assert kept.cssselect("[name=steps]")[0].get("value") == "8"
    assert "12,345" in words(tree(browser, "/compare")), "the start page shows the last one"
    assert "transformer, transformer:heads=4 on copying" in words(tree(browser, "/"))


def test_an_island_gets_progress_events_and_the_parts_that_changed(browser: TestClient) -> None:
    data = form(mixers=[], variants="transformer:heads=5")
    answer = browser.post("/compare", data=data, headers={"X-Part": "progress"})
    assert answer.status_code == 202
    address = answer.headers["X-Run"]
    (panel,) = html.fragments_fromstring(answer.text.strip())
    assert panel.get("data-events") == f"{address}/events"
    events = browser.get(f"{address}/events")
    said = [json.loads(line[6:]) for line in events.text.splitlines() if line.startswith("data: {")]
    assert said[-1]["state"] == "done"
    assert [now["fraction"] for now in said] == sorted(now["fraction"] for now in said)
    assert any("trying learning rate" in now["text"] for now in said)
    assert events.text.endswith(f"event: end\ndata: {address}\n\n")
    parts = html.fragments_fromstring(browser.get(address, headers={"X-Part": "result"}).text)
    assert [part.get("data-part") for part in parts if not isinstance(part, str)] == ["progress", "main", "more"]
    again = browser.post("/compare", data=data, headers={"X-Part": "progress"})
    finished(browser, again.headers["X-Run"])
    assert "Kept from before" in browser.get(again.headers["X-Run"]).text


def test_it_can_be_cancelled_and_the_same_that_goes_on_is_not_begun_twice(browser: TestClient) -> None:
    data = form(variants="transformer:heads=500")
    address = browser.post("/compare", data=data).headers["location"]
    assert browser.post("/compare", data=data).headers["location"] == address
    answer = browser.post(f"{address}/cancel")
    assert (answer.status_code, answer.headers["location"]) == (303, address)
    assert "Cancelled; what was finished is kept" in words(finished(browser, address))
    assert browser.post(f"{address}/cancel", headers={"X-Part": "progress"}).status_code == 204
    assert browser.post("/compare", data=data).headers["location"] != address


def test_a_mixer_that_cannot_be_built_is_told_and_the_form_is_kept(browser: TestClient) -> None:
    address = browser.post("/compare", data=form(variants="transformer:heads=3")).headers["location"]
    page = finished(browser, address)
    assert "transformer:heads=3: MHA wants heads that divide dim" in words(page.cssselect(".progress [role=alert]")[0])
    assert page.cssselect("[name=variants]")[0].get("value") == "transformer:heads=3"


@pytest.mark.parametrize(
    ("changes", "sentence", "field"),
    [
        ({"mixers": []}, "Name the mixers to compare", "mixers"),
        ({"variants": "transformr:heads=2"}, "did you mean transformer?", "variants"),
        ({"variants": "transformer:haeds=2"}, "did you mean heads?", "variants"),
        ({"task": "mqra"}, "did you mean mqar?", "task"),
        ({"task": "mqar", "length": "9"}, "Mqar wants an even length from 4 to 4096, got 9", "length"),
        ({"steps": "many"}, "Steps must be a whole number, got many", "steps"),
        ({"seeds": "0"}, "Seeds must be between 1 and 20, got 0", "seeds"),
        ({"dim": "100000"}, "Dim must be between 4 and 512", "dim"),
    ],
)
def test_what_cannot_be_compared_is_told_in_a_sentence_beside_its_field(
    browser: TestClient, changes: dict[str, object], sentence: str, field: str
) -> None:
    answer = browser.post("/compare", data=form(**changes))
    assert answer.status_code == 422
    assert sentence in words(html.document_fromstring(answer.content))
    part = browser.post("/compare", data=form(**changes), headers={"X-Part": "progress"})
    assert (part.status_code, part.headers["X-Field"]) == (422, field)
    desk: Desk = browser.app.state.site.desk  # type: ignore[attr-defined]
    assert desk.comparisons.all() == []


def test_an_unknown_comparison_and_a_piece_of_one_have_a_page_that_says_so(browser: TestClient) -> None:
    for path in ("/compare/abc", "/compare/abc/events"):
        assert "Results are kept" in words(tree(browser, path, 404))
    finished(browser, browser.post("/compare", data=form()).headers["location"])
    desk: Desk = browser.app.state.site.desk  # type: ignore[attr-defined]
    assert tree(browser, f"/runs/{desk.runner.jobs()[0].id}", 404) is not None
    assert browser.get("/").status_code == 200


def test_the_address_can_say_what_to_tick(browser: TestClient) -> None:
    page = tree(browser, "/compare?mixers=transformer&mixers=nothing&task=mqar")
    assert page.cssselect("option[selected]")[0].get("value") == "mqar"
    assert tree(browser, "/compare?task=%3Cscript%3E&mixers=%3Cb%3E").cssselect("option[selected]")[0] is not None
