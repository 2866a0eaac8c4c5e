"""The query language: text that people type becomes a small tree, and never an error.

    words        all of them (AND), blanks between;   a b OR c d   means (a b) OR (c d)
    "a phrase"   in this order;                       "a phra"*    the last word may go on
    -word        not this;                            ( )          groups
    title: abs: author: cat: venue: year: date: announced: submitted: id: method: source:

What is not understood is searched as plain words, with a notice that says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from .filters import FILTERS
from .filters import Among as Among
from .filters import Within as Within

MOST_CHARACTERS = 500
MOST_CLAUSES = 32
_DEEPEST = 20  # nested parentheses; more are ignored

HELP: tuple[tuple[str, str], ...] = (
    ("graph transformer", "papers with both words; where fewer than ten have both, papers with one of them follow"),
    ('"attention is all you need"', "the words in this order"),
    ('"linear atten"*', "the words in this order, the last one may go on"),
    ("diffusion -image", "the first word and not the second"),
    ("mamba OR rwkv", "either word; a b OR c d means (a b) OR (c d)"),
    ("(mamba OR rwkv) speech", "parentheses group"),
    ("title:retention", "in the title; a phrase or a group may follow: title:(linear attention)"),
    ("abs:recall", "in the abstract"),
    ("author:bengio", 'by this author; author:"Yoshua Bengio" for the whole name'),
    ("cat:cs.LG", "in this category; cat:cs.LG+cs.CL-cs.CV and archives such as cat:math work too"),
    ("venue:ICLR.2024", "at this venue"),
    ("year:2023", "of this year; year:2020..2023 for a range, year:2020.. for all since"),
    ("date:2024-01..2024-06", "announced in these months, both included; days such as 2024-01-31 and years work too"),
    ("submitted:2024-03", "first submitted then; announced: likewise"),
    ("id:2303.06349", "this paper; an id, a DOI or an arXiv address alone leads straight to it"),
    ("method:lru", "papers that speak of this method of the atlas"),
    ("注意力机制", "Chinese without quotes is found as a phrase"),
    ("pre-training", "also finds pretraining and pre training; β-VAE also finds beta-VAE"),
)


@dataclass(frozen=True, slots=True)
class Words:
    """What stood between blanks, usually one word; ``field`` is "title", "abs", "author", "venue" or None for all."""

    text: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words in this order; with ``prefix`` the last may go on."""

    text: str
    field: str | None = None
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Not:
    """Papers without this."""

    node: Node


