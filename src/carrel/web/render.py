"""Templates to pages: the environment, what every page knows, and the cards of papers kept once rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from carrel.atlas import figure
from carrel.atlas.card import FAMILIES
from carrel.atlas.catalogue import Catalogue
from carrel.atlas.parts import Curve, cell, rough
from carrel.atlas.result import VERDICTS
from carrel.papers.categories import archives, taxonomy
from carrel.papers.model import Paper
from carrel.web import words
from carrel.web.assets import Assets
from carrel.web.codetext import coloured
from carrel.web.mathtext import typeset
from carrel.web.words import job_words

THEMES = ("system", "light", "dark")
_NUMBER = Markup("<!--n-->")  # stands for a card's number until it is on a page; escaped texts cannot contain it


class Renderer:
    """Makes pages. One for each site; templates are compiled once."""

    def __init__(self, assets: Assets, catalogue: Catalogue) -> None:
        self._env = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            autoescape=True,
            auto_reload=False,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.globals.update(
            asset=assets.url,
            assets_built=assets.built,
            catalogue=catalogue,
            category_name=category_name,
            drawing=_drawing,
            family_name=lambda family: FAMILIES.get(family, family),
            figure_json=_figure_json,
            job_words=job_words,
            themes=THEMES,
            verdicts=VERDICTS,
        )
        self._env.filters.update(
            address=lambda paper: address(paper.key),
            ago=words.ago,
            code=coloured,
            counted=words.counted,
            label=lambda name: name.replace("_", " ").capitalize(),
            long_day=words.long_day,
            month=words.month,
            number=cell,
            rough=rough,
            short_day=words.short_day,
            span=words.span,
            tex=typeset,
            weekday=words.weekday,
        )
        self._card = self._env.get_template("card.html").module.card  # type: ignore[attr-defined]
        self._kept = lru_cache(maxsize=4096)(self._card_of)

    def page(self, request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
        """A whole page, or a part of one, from its template."""
        theme = request.cookies.get("theme", "system")
        known = {
            "theme": theme if theme in THEMES else "system",
            "here": request.url.path + (f"?{request.url.query}" if request.url.query else ""),
            "query_with": lambda **changes: urlencode({**request.query_params, **changes}),
        }
        html = self._env.get_template(template).render({"section": "", "bar": False, **known, **context})
        return HTMLResponse(html, status)

    def part(self, template: str, **context: Any) -> str:
        """A fragment as text."""
        return self._env.get_template(template).render(context)

    def cards(
        self,
        papers: Sequence[Paper],
        methods: Mapping[str, tuple[str, ...]],
        *,
        first: int = 1,
        terms: Sequence[str] = (),
    ) -> list[Markup]:
        """The cards of a list, numbered from ``first``; one is rendered again only when paper or methods changed."""
        marked = tuple(terms)
        return [
            Markup(self._kept(paper, methods.get(paper.key, ()), marked).replace(_NUMBER, str(place)))
            for place, paper in enumerate(papers, first)
        ]

    def _card_of(self, paper: Paper, methods: tuple[str, ...], terms: tuple[str, ...]) -> str:
        return str(self._card(paper, methods, terms, _NUMBER))


def address(key: str) -> str:
    """Where the page of the paper with this key is."""
    arxiv = key.removeprefix("arxiv:")
    return f"/paper/{quote(key)}" if arxiv == key else f"/arxiv/{quote(arxiv)}"


def category_name(code: str) -> str:
    """``Machine Learning`` for ``cs.LG``, ``Computer Science`` for ``cs``; the code itself where it has no name."""
    known = taxonomy().get(code) or archives().get(code)
    return known.name_en if known else code


def _drawing(curve: Curve, width: int, height: int, thumbnail: bool = False) -> Markup:
    return Markup(figure.svg(curve, width=width, height=height, thumbnail=thumbnail))  # escapes its own texts


def _figure_json(curve: Curve) -> Markup:
    """The figure's data for the plot island; no ``<`` can end the element that holds it."""
    text = json.dumps(figure.plotly(curve), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))
