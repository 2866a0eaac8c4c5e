"""The site in a real Chromium: the first walk, formulas, keys, colours, hostile texts; nothing leaves the origin."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from carrel.desk import Desk, open_desk
from carrel.papers.model import Paper
from carrel.web.app import create_app
from carrel.web.assets import Assets

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [pytest.mark.browser, pytest.mark.slow]

CHROMIUM = os.environ.get("CARREL_CHROMIUM") or shutil.which("chromium")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
WIDE = r"\sum_{i=1}^{n} " + " + ".join(rf"\frac{{\partial f_{{{k}}}(x)}}{{\partial x_{{{k}}}}}" for k in range(1, 13))
HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    r"$\href{javascript:alert(1)}{x}$",
    r"$\href{https://evil.example/}{x}$ $\style{background:url(https://evil.example/x.png)}{x}$",
    r"\[\require{html}\cssId{main}{x}\class{card}{y}\]",
    r"$\unicode{x3C}img src=x onerror=alert(1)\unicode{x3E}$",
    r"$\text{<img src=x onerror=alert(1)>}$",
    r"$\def\x{\x\x}\x$ $\newcommand{\alpha}{hacked}\alpha$ $\alpha$",
    "{{ 7*7 }} ${alert(1)}",
    r"$\begin{array}{c} a \\ b$ $\frac{1$ $}{$",
]
Site = tuple[str, Desk]
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, papers: list[Paper]) -> Iterator[Site]:
    if not Assets(Path(create_app.__code__.co_filename).parent / "static").built:
        pytest.skip("the pages' assets are not built; run python hatch_build.py")
    with open_desk(tmp_path_factory.mktemp("browser")) as desk, socket.create_server(("127.0.0.1", 0)) as listener:
        with desk.store.begin() as shelved:
            shelved.put(papers)
        desk.refill()
        server = uvicorn.Server(uvicorn.Config(create_app(desk), log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", desk
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")
def papers(paper_of: Callable[..., Paper]) -> list[Paper]:
    made = [paper_of(n, abstract=f"Case {n} with $x_{{{n}}}^2$ and \\(y\\).") for n in range(1, 61)]
    made[1] = paper_of(2, title="Fast min_abc and other walks", abstract="About the minimum of a+b+c.")
    made[2] = paper_of(3, title="Wide formulas", abstract=f"See \\[{WIDE}\\] and inline $\\underbrace{{{WIDE}}}_z$.")
    made += [
        paper_of(100 + n, title=f"hostile {text}", abstract=text, authors=(text,), categories=("cs.CR",))
        for n, text in enumerate(HOSTILE)
    ]
    return made


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("needs Chromium: apt-get install chromium, or name one in CARREL_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any, site: Site) -> Iterator[OpenPage]:
    """``open_page(path, width=…, **context)``; fails at the end for a console error, a dialog, or a foreign request."""
    address, _ = site
    troubles: list[str] = []
    contexts = []

    def start(path: str = "/", *, width: int = 1280, allowed: str = "\0", **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda said: _harmless(said, allowed) or troubles.append(f"console: {said.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (troubles.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda asked: _inside(asked.url, address) or troubles.append(f"request: {asked.url}"))
        page.goto(address + path)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not troubles


def _harmless(said: Any, allowed: str) -> bool:
    return said.type not in ("error", "warning") or allowed in said.text


def _inside(url: str, address: str) -> bool:
    return url.startswith((f"{address}/", "data:", f"blob:{address}/"))


def until(page: Any, script: str, seconds: float = 30) -> None:
    """Wait until the script is true. (Playwright's own waiting needs eval, which the content policy forbids.)"""
    end = time.monotonic() + seconds
    while not page.evaluate(script):
        assert time.monotonic() < end, f"never came true: {script}"
        page.wait_for_timeout(50)


def typeset(page: Any) -> None:
    """Wait until every formula near the window is set."""
    until(
        page,
        """[...document.querySelectorAll('.tex')]
        .filter(e => e.getBoundingClientRect().top < innerHeight && e.getBoundingClientRect().bottom > 0)
        .every(e => e.querySelector('mjx-container')) && document.querySelector('.tex mjx-container') !== null""",
    )


def test_from_the_front_page_through_search_to_a_paper_its_method_and_the_plot_of_a_run(open_page: OpenPage) -> None:
    page = open_page("/")
    page.keyboard.press("/")
    page.keyboard.type("walks min_abc")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search?**")
    page.locator(".card h2 a").first.click()
    page.wait_for_url("**/arxiv/2606.00002")
    page.locator(".run-here a").first.click()
    page.wait_for_url("**/methods/min-abc")
    page.locator("figure[data-drawn] .plot svg.main-svg").first.wait_for()
    page.get_by_label("Short form").check()
    page.locator("#p-seeds").fill("1")
    page.get_by_role("button", name="Run, about").click()
    page.locator("#progress progress, #progress [role=status]").first.wait_for()
    page.locator("#progress [role=status]").wait_for(timeout=120_000)
    assert "Done in" in page.locator("#progress").inner_text()
    assert "one seed" in page.locator(".claim .found").inner_text()
    assert "short form" in page.locator(".result .figure").inner_text()
    page.locator(".result figure[data-drawn] .plot svg.main-svg .scatterlayer path.js-line").first.wait_for()
    assert page.url.endswith("/methods/min-abc"), "no reload, no other address"
    assert page.locator(".checks tbody tr").count() >= 3


def test_numbers_that_cannot_be_used_are_told_beside_the_form(open_page: OpenPage) -> None:
    page = open_page("/methods/min-abc", allowed="status of 422")
    page.locator("#p-decades").fill("400")
    page.get_by_role("button", name="Run, about").click()
    page.locator("form [role=alert]").filter(has_text="must be between").wait_for()
    assert page.locator("[name=decades]").get_attribute("aria-invalid") == "true"
    page.locator("#p-decades").fill("18")
    assert page.locator("form [role=alert]").is_hidden()


def test_a_run_that_the_site_no_longer_knows_is_said_and_can_be_started_again(open_page: OpenPage) -> None:
    page = open_page("/methods/min-abc", allowed="status of 404")
    page.route("**/events", lambda route: route.fulfill(status=404))
    page.locator("#p-samples").fill("777")  # not kept by another test, so that there is a run to follow
    page.locator("#p-seeds").fill("1")
    button = page.get_by_role("button", name="Run, about")
    button.click()
    page.locator("#progress").filter(has_text="no longer followed").wait_for()
    assert button.is_enabled()


def test_a_figure_gives_its_numbers_as_csv_and_its_picture_as_png(open_page: OpenPage) -> None:
    page = open_page("/methods/min-abc")
    page.locator("figure[data-drawn]").first.wait_for()
    with page.expect_download() as waited:
        page.get_by_role("button", name="CSV").first.click()
    text = Path(waited.value.path()).read_text(encoding="utf-8")
    assert text.startswith("line,")
    assert len(text.splitlines()) > 10
    with page.expect_download() as waited:
        page.get_by_role("button", name="PNG").first.click()
    assert Path(waited.value.path()).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("width", [320, 768, 1440])
def test_no_page_scrolls_sideways(open_page: OpenPage, site: Site, width: int) -> None:
    page = open_page(width=width)
    for path in (
        "/",
        "/arxiv/cs.LG",
        "/arxiv/2606.00003",
        "/search?q=walks",
        "/search/help",
        "/methods",
        "/methods/min-abc",
        "/compare",
    ):
        page.goto(page.url.split("/", 3)[0] + "//" + page.url.split("/", 3)[2] + path)
        if "arxiv" in path:
            typeset(page)
        page.wait_for_timeout(250)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path


def test_a_formula_follows_its_column_down_and_up_again(open_page: OpenPage) -> None:
    page = open_page("/arxiv/2606.00003", width=1440)
    typeset(page)
    look = """() => [...document.querySelectorAll('.tex.display')].map(box => {
        const formula = box.querySelector('mjx-container');
        return [formula.style.fontSize, box.scrollWidth - box.clientWidth, box.classList.contains('scrolls')]; })"""
    sizes = {}
    for width in (1440, 768, 560, 360, 1440):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        ((size, over, scrolls),) = page.evaluate(look)
        assert scrolls == (size == "60%" and over > 1) or (not scrolls and over <= 1), (width, size, over)
        if width == 1440 and 1440 in sizes:
            assert size == sizes[1440], "grown again, it is as it was"
        sizes[width] = size
    scales = [float(sizes[width].rstrip("%") or 100) for width in (1440, 768, 560, 360)]
    assert scales == sorted(scales, reverse=True)
    assert scales[0] > scales[-1] == 60


def test_the_rest_of_a_day_comes_when_it_is_scrolled_to(open_page: OpenPage) -> None:
    page = open_page("/arxiv/cs.LG")
    assert page.locator("article.card").count() == 20
    for _ in range(8):
        page.mouse.wheel(0, 40_000)
        page.wait_for_timeout(150)
    until(page, "document.querySelectorAll('article.card').length === 60")
    assert page.locator(".card .n").all_text_contents() == [str(n) for n in range(1, 61)]
    typeset(page)


def test_a_day_can_be_read_by_keys_alone(open_page: OpenPage) -> None:
    page = open_page("/arxiv/cs.LG")
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.locator(".card.current .n").inner_text() == "2"
    page.keyboard.press("k")
    assert page.locator(".card.current .n").inner_text() == "1"
    page.keyboard.press("?")
    assert page.locator("dialog#keys").is_visible()
    page.get_by_label("Single keys are on").uncheck()
    page.keyboard.press("Escape")
    page.locator("dialog#keys").wait_for(state="hidden")
    page.keyboard.press("j")
    assert page.locator(".card.current .n").inner_text() == "1", "single keys are off"
    page.reload()
    page.keyboard.press("j")
    assert page.locator(".card.current").count() == 0, "and stay off"
    page.keyboard.press("?")
    page.get_by_label("Single keys are on").check()
    page.keyboard.press("Escape")
    page.locator("dialog#keys").wait_for(state="hidden")
    page.keyboard.press("j")
    page.keyboard.press("o")
    page.wait_for_url("**/arxiv/2606.00001")


def test_colours_change_at_once_and_stay(open_page: OpenPage) -> None:
    page = open_page("/methods/min-abc", color_scheme="light")
    page.locator("figure[data-drawn] .plot svg.main-svg").first.wait_for()
    ground = "getComputedStyle(document.body).backgroundColor"
    stroke = "getComputedStyle(document.querySelector('.plot .xlines-above, .plot .gridlayer path')).stroke"
    light, line = page.evaluate(ground), page.evaluate(stroke)
    page.get_by_role("button", name="Dark colours").click()
    assert page.evaluate(ground) != light
    until(page, f"{stroke} !== {line!r}")
    page.reload()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    page.get_by_role("button", name="Colours as the system").click()
    assert page.evaluate(ground) == light


def test_the_atlas_filter_leaves_what_matches(open_page: OpenPage) -> None:
    page = open_page("/methods")
    total = page.locator(".tile").count()
    page.get_by_label("Filter methods").fill("sixth root")
    assert page.locator(".tile:visible").count() == 1
    page.get_by_label("Filter methods").fill("nothing like it")
    assert page.locator(".tile:visible").count() == 0
    page.keyboard.press("Escape")
    assert page.locator(".tile:visible").count() == total


def test_a_phone_opens_the_rail_as_a_drawer(open_page: OpenPage) -> None:
    page = open_page("/arxiv/cs.LG", width=390)
    assert page.locator("#drawer").is_hidden()
    page.get_by_role("button", name="Calendar").click()
    page.locator("#drawer .calendar").wait_for()
    page.keyboard.press("Escape")
    assert page.locator("#drawer").is_hidden()


def test_hostile_texts_run_nothing_even_without_the_content_policy(open_page: OpenPage) -> None:
    page = open_page("/arxiv/cs.CR", bypass_csp=True)
    typeset(page)
    page.wait_for_timeout(500)
    assert page.locator("main a[href^='javascript' i], main [onerror], main img, main iframe").count() == 0
    assert page.locator("main a[href*='evil.example']").count() == 0
    assert page.locator("main").count() == 1
    assert "hacked" not in page.locator("mjx-container").all_inner_texts()
    assert page.locator("#main").evaluate("e => e.tagName") == "MAIN"


def test_without_javascript_pages_are_read_and_experiments_are_run(open_page: OpenPage) -> None:
    page = open_page("/arxiv/cs.LG", java_script_enabled=False)
    assert "$x_{1}^2$" in page.locator(".card .abstract").first.inner_text()
    assert page.get_by_role("button", name="Copy").count() == 0
    page.get_by_text("Papers 21 to 40 of 60").click()
    assert page.locator(".card .n").first.inner_text() == "21"
    page.goto(page.url.split("/arxiv")[0] + "/methods/min-abc")
    assert page.locator(".figure svg").first.is_visible()
    page.get_by_label("Short form").check()
    page.locator("#p-seeds").fill("1")
    page.get_by_role("button", name="Run, about").click()
    page.wait_for_url("**/runs/*")
    page.locator(".checks").wait_for(timeout=120_000)
