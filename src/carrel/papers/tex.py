"""The little TeX that titles and abstracts carry: where its math is, and which letters its accents mean."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any

_SPECIAL = "oe|OE|ae|AE|aa|AA|o|O|l|L|ss|dh|DH|dj|DJ"
_ARGUMENT = rf"(?:[A-Za-z]|\\(?:i|j|{_SPECIAL})(?![A-Za-z])[ \t]*)"
_BRACED = rf"\{{\s*{_ARGUMENT}\s*\}}"
_ACCENTED = rf"\\['`^\"~=.](?:{_ARGUMENT}|{_BRACED})|\\[cvuHkrdb](?:\s*{_BRACED}|\s+[A-Za-z](?![a-z]?\s))"
_LETTER = rf"\\(?:{_SPECIAL})(?![A-Za-z])"
_ACCENT = re.compile(
    r"(?P<keep>\\[\\{]|(?<=[a-z])\\'(?:s|m|re|ll)(?![A-Za-z]))"  # \\ and \{ are no accents, nor is the one of it\'s
    rf"|\{{(?:{_ACCENTED}|{_LETTER}|\\(?:th|TH|ng|NG))\}}|{_ACCENTED}|{_LETTER}(?:\{{\}}|[ \t]+)?"
)


@lru_cache(maxsize=1)
def _converter() -> Callable[[str], str]:
    from pylatexenc.latex2text import LatexNodes2Text

    converter: Any = LatexNodes2Text()
    return lambda source: str(converter.latex_to_text(source))


@lru_cache(maxsize=4096)
def _letter(command: str) -> str:
    """The one letter that an accent command means; the command itself where Unicode has no such letter."""
    letter = unicodedata.normalize("NFC", _converter()(command).strip())
    return letter if len(letter) == 1 and letter.isalpha() and not letter.isascii() else command


def accents_decoded(text: str) -> str:
    r"""``text``, which holds no math, with ``Schr\"odinger``, ``\v{c}`` and ``{\o}`` written as letters.

    Cost: one regular expression over the text. The converter is slow, so it sees only the matches, each once.
    """
    if "\\" not in text:
        return text
    return _ACCENT.sub(lambda match: match[0] if match["keep"] else _letter(match[0]), text)


_ESCAPE_OR_DOLLAR = re.compile(r"\\.|\$", re.DOTALL)
_OPENING = re.compile(r"\\begin\s?\{([A-Za-z]+\*?)\}|\\.|\$", re.DOTALL)


def segments(text: str) -> list[tuple[str, bool]]:
    r"""``text`` cut into (piece, is_math); joined again the pieces are ``text``.

    Math is ``$...$``, ``$$...$$``, ``\(...\)``, ``\[...\]`` and environments. An odd number of dollar signs means
    prices or shell variables, and none is math then; nor is a pair such as ``$5 and $10``, nor one over a paragraph.

    Cost: O(len(text)), also for hostile text.
    """
    if "$" not in text and "\\" not in text:
        return [(text, False)] if text else []
    dollars = [match.start() for match in _ESCAPE_OR_DOLLAR.finditer(text) if match[0] == "$"] if "$" in text else []
    following = {} if len(dollars) % 2 else dict(pairwise(dollars))
    never: set[str] = set()  # closers that do not occur any more, so that each is sought in vain only once
    pieces: list[tuple[str, bool]] = []
    start = position = 0
    while match := _OPENING.search(text, position):
        opening, begin, position = match[0], match.start(), match.end()
        end = -1
        if opening == "$":
            end = _dollar_end(text, begin, following)
        elif opening in ("\\(", "\\[") or match[1]:
            closer = f"\\end{{{match[1]}}}" if match[1] else "\\)" if opening == "\\(" else "\\]"
            found = -1 if closer in never else text.find(closer, position)
            if found < 0:
                never.add(closer)
            else:
                end = found + len(closer)
        if end > 0:
            if begin > start:
                pieces.append((text[start:begin], False))
            pieces.append((text[begin:end], True))
            start = position = end
    if start < len(text):
        pieces.append((text[start:], False))
    return pieces


def _dollar_end(text: str, begin: int, following: dict[int, int]) -> int:
    """Where the math that opens at ``text[begin] == "$"`` ends; -1 if it is no math."""
    close = following.get(begin, -1)
    if close == begin + 1:  # $$...$$
        inner = following.get(close, -1)
        last = following.get(inner, -1)
        return last + 1 if inner > close + 1 and last == inner + 1 else -1
    if close < 0:
        return -1
    inside = text[begin + 1 : close]
    if "\n\n" in inside or not inside.strip():
        return -1
    if "0" <= inside[0] <= "9":  # $5 and $10; math may start with a digit, but not like this
        after = text[close + 1 : close + 2]
        if inside[-1].isspace() or ("0" <= after <= "9" and " " in inside):
            return -1
    return close + 1
