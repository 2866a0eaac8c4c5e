"""Atlas, method and run pages; experiments started from a form, with and without JavaScript."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from lxml import html
from lxml.html import HtmlElement
from starlette.testclient import TestClient

from carrel.desk import Desk
from carrel.papers.model import Paper

Page = Callable[..., HtmlElement]
RUN = "/methods/ring-memory/run"


def finished(client: TestClient, path: str, seconds: float = 30) -> HtmlElement:
    """The run's page once the run is over."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        tree = html.document_fromstring(client.get(path).content)
        if not tree.cssselect("[data-events]"):
            return tree
        assert "meta" in client.get(path).text  # a page without JavaScript comes again by itself
        time.sleep(0.1)
    raise AssertionError(f"{path} was not over after {seconds} s")


def test_the_atlas_shows_families_tiles_thumbnails_and_the_state_of_claims(page: Page) -> None:
    tree = page("/methods")
    (tile,) = tree.cssselect(".tile")
    assert tile.get("href") == "/methods/ring-memory"
    assert "fam-recurrent" in tile.get("class")
    assert tile.cssselect(".thumb svg path")
    assert tile.cssselect(".verdict.holds")[0].text == "holds"
    assert "1 method you can run · 1 claim holds" in tree.cssselect(".day")[0].text_content()
    assert "ring-memory" in tile.get("data-words")


def test_a_method_page_has_everything_from_claim_to_references(page: Page) -> None:
    tree = page("/methods/ring-memory")
    assert tree.cssselect("h1")[0].text_content() == "Ring memory"
    assert tree.cssselect(".family")[0].text_content() == "Recurrent networks"
    assert tree.cssselect(".claim .said")[0].text_content() == "A ring of width $d$ remembers."
    assert "holds, 3 seeds of 3" in tree.cssselect(".claim .found")[0].text_content()
    assert tree.cssselect(".eq .tex.display")[0].text == "\\[h_t = \\lambda \\odot h_{t-1} + x_t\\]"
    checks = [[cell.text_content() for cell in row] for row in tree.cssselect(".checks tbody tr")]
    assert checks == [["remembers", "0.9", "≥ 0.8", "holds"], ["forgets", "0.1", "≤ 0.3", "holds"]]
    assert tree.cssselect("#usage")[0].text_content().startswith("from carrel.recurrent import Ring\n")
    assert tree.cssselect("#usage .c")[0].text == '# "same" numbers'
    assert tree.cssselect("#papers a")[0].get("href") == "/arxiv/2303.06349"
    assert tree.cssselect("#papers a")[1].get("href") == "https://example.org/rings"
    assert [link.get("href") for link in tree.cssselect(".talk a")] == ["/arxiv/2606.00003"]
    assert "Ran on 1 Jun 2026 in 41 s on a laptop" in tree.cssselect(".figure")[0].text_content()


def test_figures_are_drawn_by_the_server_and_carry_their_numbers_for_plotly(page: Page) -> None:
    tree = page("/methods/ring-memory")
    assert len(tree.cssselect(".figure .drawing svg")) == 2
    figure = json.loads(tree.cssselect(".figure script")[0].text)
    assert {"ring", "dense"} <= {trace.get("name") for trace in figure["data"]}
    assert any("plots" in script.get("src", "") for script in tree.cssselect("script"))
    assert tree.get("data-plotly").startswith("/static/vendor/plotly.min.js?v=")


def test_the_form_is_made_from_the_card(page: Page) -> None:
    form = page("/methods/ring-memory").cssselect("form#run")[0]
    assert (form.get("method"), form.get("action")) == ("post", RUN)
    assert dict(form.form_values()) == {"width": "8", "kind": "ring", "seconds": "0.0", "broken": "no", "seeds": "3"}
    assert form.cssselect("button")[0].text == "Run, about 3 s"
    for field in form.cssselect("input.input, select"):
        assert form.cssselect(f"label[for={field.get('id')}]"), field.get("name")


def test_a_plain_form_leads_to_the_run_and_its_result(client: TestClient) -> None:
    answer = client.post(RUN, data={"width": "5", "kind": "dense", "seeds": "2"})
    assert answer.status_code == 303
    tree = finished(client, answer.headers["location"])
    text = " ".join(tree.text_content().split())
    assert "The ring remembers." in text
    assert "holds, 2 seeds of 2" in text
    assert tree.cssselect(".figure svg")
    assert tree.cssselect(".checks td.v")[0].text == "5"
    assert "Ran just now" in html.document_fromstring(client.get("/methods/ring-memory").content).text_content()


def test_an_island_gets_progress_events_and_the_parts_that_changed(client: TestClient) -> None:
    answer = client.post(RUN, data={"seconds": "0.5", "seeds": "1"}, headers={"X-Part": "progress"})
    assert answer.status_code == 202
    run = answer.headers["X-Run"]
    (panel,) = html.fragments_fromstring(answer.text.strip())
    assert panel.get("data-events") == f"{run}/events"
    events = client.get(f"{run}/events")
    assert events.headers["content-type"].startswith("text/event-stream")
    said = [json.loads(line[6:]) for line in events.text.splitlines() if line.startswith("data: {")]
    assert said[-1]["state"] == "done"
    assert [now["fraction"] for now in said] == sorted(now["fraction"] for now in said)
    assert any("left" in now["text"] for now in said)
    assert events.text.endswith(f"event: end\ndata: {run}\n\n")
    parts = html.fragments_fromstring(client.get(run, headers={"X-Part": "result"}).text)
    assert [part.get("data-part") for part in parts if not isinstance(part, str)] == [
        "progress",
        "found",
        "main",
        "more",
    ]