@dataclass(frozen=True, slots=True)
class AllOf:
    """Papers with all of these."""

    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Papers with one of these."""

    nodes: tuple[Node, ...]


Node: TypeAlias = "Words | Phrase | Within | Among | Not | AllOf | AnyOf"


@dataclass(slots=True)
class Query:
    """A query as understood: the tree (None if nothing is asked) and what the reader should be told."""

    node: Node | None
    notices: list[str] = field(default_factory=list)


_SAME_FIELD = {
    "title": "title",
    "ti": "title",
    "abs": "abs",
    "abstract": "abs",
    "author": "author",
    "au": "author",
    "venue": "venue",
    "cat": "cat",
    "category": "cat",
    "year": "year",
    "date": "date",
    "announced": "announced",
    "submitted": "submitted",
    "id": "id",
    "method": "method",
    "source": "source",
}
_TEXT_FIELDS = frozenset({"title", "abs", "author", "venue"})
_TOKEN = re.compile(
    r"""(?P<field>[A-Za-z]+):(?=[^\s)])"""
    r"""|"(?P<phrase>[^"]*)"(?P<prefix>\*?)"""
    r"""|(?P<open>\()|(?P<close>\))|(?P<quote>")"""
    r"""|(?P<minus>-(?=[^\s\-]))"""
    r"""|(?P<word>[^\s()"]+)"""
)
# full-width forms of what the language uses, and typographic quotes, as people type them among Chinese or paste them
_KEYBOARD = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict.fromkeys(map(ord, "“”„«»「」『』"), ord('"'))
_UNUSABLE = re.compile("[\ud800-\udfff\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def parse(text: str) -> Query:
    """Read a query. Never raises for any text.

    Cost: O(len(text)), at most 500 characters and 32 clauses are read.
    """
    notices: list[str] = []
    text = _UNUSABLE.sub(" ", text).translate(_KEYBOARD).strip()
    if len(text) > MOST_CHARACTERS:
        text = text[:MOST_CHARACTERS]
        notices.append(f"The query was cut after {MOST_CHARACTERS} characters.")
    reader = _Reader(text, notices)
    return Query(reader.read(), notices)


class _Reader:
    """Reads a query from left to right; each method takes what it understands and leaves the rest."""

    def __init__(self, text: str, notices: list[str]) -> None:
        self.tokens = list(_TOKEN.finditer(text))
        self.notices = notices
        self.position = 0
        self.clauses = 0
        self.depth = 0

    def read(self) -> Node | None:
        nodes: list[Node] = []
        while self.position < len(self.tokens):
            node = self.any_of(None)
            if node is not None:
                nodes.append(node)
            if self.position < len(self.tokens):  # a ")" that nothing opened
                self.position += 1
        return _all(nodes)

    def any_of(self, within: str | None) -> Node | None:
        choices = [self.all_of(within)]
        while self.at("word") == "OR":
            self.position += 1
            choices.append(self.all_of(within))
        nodes = [node for node in choices if node is not None]
        return AnyOf(tuple(nodes)) if len(nodes) > 1 else nodes[0] if nodes else None

    def all_of(self, within: str | None) -> Node | None:
        nodes: list[Node] = []
        while self.position < len(self.tokens) and self.at("close") is None and self.at("word") != "OR":
            node = self.item(within)
            if node is not None:
                nodes.append(node)
        return _all(nodes)

    def item(self, within: str | None) -> Node | None:
        token = self.tokens[self.position]
        self.position += 1
        if token["open"]:
            return self.group(within)
        if token["minus"] or token["word"] == "NOT":
            if self.position == len(self.tokens) or self.at("close") is not None:
                return None
            node = self.item(within)
            return node.node if isinstance(node, Not) else None if node is None else Not(node)
        if token["quote"]:
            self.notices.append("A quotation mark without its partner was left out.")
            return None
        if token["word"] == "AND":
            return None
        if token["field"]:
            return self.of_field(token, within)
        return self.counted(self.text_node(token, within))

    def group(self, within: str | None) -> Node | None:
        if self.depth >= _DEEPEST:
            return None
        self.depth += 1
        node = self.any_of(within)
        self.depth -= 1
        if self.at("close") is not None:
            self.position += 1
        return node

    def of_field(self, token: re.Match[str], within: str | None) -> Node | None:
        name = _SAME_FIELD.get(token["field"].lower())
        if name is None:
            self.notices.append(f"There is no field {token['field']!r}; searched as words.")
            return self.counted(Words(token["field"], within))
        if self.position == len(self.tokens):
            return None
        if name in _TEXT_FIELDS:
            return self.item(name)
        following = self.tokens[self.position]
        value = following["word"] if following["phrase"] is None else following["phrase"]
        if following["minus"] or following["field"]:  # id:arXiv:2303.06349 is one value
            value = self.joined()
        try:
            if value is None:
                raise ValueError("wants a value")
            node = FILTERS[name](name, value)
        except ValueError as reason:
            self.notices.append(f"{name}: {str(reason).rstrip('.')}; searched as words.")
            return None  # the value comes next, as words
        self.position += 1
        return self.counted(node)

    def joined(self) -> str | None:
        """The value that starts here and was cut at a colon or hyphen; leaves the position at its last piece."""
        start, end = self.tokens[self.position].start(), self.position
        while end + 1 < len(self.tokens) and self.tokens[end].end() == self.tokens[end + 1].start():
            end += 1
        self.position = end
        return self.tokens[end].string[start : self.tokens[end].end()]

    def text_node(self, token: re.Match[str], within: str | None) -> Node | None:
        if token["phrase"] is not None:
            return Phrase(token["phrase"], within, prefix=bool(token["prefix"])) if token["phrase"].strip() else None
        word = token["word"]
        if len(word) > 3 and word.endswith("*") and word[:-1].isalnum():
            return Phrase(word[:-1], within, prefix=True)
        return Words(word, within)

    def counted(self, node: Node | None) -> Node | None:
        if node is None:
            return None
        self.clauses += 1
        if self.clauses > MOST_CLAUSES:
            notice = f"Only the first {MOST_CLAUSES} words and conditions were used."
            if notice not in self.notices:
                self.notices.append(notice)
            return None
        return node

    def at(self, kind: str) -> str | None:
        return self.tokens[self.position][kind] if self.position < len(self.tokens) else None


def _all(nodes: list[Node]) -> Node | None:
    return AllOf(tuple(nodes)) if len(nodes) > 1 else nodes[0] if nodes else None
