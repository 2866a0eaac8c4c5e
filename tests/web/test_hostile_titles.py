"""What authors write is text: no payload in a paper ever becomes part of a page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from urllib.parse import quote

from lxml import html
from starlette.testclient import TestClient

from carrel.papers.model import Paper

PAYLOADS = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example/x.js></sCrIpT>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    "<svg><script>alert(1)</script></svg>",
    '"><script>alert(1)</script>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    '<a href="javascript:alert(1)">x</a>',
    "<iframe srcdoc='<script>alert(1)</script>'></iframe>",
    "<math><mtext></mtext><script>alert(1)</script></math>",
    "<style>@import '//evil.example/x.css';</style>",
    "<link rel=stylesheet href=//evil.example/x.css>",
    "<base href=//evil.example/>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><input name=q></form>",
    "<object data=//evil.example></object>",
    "<embed src=//evil.example>",
    "<video><source onerror=alert(1)></video>",
    "<details open ontoggle=alert(1)>",
    "<body onload=alert(1)>",
    "<!--<script>alert(1)</script>-->",
    "--><script>alert(1)</script>",
    "<!--n-->",
    "]]><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    "</textarea><script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "${alert(1)}",
    "{{ 7 * 7 }}{% import 'os' as os %}",
    "$<script>alert(1)</script>$",
    "\\(<img src=x onerror=alert(1)>\\)",
    "$$\\href{javascript:alert(1)}{x}$$",
    "$\\style{background:url(//evil.example)}{x}$",
    "\\[</span><script>alert(1)</script>\\]",
    '<span class="tex">$x$</span>',
    "<div hx-get=//evil.example hx-trigger=load></div>",
    "<p data-events=//evil.example data-run data-copy></p>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<scr\x00ipt>alert(1)</scr\x00ipt>",
    "\u2028<script>alert(1)</script>\u2029",
    "＜script＞alert(1)＜/script＞<script>alert(1)</script>",
    "<a href='data:text/html,<script>alert(1)</script>'>x</a>",
]
# elements that no page of papers has
FOREIGN = {"iframe", "img", "object", "embed", "base", "style", "math", "video", "details", "textarea"}
ClientWith = Callable[[list[Paper]], TestClient]
PaperOf = Callable[..., Paper]
PATHS = ("/", "/arxiv/cs.LG?per=500", "/arxiv/2606.00001", "/search?q=harmless")


def hostile(paper_of: PaperOf, payload: str, number: int) -> Paper:
    return paper_of(
        number,
        title=f"harmless {payload}",
        abstract=f"harmless {payload} words",
        authors=(f"A. {payload}", payload),
        comment=payload,
        journal_ref=payload,
        venue=payload,
        announced=date(2026, 6, 18),
    )


def elements(page: bytes) -> list[html.HtmlElement]:
    """Every element of a page."""
    return [element for element in html.document_fromstring(page).iter() if isinstance(element.tag, str)]


def test_a_page_full_of_payloads_has_nothing_of_theirs(client_with: ClientWith, paper_of: PaperOf) -> None:
    client = client_with([hostile(paper_of, payload, n) for n, payload in enumerate(PAYLOADS, 1)])
    for path in PATHS:
        answer = client.get(path)
        assert answer.status_code == 200
        for element in elements(answer.content):
            assert element.tag not in FOREIGN, (path, element.tag)
            for name, value in element.attrib.items():
                assert not name.startswith("on"), (path, element.tag, name)
                assert name not in ("srcdoc", "style", "http-equiv", "data-run"), (path, element.tag, name)
                if name in ("href", "src", "action", "hx-get", "data-events"):
                    assert value.startswith(("/", "#", "https://arxiv.org/", "https://doi.org/")), (path, name, value)
                    assert not value.startswith("//"), (path, name, value)
            if element.tag == "script":
                assert element.get("src"), path


def test_a_payload_stands_on_its_page_as_it_was_written(client_with: ClientWith, paper_of: PaperOf) -> None:
    client = client_with([paper_of(n, abstract=f"before {payload} after") for n, payload in enumerate(PAYLOADS, 1)])
    for number, payload in enumerate(PAYLOADS, 1):
        (abstract,) = html.document_fromstring(client.get(f"/arxiv/2606.{number:05d}").content).cssselect("p.abstract")
        written = f"before {payload} after".replace("\x00", "\ufffd")  # how HTML reads that character
        assert " ".join(abstract.text_content().split()) == " ".join(written.split())


def test_queries_and_addresses_are_text_as_well(client: TestClient) -> None:
    for payload in PAYLOADS:
        answer = client.get("/search", params={"q": payload})
        assert answer.status_code == 200
        tree = html.document_fromstring(answer.content)
        assert tree.cssselect(".masthead input[name=q]")[0].get("value", "").startswith(payload[:4])
        assert "alert(1)" not in "".join(script.text or "" for script in tree.cssselect("script"))
        for room in ("methods", "arxiv", "paper", "runs"):
            path = f"/{room}/{quote(payload, safe='')}"
            page = client.get(path)
            assert page.status_code in (303, 307, 308, 404), path
            if page.status_code == 404:
                assert not [
                    e for e in html.document_fromstring(page.content).iter() if e.tag == "script" and not e.get("src")
                ]
