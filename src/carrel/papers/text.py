"""Text of papers: cleaned when it comes in, written out plainly for search, feeds and exports, and lists of authors."""

from __future__ import annotations

import re
import unicodedata
from html.entities import html5

from .symbols import unicode_math, unmarked
from .tex import accents_decoded, segments

_ENTITY = re.compile(r"&(?:#([0-9]{1,7})|#[xX]([0-9A-Fa-f]{1,6})|([A-Za-z][A-Za-z0-9]{1,31}));")
# control characters, soft hyphen, zero-width space, line and bidi marks that reorder what is read, interlinear
# annotation, byte-order mark, non-characters, lone surrogates, and the invisible "tag" letters
_UNWANTED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u202a-\u202e\u2060\u2066-\u206f\ufff9-\ufffb\ufeff"
    "\ufdd0-\ufdef\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINE_END = re.compile("\r\n?|[\x85\u2028\u2029]")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*|\n[^\S\n]+")
_FOLD = re.compile(r"(?<![^\S\n])[^\S\n]*\n\s*")
_BLANKS = re.compile(r"[^\S\n]{2,}|[^\S\n ]")
_AROUND_BREAK = re.compile(r" ?\n\n ?")


def clean(text: str, *, one_line: bool = False) -> str:
    r"""The source form that is kept and shown: TeX stays, what came from transport goes.

    XML entities are decoded exactly once, Unicode is composed (NFC), control characters and those that turn the
    reading direction are removed, lines folded for mail are joined (a line that starts with blanks opens a paragraph,
    kept as an empty line), and accents such as ``\"o`` become letters. Math keeps all but its line breaks.

    Args:
        text: as a source gave it.
        one_line: for titles, authors and comments, whose second lines start with blanks and are no paragraphs.
    Cost: O(len(text)), about 20 µs for an abstract.
    """
    if "&" in text:
        text = _ENTITY.sub(_character, text)
    if not text.isprintable():  # line ends count as unprintable
        text = _LINE_END.sub("\n", text)
        text = _UNWANTED.sub("", text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    text = text.strip()
    if "\n" in text:
        text = _FOLD.sub(" ", text) if one_line else _FOLD.sub(" ", _PARAGRAPH.sub("\0", text)).replace("\0", "\n\n")
    if "\\" not in text and "$" not in text:
        return _collapsed(text)
    pieces = []
    for piece, is_math in segments(text):
        pieces.append(piece.replace("\n\n", " ") if is_math else _single_blanks(accents_decoded(piece)))
    return unicodedata.normalize("NFC", _AROUND_BREAK.sub("\n\n", "".join(pieces)).strip())


def plain(text: str) -> str:
    r"""``clean`` text for search, feeds and exports: math in Unicode where that is simple, no commands.

    ``$\alpha$`` is α, ``$x^2$`` is x^2, ``\emph{so}`` is so. Paragraphs stay. The result is text, not HTML: whoever
    shows it escapes it.

    Cost: O(len(text)), about 20 µs for an abstract.
    """
    pieces = [unicode_math(piece) if math else unmarked(piece) for piece, math in segments(text)]
    return _collapsed("".join(pieces))


def _single_blanks(text: str) -> str:
    if "  " in text or not text.replace("\n", "").isprintable():  # the blank is the only printable one
        return _BLANKS.sub(" ", text)
    return text


def _collapsed(text: str) -> str:
    text = _single_blanks(text).strip()
    return _AROUND_BREAK.sub("\n\n", text) if "\n" in text else text


def _character(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if name:
        return html5.get(f"{name};", match[0])
    code = int(decimal) if decimal else int(hexadecimal, 16)
    return chr(code) if 0 < code <= 0x10FFFF and not 0xD800 <= code <= 0xDFFF else ""


_INNERMOST = re.compile(r"\s*\([^()]*\)")
_BETWEEN = re.compile(
    r"\s*[,;]\s*(?:and\s+|&\s*)?|\s+(?:and|&)\s+|:\s+|\s+(?:for|on behalf of)\s+(?:the\s+)?(?=.*[Cc]ollaboration)"
)
_SUFFIX = re.compile(r"(?:Jr|Sr|Ph\.? ?D|M\.?D|II|III|IV)\.?\Z")
_ET_AL = re.compile(r"\s*\bet\.?\s+al\b\.?", re.IGNORECASE)


def split_authors(text: str) -> tuple[str, ...]:
    r"""The names in arXiv's one-string form ``A. Bal\'azs (1), B. Berger and C. Yuan (2) ((1) Here, (2) There)``.

    Affiliations in parentheses are dropped, ``Jr.`` and the like stay with their name, a collaboration is a name.

    Args:
        text: names as "First Last", joined by commas, semicolons or "and".
    Cost: O(len(text)).
    """
    text = clean(text, one_line=True)
    for _ in range(6):  # nested parentheses, innermost first
        shorter = _INNERMOST.sub("", text)
        if shorter == text:
            break
        text = shorter
    text = _ET_AL.sub("", text.partition(" (")[0])
    names: list[str] = []
    for name in _BETWEEN.split(text):
        name = plain(name.strip(" .,)") + "." if name.rstrip().endswith(".") else name.strip(" ,)"))
        if names and _SUFFIX.match(name):
            names[-1] += f", {name}" if not name.startswith("I") else f" {name}"
        elif name.strip(". "):
            names.append(name)
    return tuple(names)
