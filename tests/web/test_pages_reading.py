"""Front page, days, papers and search, as a browser without JavaScript gets them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
from lxml.html import HtmlElement
from starlette.testclient import TestClient

from carrel.papers.model import Paper
from carrel.papers.query import HELP

PAGES = ("/", "/arxiv/cs.LG", "/arxiv/2606.00003", "/search", "/search?q=ring", "/search/help", "/methods",
         "/methods/ring-memory", "/nowhere")  # fmt: skip
Page = Callable[..., HtmlElement]
Words = Callable[..., str]
ClientWith = Callable[[list[Paper]], TestClient]
PaperOf = Callable[..., Paper]


def numbers(tree: HtmlElement) -> list[str]:
    return [element.text for element in tree.cssselect(".card h2 .n")]


def test_the_front_page_shows_the_newest_day_the_methods_and_the_papers_that_speak_of_them(page: Page) -> None:
    tree = page("/")
    assert tree.cssselect("h1")[0].text_content() == "Thursday 18 June 2026"
    assert tree.cssselect(".tile h3")[0].text_content() == "Ring memory"
    assert "A ring memory for long sequences" in [e.text_content() for e in tree.cssselect(".briefs .title")]
    assert "/arxiv/cs.LG" in [link.get("href") for link in tree.cssselect(".rail a")]


def test_a_desk_without_announcements_says_how_to_bring_papers_in(client_with: ClientWith) -> None:
    answer = client_with([]).get("/")
    assert answer.status_code == 200
    assert "carrel import FILE" in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_whoever_asks_only_whether_a_page_is_there_gets_its_headers(client: TestClient, path: str) -> None:
    asked, read = client.head(path), client.get(path)
    assert asked.status_code == read.status_code
    assert asked.headers["content-type"] == read.headers["content-type"]


def test_a_day_shows_its_first_twenty_papers_and_where_the_rest_is(page: Page) -> None:
    tree = page("/arxiv/cs.LG")
    assert numbers(tree) == [str(n) for n in range(1, 21)]
    (rest,) = tree.cssselect(".next-cards")
    assert rest.get("hx-get") == rest.cssselect("a")[0].get("href") == "/arxiv/cs.LG?page=2"
    assert rest.text_content().strip() == "Papers 21 to 40 of 45"


def test_turning_the_pages_shows_every_paper_once(page: Page) -> None:
    seen: list[str] = []
    path = "/arxiv/cs.LG"
    while path:
        tree = page(path)
        seen += [link.get("href") for link in tree.cssselect(".card h2 a")]
        following = tree.cssselect(".next-cards a")
        path = following[0].get("href") if following else ""
    assert seen == [f"/arxiv/2606.{n:05d}" for n in range(1, 46)]


def test_htmx_gets_the_cards_alone(client: TestClient) -> None:
    answer = client.get("/arxiv/cs.LG?page=3", headers={"HX-Request": "true"})
    assert answer.text.lstrip().startswith("<li>")
    assert answer.text.count("<article") == 5
    assert "<html" not in answer.text
    assert "next-cards" not in answer.text


def test_all_papers_fit_on_one_page_if_asked(page: Page) -> None:
    assert len(page("/arxiv/cs.LG?per=500").cssselect("article.card")) == 45


def test_neighbouring_days_are_linked_and_the_calendar_marks_the_days_that_have_papers(page: Page) -> None:
    tree = page("/arxiv/cs.LG+cs.CL?date=2026-06-17")
    assert tree.cssselect("a[rel=prev]")[0].get("href") == "/arxiv/cs.LG+cs.CL?date=2026-05-29"
    assert tree.cssselect("a[rel=next]")[0].get("href") == "/arxiv/cs.LG+cs.CL?date=2026-06-18"
    assert [link.text for link in tree.cssselect(".calendar a")] == ["17", "18"]
    assert tree.cssselect(".calendar a[aria-current]")[0].text == "17"


def test_a_day_without_papers_names_the_nearest_that_has_some(words: Words) -> None:
    assert "Nothing was announced in cs.LG on Wednesday 17 June 2026" in words("/arxiv/cs.LG?date=2026-06-17")


@pytest.mark.parametrize("day", ["0001-01-01", "9999-12-31"])
def test_the_first_and_the_last_day_there_is_have_a_page(words: Words, day: str) -> None:
    assert "Nothing was announced" in words(f"/arxiv/cs.LG?date={day}")


def test_a_category_without_days_says_what_to_do(words: Words) -> None:
    assert "carrel import FILE" in words("/arxiv/hep-th")


def test_other_spellings_of_an_expression_lead_to_one_address(client: TestClient) -> None:
    answer = client.get("/arxiv/cs.lg,cs.CL?date=2026-06-18")
    assert (answer.status_code, answer.headers["location"]) == (308, "/arxiv/cs.LG+cs.CL?date=2026-06-18")


def test_the_methods_met_on_a_day_stand_on_cards_and_in_the_rail(page: Page) -> None:
    tree = page("/arxiv/cs.LG")
    assert tree.cssselect(".card .chip.method")[0].get("href") == "/methods/ring-memory"
    assert "Ring memory" in tree.cssselect("aside.rail")[1].text_content()


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/arxiv/cs.XX", "has no category 'cs.XX'; did you mean"),
        ("/arxiv/9999.99999", "9999.99999"),
        ("/arxiv/2606.09999", "there is no paper 'arxiv:2606.09999' on this shelf"),
        ("/paper/doi:none", "there is no paper 'doi:none' on this shelf"),
        ("/nowhere", "There is no page /nowhere"),
    ],
)
def test_what_is_not_there_is_said_and_what_to_do(words: Words, path: str, sentence: str) -> None:
    text = words(path, 404)
    assert sentence.lower() in text.lower()
    assert "Nothing was changed." in text


@pytest.mark.parametrize(
    ("path", "field"),
    [("/arxiv/cs.LG?date=2026-13-45", "day"), ("/arxiv/cs.LG?page=x", "page"), ("/search?q=a&sort=b", "sort")],
)
def test_an_address_that_cannot_be_read_is_refused_in_a_sentence(words: Words, path: str, field: str) -> None:
    assert field in words(path, 422).lower()


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("2606.3", None),
        ("0606.00001", None),
        ("arXiv:2606.00001", "/arxiv/2606.00001"),
        ("2606.00001.pdf", "/arxiv/2606.00001"),
    ],
)
def test_ids_in_other_spellings_lead_to_the_paper(client: TestClient, asked: str, found: str | None) -> None:
    answer = client.get(f"/arxiv/{asked}")
    if found is None:
        assert answer.status_code == 404
    else:
        assert (answer.status_code, answer.headers["location"]) == (308, found)


def test_a_paper_tells_what_is_known_and_what_can_be_run(page: Page) -> None:
    tree = page("/arxiv/2606.00003")
    text = tree.text_content()
    for known in ("A ring memory for long sequences", "Ada Byron, Li Wei", "Machine Learning", "Thursday 18 June 2026"):
        assert known in text
    assert tree.cssselect(".run-here a")[0].get("href") == "/methods/ring-memory"
    metas = {meta.get("name"): meta.get("content") for meta in tree.cssselect("meta[name^=citation_]")}
    assert metas["citation_arxiv_id"] == "2606.00003"
    assert metas["citation_publication_date"] == "2026/06/17"
    links = {link.text: link for link in tree.cssselect(".actions a")}
    assert links["PDF"].get("href") == "https://arxiv.org/pdf/2606.00003"
    assert links["PDF"].get("rel") == "noopener"


def test_a_version_stays_in_the_links(page: Page) -> None:
    assert page("/arxiv/2606.00003v2").cssselect("a[data-pdf]")[0].get("href") == "https://arxiv.org/pdf/2606.00003v2"


def test_a_paper_without_abstract_shows_our_remark_and_one_outside_arxiv_has_a_page(
    words: Words, client: TestClient
) -> None:
    assert "Ours." in words("/arxiv/2303.06349")
    assert "A book" in words("/paper/doi:10.1000/182")
    assert client.get("/paper/arxiv:2303.06349").headers["location"] == "/arxiv/2303.06349"


def test_formulas_are_told_apart_and_money_is_left_alone(page: Page) -> None:
    card = page("/arxiv/cs.LG").cssselect("article.card")[0]
    assert [tex.text for tex in card.cssselect(".tex")] == ["$h_t = \\lambda h_{t-1}$", "\\(x_1\\)"]
    assert all(tex.get("translate") == "no" for tex in card.cssselect(".tex"))
    assert "a cost of $5 to $6" in card.text_content()


def test_search_marks_the_words_and_keeps_them_in_the_box(page: Page) -> None:
    tree = page("/search?q=ring+memory")
    assert next(a.get("href") for a in tree.cssselect(".card h2 a")) == "/arxiv/2606.00003"
    assert {word for mark in tree.cssselect("mark") for word in mark.text.lower().split()} >= {"ring", "memory"}
    assert tree.cssselect(".masthead input[name=q]")[0].get("value") == "ring memory"


def test_search_for_an_id_leads_to_the_paper(client: TestClient) -> None:
    answer = client.get("/search?q=arXiv:2606.00003v1")
    assert (answer.status_code, answer.headers["location"]) == (303, "/arxiv/2606.00003")


@pytest.mark.parametrize("query", ['"(((', "x" * 10_000, "author:", "-", "\x00", "cat:nowhere", "💥 AND OR NOT )"])
def test_no_query_breaks_the_page(client: TestClient, query: str) -> None:
    assert client.get("/search", params={"q": query}).status_code == 200


def test_a_page_of_finds_beyond_the_last_leads_to_the_last(client: TestClient) -> None:
    answer = client.get("/search?q=case&page=400", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/search?q=case&page=3")
    assert 'class="card"' in client.get("/search?q=case&page=3").text


def test_finding_nothing_says_what_to_do(words: Words) -> None:
    assert "Fewer or other words may help" in words("/search?q=zzzzqqqq")


def test_the_query_language_is_explained_and_every_example_can_be_tried(page: Page, client: TestClient) -> None:
    examples = page("/search/help").cssselect("table a")
    assert [link.text_content() for link in examples] == [query for query, _ in HELP]
    for link in examples:
        assert client.get(link.get("href")).status_code in (200, 303)


def test_every_page_has_one_heading_a_main_part_and_no_script_or_handler_in_it(page: Page, client: TestClient) -> None:
    for path in PAGES:
        tree = page(path, 404 if path == "/nowhere" else 200)
        assert len(tree.cssselect("h1")) == 1, path
        assert len(tree.cssselect("main#main")) == 1, path
        for script in tree.cssselect("script"):
            assert script.get("src") or script.get("type") == "application/json", path
        assert not [
            name
            for element in tree.iter()
            if isinstance(element.tag, str)
            for name in element.attrib
            if name.startswith("on") or name == "style"
        ], path


def test_the_chosen_colours_are_in_the_first_paint(client: TestClient, page: Page) -> None:
    answer = client.post(
        "/theme", data={"theme": "dark", "back": "/methods"}, headers={"origin": "http://127.0.0.1:8477"}
    )
    assert (answer.status_code, answer.headers["location"]) == (303, "/methods")
    assert page("/").get("data-theme") == "dark"
    client.post("/theme", data={"theme": "system"})
    assert page("/").get("data-theme") is None


@pytest.mark.parametrize("back", ["https://example.org/", "//example.org", "/\\example.org", "javascript:alert(1)"])
def test_choosing_colours_never_leads_off_the_desk(client: TestClient, back: str) -> None:
    assert client.post("/theme", data={"theme": "light", "back": back}).headers["location"] == "/"


def test_a_hundred_cards_take_the_server_less_than_sixty_milliseconds(
    client_with: ClientWith, paper_of: PaperOf
) -> None:
    abstract = "Words of an abstract of the usual length, with a formula such as $x^2 + y^2$ here and there. " * 15
    client = client_with([paper_of(n, abstract=f"On {n}: {abstract}") for n in range(1, 121)])
    spans = []
    for _ in range(9):
        start = time.process_time()  # this process alone, whatever else the machine does
        answer = client.get("/arxiv/cs.LG?per=100")
        spans.append(time.process_time() - start)
    assert answer.text.count("<article") == 100
    assert statistics.median(spans) < 0.06
