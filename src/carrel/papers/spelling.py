"""Terms of the index that look like a misspelt one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import sqrt

import tantivy

_MOST = 6  # similar terms for one word
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_FIRST_RIGHT = 3  # letters that a word with two edits must begin with


def similar(
    searcher: tantivy.Searcher, fields: Iterable[str], word: str, terms_of: Callable[[str], list[str]]
) -> list[tuple[str, float]]:
    """Terms of words one edit from ``word`` (of 4 or more letters), else two edits (of 8 or more letters).

    Swapped neighbours are one edit. One edit is looked for anywhere, two only behind the first three letters.

    Args:
        fields: fields of one analyzer, whose terms are looked at together.
        word: as typed, in letters; endings are cut only after an edit, since ``communicaions`` has no ending to cut.
        terms_of: that analyzer.
    Returns (term, likeness in (0, 1)): nearer and commoner terms are likelier, the likeliest first.
    Cost: one look-up for each of the 50 len(word) words an edit away, most of them in one list; about 1 ms.
    """
    fields, own = tuple(fields), terms_of(word)
    if len(word) < 4 or not own:
        return []
    around = dict.fromkeys(terms_of(" ".join(one_edit_away(word.lower()))))
    papers: dict[str, int] = {}
    for field in fields:
        alike = dict(searcher.terms_with_prefix(field, own[0][:_FIRST_RIGHT]))  # most edits lie behind these letters
        for term in around:
            near = term.startswith(own[0][:_FIRST_RIGHT])
            count = alike.get(term, 0) if near else searcher.doc_freq(field, term)
            if count and term not in own:
                papers[term] = papers.get(term, 0) + count
    edits = 1
    if not papers and len(word) >= 8 and len(own) == 1:
        papers, edits = _two_edits_away(searcher, fields, own[0]), 2
    commonest = max(papers.values(), default=1)
    likely = [(term, 0.5**edits * sqrt(count / commonest)) for term, count in papers.items()]
    return sorted(likely, key=lambda found: (-found[1], found[0]))[:_MOST]


def one_edit_away(word: str) -> Iterator[str]:
    """Every word that is ``word`` with a letter left out, added or replaced, or two neighbours swapped."""
    seen = {word}
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    for before, after in cuts:
        edited = [before + letter + after for letter in _LETTERS]
        if after:
            edited.append(before + after[1:])
            edited += [before + letter + after[1:] for letter in _LETTERS]
        if len(after) > 1:
            edited.append(before + after[1] + after[0] + after[2:])
        for other in edited:
            if other not in seen:
                seen.add(other)
                yield other


def distance(one: str, other: str, most: int) -> int:
    """Edits between two words, swapped neighbours being one; anything above ``most`` if it is more than that."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, 1):
            edits = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and wanted == one[i - 2]:
                edits = min(edits, last[j - 2] + 1)
            row.append(edits)
        if min(row) > most:
            return most + 1
    return row[-1]


def _two_edits_away(searcher: tantivy.Searcher, fields: tuple[str, ...], term: str) -> dict[str, int]:
    letters = _letters(term)
    papers: dict[str, int] = {}
    for field in fields:
        for other, count in searcher.terms_with_prefix(field, term[:_FIRST_RIGHT]):
            near = abs(len(other) - len(term)) <= 2 and (letters ^ _letters(other)).bit_count() <= 4
            if near and other != term and (other in papers or distance(term, other, 2) <= 2):
                papers[other] = papers.get(other, 0) + count
    return papers


def _letters(word: str) -> int:
    """Which letters occur, as bits; two words an edit apart differ in at most two."""
    bits = 0
    for letter in word:
        bits |= 1 << (ord(letter) & 63)
    return bits