def test_a_kept_result_is_there_at_once(client: TestClient) -> None:
    numbers = {"width": "7", "seeds": "1"}
    finished(client, client.post(RUN, data=numbers).headers["location"])
    answer = client.post(RUN, data=numbers, headers={"X-Part": "progress"})
    assert "Kept from a run just now" in answer.text
    assert "data-events" not in answer.text


def test_a_run_can_be_cancelled(client: TestClient) -> None:
    run = client.post(RUN, data={"seconds": "50", "seeds": "1"}).headers["location"]
    answer = client.post(f"{run}/cancel")
    assert (answer.status_code, answer.headers["location"]) == (303, run)
    assert "Cancelled" in finished(client, run).text_content()
    assert client.post(f"{run}/cancel", headers={"X-Part": "progress"}).status_code == 204


def test_a_site_that_closes_lets_go_of_those_who_follow_a_run(tmp_path: Path) -> None:
    words = "import sys; from pathlib import Path; from carrel.web.serve import serve; serve(Path(sys.argv[1]), port=0)"
    site = subprocess.Popen(
        [sys.executable, "-c", words, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert site.stdout is not None
        address = next(line for line in site.stdout if b"open at" in line).split(b"open at ")[1].split()[0].decode()
        host = address.removeprefix("http://").rstrip("/")
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        with closing(http.client.HTTPConnection(host, timeout=30)) as asked:
            asked.request("POST", "/methods/min-abc/run", "fresh=1", form)
            run = asked.getresponse().headers["Location"]
        with closing(http.client.HTTPConnection(host, timeout=30)) as following:
            following.request("GET", f"{run}/events")
            with following.getresponse() as events:
                assert events.readline() == b"event: now\n"
                site.send_signal(signal.SIGINT)
                assert b"event: end" not in events.read()
        assert site.wait(30) == 0
        assert site.stderr is not None
        assert site.stderr.read() == b""
    finally:
        site.kill()
        site.communicate()


def test_a_failed_run_says_why_and_keeps_the_result_before_it(client: TestClient, page: Page) -> None:
    run = client.post(RUN, data={"broken": "yes", "seeds": "1"}).headers["location"]
    tree = finished(client, run)
    assert "it broke on purpose" in tree.cssselect("[role=alert]")[0].text_content()
    assert page("/methods/ring-memory").cssselect(".found.holds")


def test_the_short_form_uses_its_own_numbers_unless_they_were_changed(client: TestClient, desk: Desk) -> None:
    for given, width in (("8", 4), ("9", 9)):
        run = client.post(RUN, data={"width": given, "seeds": "1", "quick": "1"}).headers["location"]
        job = desk.runner.job(run.removeprefix("/runs/"))
        desk.runner.wait(job, timeout=30)
        assert (job.quick, job.parameters["width"]) == (True, width)


@pytest.mark.parametrize(
    ("numbers", "sentence", "field"),
    [
        ({"width": "65"}, "Width must be between 2 and 64 numbers, got 65", "width"),
        ({"width": "many"}, "Width must be a whole number, got many", "width"),
        ({"kind": "square"}, "Kind must be ring or dense", "kind"),
        ({"height": "1"}, "Ring-memory has no parameter 'height'", "height"),
        ({"seeds": "0"}, "Seeds must be a whole number between 1 and 100, got '0'", "seeds"),
        ({"seeds": "000100999"}, "Seeds must be a whole number between 1 and 100, got '000100999'", "seeds"),
        ({"seeds": "1e3"}, "Seeds must be a whole number between 1 and 100, got '1e3'", "seeds"),
        ({"width": "65", "quick": "1"}, "Width must be between 2 and 64 numbers", "width"),
    ],
)
def test_a_number_that_cannot_be_used_is_told_in_a_sentence(
    client: TestClient, desk: Desk, numbers: dict[str, str], sentence: str, field: str
) -> None:
    before = len(desk.runner.jobs())
    answer = client.post(RUN, data=numbers)
    assert answer.status_code == 422
    text = html.document_fromstring(answer.content).text_content()
    assert sentence in text
    assert "Nothing was run" in text
    part = client.post(RUN, data=numbers, headers={"X-Part": "progress"})
    assert (part.status_code, part.headers["X-Field"]) == (422, field)
    assert part.headers["content-type"].startswith("text/plain")
    assert sentence in part.text
    assert len(desk.runner.jobs()) == before


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=z"])
def test_a_form_that_cannot_be_read_is_told_in_a_sentence(client: TestClient, kind: str) -> None:
    answer = client.post(RUN, content=b"no form", headers={"content-type": kind})
    assert answer.status_code == 400
    assert "could not be read" in answer.text
    assert "does not take POST" not in answer.text


def test_a_caveat_made_of_seeds_that_disagree_counts_none(client_with: Callable[[list[Paper]], TestClient]) -> None:
    client = client_with([])
    kept = client.app.state.site.desk.catalogue.results / "ring-memory.json"  # type: ignore[attr-defined]
    mixed = json.loads(kept.read_text(encoding="utf-8")) | {
        "verdict": "caveat",
        "verdicts": ["holds"] * 2 + ["not-shown"],
    }
    kept.write_text(json.dumps(mixed), encoding="utf-8")
    text = html.document_fromstring(client.get("/methods/ring-memory").content).text_content()
    assert "holds with a caveat" in text
    assert "0 seeds" not in text


def test_an_unknown_method_or_run_has_a_page_that_says_so(client: TestClient) -> None:
    answer = client.get("/methods/ring-memori")
    assert answer.status_code == 404
    assert "did you mean ring-memory?" in answer.text
    assert client.post("/methods/nothing/run").status_code == 404
    for path in ("/runs/abc", "/runs/abc/events"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "Results are kept" in answer.text
    assert client.get(f"{RUN}").status_code == 405
