r"""Titles and abstracts carry TeX: text and formulas are told apart here, so that only formulas are typeset.

A formula is ``$…$``, ``$$…$$``, ``\(…\)``, ``\[…\]`` or a displayed environment. A dollar may also be money: as in
Pandoc, ``$`` opens a formula only before something that is no blank, and closes it only after such and before no digit;
between blanks it does so only if what stands inside looks like TeX.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup, escape

_ENVIRONMENTS = "equation|align|gather|multline|eqnarray"
_FORMULA = re.compile(
    rf"(?P<display>\$\$(?:[^$\\]|\\.){{1,2000}}\$\$|\\\[.{{1,2000}}?\\\]"
    rf"|\\begin\{{(?P<name>(?:{_ENVIRONMENTS})\*?)\}}.{{1,2000}}?\\end\{{(?P=name)\}})"
    r"|(?P<inline>\\\(.{1,1000}?\\\)"
    r"|(?<![\\$])\$(?=\S)(?:[^$\\]|\\.){0,999}?(?:(?<=\S)|\\.)\$(?![0-9$])"
    r"|(?<![\\$])\$\s(?=[^$]*[\\^_=<>])(?:[^$\\]|\\.){1,999}?\$(?![0-9$]))",
    re.DOTALL,
)


def segments(text: str) -> Iterator[tuple[str, str]]:
    """``("text" | "inline" | "display", piece)``; the pieces joined give the text back."""
    end = 0
    if "$" in text or "\\" in text:
        for found in _FORMULA.finditer(text):
            if found.start() > end:
                yield "text", text[end : found.start()]
            yield ("display" if found["display"] else "inline"), found[0]
            end = found.end()
    if end < len(text):
        yield "text", text[end:]


def typeset(text: str, terms: Sequence[str] = ()) -> Markup:
    """The text as HTML: formulas in ``span.tex`` as their source, ``terms`` marked in the words between them.

    Without JavaScript the reader sees the source, which is what the author wrote.
    """
    pattern = _terms(terms)
    return Markup("").join(_piece(kind, piece, pattern) for kind, piece in segments(text))


def _piece(kind: str, piece: str, pattern: re.Pattern[str] | None) -> Markup:
    if kind == "text":
        return _marked(piece.replace("\\$", "$"), pattern)
    names = "tex" if kind == "inline" else "tex display"
    return Markup('<span class="{}" translate="no">{}</span>').format(names, piece)


def _marked(text: str, pattern: re.Pattern[str] | None) -> Markup:
    if pattern is None:
        return escape(text)
    parts: list[Markup] = []
    end = 0
    for found in pattern.finditer(text):
        parts += (escape(text[end : found.start()]), Markup("<mark>{}</mark>").format(found[0]))
        end = found.end()
    return Markup("").join((*parts, escape(text[end:])))


def _terms(terms: Iterable[str]) -> re.Pattern[str] | None:
    """Words match at their beginning (``model`` marks ``models``); Chinese terms anywhere."""
    known = sorted({term for term in terms if term.strip()}, key=len, reverse=True)[:32]
    if not known:
        return None
    shapes = [
        rf"\b{re.escape(term)}\w{{0,3}}" if term[0].isascii() and term[0].isalnum() else re.escape(term)
        for term in known
    ]
    return re.compile("|".join(shapes), re.IGNORECASE)
