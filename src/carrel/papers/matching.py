"""A query's tree as a query of the engine: exact, with similar spellings, and with only some of the words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import tantivy

from .documents import day_bounds, midnight, schema
from .query import AllOf, Among, Node, Not, Phrase, Within, Words
from .spelling import similar
from .tokens import is_chinese, names, runs, spellings, stem, stems

MUST, SHOULD, NEVER = tantivy.Occur.Must, tantivy.Occur.Should, tantivy.Occur.MustNot
BOOST = {"title": 4.0, "abstract": 1.5, "author": 3.0, "notes": 0.5, "venue": 0.5}
_FIELDS = {
    None: ("title", "abstract", "author", "notes", "venue"),
    "title": ("title",),
    "abs": ("abstract",),
    "author": ("author",),
    "venue": ("venue",),
}
_NAMES = frozenset({"author", "venue"})
_STOP_WORDS = """
a an and are as at be been but by can do does for from has have how if in into is it its not of on or our so such than
that the their then there these they this to via was we were what when which while will with you your
"""
_STOP_STEMS = frozenset(map(stem, _STOP_WORDS.split()))
MOST_FUZZY = 3
_RARE = 2  # a word found in more papers than this is not taken for a misspelling
_MOST_PREFIXED = 50
_ABOVE = 4000.0  # lifts better matches over weaker ones, whose scores stay below


class Match:
    """One query against one state of the index.

    Attributes:
        terms: what to highlight: terms, and rows of terms joined by blanks.
        misspelt: words for which similar spellings were taken; ``more_misspelt`` if there were too many of them.
    """

    def __init__(self, node: Node, searcher: tantivy.Searcher) -> None:
        self._searcher = searcher
        self._schema = schema()
        self.terms: dict[str, None] = {}
        self.misspelt: list[str] = []
        self.more_misspelt = False
        self._alike: dict[tuple[str, str], list[tuple[str, float]]] = {}
        parts = _flat(node)
        self._wanted = [part for part in parts if not isinstance(part, Not | Within | Among)]
        self._frame = [self._required(part) for part in parts if isinstance(part, Not | Within | Among)]

    @property
    def has_words(self) -> bool:
        """Whether anything is asked that can be ranked; filters alone cannot."""
        return bool(self._wanted)

    @property
    def has_choice(self) -> bool:
        """Whether fewer words than all could be asked for."""
        words = [part for part in self._wanted if not (isinstance(part, Words) and _is_stop_word(part))]
        return len(words) > 1 or any(isinstance(part, Words) and is_chinese(part.text) for part in words)

    def strict(self) -> tantivy.Query:
        """All words, none of the excluded, within the filters. Stop words only add to the score."""
        return self._framed(self._all(self._text))

    def similar(self) -> tantivy.Query | None:
        """``strict`` with words that hardly occur replaced by similar ones; None if there are none."""
        self.misspelt = []
        query = self._framed(self._all(self._fuzzy))
        return query if self.misspelt else None

    def loose(self) -> tantivy.Query:
        """Some of the words, within the filters."""
        return self._framed(tantivy.Query.boolean_query([(SHOULD, part) for part in self._loose_parts()]))

    def _all(self, query_of: Callable[[Words], tantivy.Query | None]) -> tantivy.Query | None:
        """Every wanted part required, except stop words beside others."""
        found: list[tuple[tantivy.Query, bool]] = []
        for part in self._wanted:
            query = query_of(part) if isinstance(part, Words) else self._query(part)
            if query is not None:
                found.append((query, isinstance(part, Words) and _is_stop_word(part)))
        if not found:
            return None
        only_stop_words = all(is_stop for _, is_stop in found)
        return tantivy.Query.boolean_query([(SHOULD if s and not only_stop_words else MUST, q) for q, s in found])

    def _framed(self, query: tantivy.Query | None) -> tantivy.Query:
        clauses = list(self._frame)
        if query is not None:
            clauses.append((MUST, query))
        elif not any(occur is MUST for occur, _ in clauses):
            clauses.append((MUST, tantivy.Query.empty_query() if self._wanted else tantivy.Query.all_query()))
        return tantivy.Query.boolean_query(clauses)

    def _required(self, node: Not | Within | Among) -> tuple[tantivy.Occur, tantivy.Query]:
        if isinstance(node, Not):
            kept = dict(self.terms)
            query = self._query(node.node)
            self.terms = kept  # what must not occur is not highlighted
            return NEVER, query or tantivy.Query.empty_query()
        return MUST, self._filter(node)

    def _query(self, node: Node) -> tantivy.Query | None:
        """Any part of the tree; None if nothing of it can be searched, such as punctuation."""
        if isinstance(node, Words):
            return self._text(node)
        if isinstance(node, Phrase):
            return self._phrase(node)
        if isinstance(node, Within | Among):
            return self._filter(node)
        if isinstance(node, Not):
            return tantivy.Query.boolean_query([(MUST, tantivy.Query.all_query()), self._required(node)])
        queries = [query for query in map(self._query, node.nodes) if query is not None]
        if not queries:
            return None
        occur = MUST if isinstance(node, AllOf) else SHOULD
        return tantivy.Query.boolean_query([(occur, query) for query in queries])

    def _filter(self, node: Within | Among) -> tantivy.Query:
        query = self._within(node) if isinstance(node, Within) else self._among(node)
        return tantivy.Query.const_score_query(query, 0.0)

    def _among(self, node: Among) -> tantivy.Query:
        wanted = tantivy.Query.term_set_query(self._schema, node.field, sorted(node.include))
        if not node.exclude:
            return wanted
        unwanted = tantivy.Query.term_set_query(self._schema, node.field, sorted(node.exclude))
        return tantivy.Query.boolean_query([(MUST, wanted), (NEVER, unwanted)])

    def _within(self, node: Within) -> tantivy.Query:
        if node.field in ("year", "date"):
            low, high = (node.low, node.high) if node.field == "year" else day_bounds(node.low, node.high)
            field = "year" if node.field == "year" else "day"
            return tantivy.Query.range_query(self._schema, field, tantivy.FieldType.Integer, low, high)
        first = None if node.low is None else midnight(node.low)
        after = None if node.high is None else midnight(node.high + 1)
        return tantivy.Query.range_query(
            self._schema, node.field, tantivy.FieldType.Date, first, after, include_upper=after is None
        )

    def _phrase(self, node: Phrase) -> tantivy.Query | None:
        """The words in a row in one field."""
        row = tuple(stems(node.text))
        if not node.prefix:
            if row:
                self.terms[" ".join(row)] = None
            return self._any_field(node.field, lambda field: self._row(field, _terms(field, node.text)))
        return self._any_field(node.field, lambda field: self._prefixed(field, node.text))

    def _text(self, node: Words) -> tantivy.Query | None:
        """A word in any of its spellings; Chinese in a row."""
        queries = [query for run in runs(node.text) if (query := self._run(run, node.field)) is not None]
        if len(queries) < 2:
            return queries[0] if queries else None
        return tantivy.Query.boolean_query([(MUST, query) for query in queries])

    def _run(self, run: str, scope: str | None) -> tantivy.Query | None:
        rows = [run] if is_chinese(run) else spellings(run)
        for row in rows:
            if terms := stems(row):
                self.terms[" ".join(terms)] = None
        return self._any_field(scope, lambda field: self._alternatives(field, rows))

    def _alternatives(self, field: str, rows: Sequence[str]) -> tantivy.Query | None:
        distinct = dict.fromkeys(tuple(_terms(field, row)) for row in rows)
        queries = [query for terms in distinct if (query := self._row(field, terms)) is not None]
        return queries[0] if len(queries) == 1 else _any(queries)

    def _any_field(self, scope: str | None, query_in: Callable[[str], tantivy.Query | None]) -> tantivy.Query | None:
        queries = []
        for field in _FIELDS[scope]:
            query = query_in(field)
            if query is not None:
                queries.append(tantivy.Query.boost_query(query, BOOST[field]))
        return queries[0] if len(queries) == 1 else _any(queries)

    def _row(self, field: str, terms: Sequence[str]) -> tantivy.Query | None:
        if not terms:
            return None
        if len(terms) == 1:
            return tantivy.Query.term_query(self._schema, field, terms[0], "freq")
        return tantivy.Query.phrase_query(self._schema, field, list(terms))

    def _prefixed(self, field: str, text: str) -> tantivy.Query | None:
        whole = names(text)
        if not whole:
            return None
        if begun := stems(text)[:-1]:
            self.terms[" ".join(begun)] = None
        last = whole[-1]
        if field not in _NAMES and last.startswith(stem(last)):
            last = stem(last)  # "transformer"* must find transform
        terms: list[str | tuple[int, str]] = [*_terms(field, text)[:-1], last]
        if len(terms) > 1:
            return tantivy.Query.phrase_prefix_query(self._schema, field, terms)
        beginning = sorted(self._searcher.terms_with_prefix(field, last), key=lambda found: -found[1])
        if not beginning:
            return tantivy.Query.term_query(self._schema, field, last, "freq")
        continued = [term for term, _ in beginning[:_MOST_PREFIXED]]
        self.terms |= dict.fromkeys(continued)
        return _any([tantivy.Query.term_query(self._schema, field, term, "freq") for term in continued])

    def _fuzzy(self, node: Words) -> tantivy.Query | None:
        """``_text``, but beside a word that hardly occurs those that look like it."""
        exact = self._text(node)
        word = node.text.strip(",.;:!?'’")
        if exact is None or len(word) < 4 or not word.isalpha() or is_chinese(word):
            return exact
        fields = _FIELDS[node.field]
        searched = {field: _terms(field, word) for field in fields}
        if any(len(terms) != 1 for terms in searched.values()):
            return exact
        if any(self._searcher.doc_freq(field, terms[0]) > _RARE for field, terms in searched.items()):
            return exact
        if len(self.misspelt) >= MOST_FUZZY and word not in self.misspelt:
            self.more_misspelt = True
            return exact
        queries = [exact]
        for alike in ([f for f in fields if f not in _NAMES], [f for f in fields if f in _NAMES]):
            if not alike:
                continue
            for other, likeness in self._similar(alike, word):
                self.terms[other] = None
                for field in alike:
                    query = tantivy.Query.term_query(self._schema, field, other, "freq")
                    queries.append(tantivy.Query.boost_query(query, BOOST[field] * likeness))
        if len(queries) == 1:
            return exact
        if word not in self.misspelt:
            self.misspelt.append(word)
        return _any(queries)

    def _similar(self, fields: list[str], word: str) -> list[tuple[str, float]]:
        if (fields[0], word) not in self._alike:
            # the words of remarks are those of titles and abstracts, and venues are few: not worth more look-ups
            asked = [field for field in fields if field not in ("notes", "venue")] or fields
            terms_of = names if fields[0] in _NAMES else stems
            self._alike[fields[0], word] = similar(self._searcher, asked, word, terms_of)
        return self._alike[fields[0], word]

    def _loose_parts(self) -> list[tantivy.Query]:
        """What may be found one without the other: words but stop words, and pairs of neighbours within Chinese."""
        parts: list[tantivy.Query] = []
        for part in self._wanted:
            if isinstance(part, Words) and is_chinese(part.text):
                for run in runs(part.text):
                    pieces = ["".join(pair) for pair in pairwise(run)] if is_chinese(run) and len(run) > 2 else [run]
                    parts += [query for piece in pieces if (query := self._run(piece, part.field)) is not None]
            elif not (isinstance(part, Words) and _is_stop_word(part)):
                query = self._fuzzy(part) if isinstance(part, Words) and self.misspelt else self._query(part)
                if query is not None:
                    parts.append(query)
        return parts


def ranked(queries: Sequence[tantivy.Query]) -> tantivy.Query:
    """Papers of the last query, first those of the first; each query finds all that those before it find."""
    *better, widest = queries
    lifted = [tantivy.Query.const_score_query(query, _ABOVE) for query in better]
    return tantivy.Query.boolean_query([(SHOULD, query) for query in (*lifted, widest)]) if lifted else widest


def _any(queries: Iterable[tantivy.Query]) -> tantivy.Query | None:
    clauses = [(SHOULD, query) for query in queries]
    return tantivy.Query.boolean_query(clauses) if clauses else None


def _flat(node: Node) -> list[Node]:
    """The parts that must all hold."""
    return [part for inner in node.nodes for part in _flat(inner)] if isinstance(node, AllOf) else [node]


def _terms(field: str, text: str) -> list[str]:
    return names(text) if field in _NAMES else stems(text)


def _is_stop_word(node: Words) -> bool:
    return node.field is None and stem(node.text) in _STOP_STEMS
