"""Which parts of a text a search found, as pieces for a template to escape and mark."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .tex import segments
from .tokens import HAN, stem

_WORD = re.compile(rf"[{HAN}]|[^\W_{HAN}]+")


def mark(text: str, terms: Iterable[str]) -> list[tuple[str, bool]]:
    """``text`` cut into (piece, is_match); joined again the pieces are ``text``.

    Math is never cut: ``$...$`` comes in one piece, unmarked. Nothing is escaped here; whoever shows a piece does that.

    Args:
        terms: `Found.terms`: terms of the index, or several in a row joined by blanks.
    Cost: O(len(text)), about 0.1 ms for an abstract.
    """
    rows: dict[str, list[list[str]]] = {}
    for term in terms:
        row = term.split(" ")
        rows.setdefault(row[0], []).append(row)
    pieces: list[tuple[str, bool]] = []
    for segment, is_math in segments(text):
        if is_math or not rows:
            pieces.append((segment, False))
        else:
            pieces += _marked(segment, rows)
    return pieces


def _marked(text: str, rows: dict[str, list[list[str]]]) -> list[tuple[str, bool]]:
    words = [(match.start(), match.end(), stem(match[0])) for match in _WORD.finditer(text)]
    pieces: list[tuple[str, bool]] = []
    done = index = 0
    while index < len(words):
        length = max((len(row) for row in rows.get(words[index][2], ()) if _stands(row, words, index)), default=0)
        if length == 0:
            index += 1
            continue
        start, end = words[index][0], words[index + length - 1][1]
        if start > done:
            pieces.append((text[done:start], False))
        pieces.append((text[start:end], True))
        done = end
        index += length
    if done < len(text):
        pieces.append((text[done:], False))
    return pieces


def _stands(row: list[str], words: list[tuple[int, int, str]], index: int) -> bool:
    return [word for _, _, word in words[index : index + len(row)]] == row
