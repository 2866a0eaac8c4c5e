"""From papers to methods: which phrases and ids of the catalogue a paper speaks of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence

import orjson

from .model import Paper

_RULES = 1  # raised when matching changes, so that every link is made again
_WORD = re.compile(r"[^\W_]+")
_PART = re.compile(r"[\s\-‐-―]+")
_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")
_GAP = r"[\s\-‐-―]+"


class Bridge:
    """One matcher over all phrases of all methods.

    A phrase is sought as whole words, with blanks and hyphens alike and an ``s`` allowed at its end. Words with a
    capital after their first letter, or a capital beside a digit (``LRU``, ``RoPE``, ``S4``), are sought as they are
    written, all others in any case.

    The words of a text are looked up in a table that has one word of each phrase; only phrases whose word is there are
    compared with the text. So the cost is that of splitting the text, however many phrases there are.

    Args:
        aliases: method slug to phrases and keys such as ``"arxiv:2303.06349"``.
    """

    def __init__(self, aliases: Mapping[str, Sequence[str]]) -> None:
        self.digest = digest(aliases)
        self._by_key: dict[str, set[str]] = {}
        self._by_word: dict[str, list[tuple[re.Pattern[str], str]]] = {}
        self._unworded: list[tuple[re.Pattern[str], str]] = []
        for slug, phrases in aliases.items():
            for phrase in phrases:
                if _is_key(phrase):
                    self._by_key.setdefault(phrase, set()).add(slug)
                elif phrase.strip():
                    self._add(phrase.strip(), slug)

    def _add(self, phrase: str, slug: str) -> None:
        entry = (_pattern(phrase), slug)
        words = [] if _HAN.search(phrase) else _WORD.findall(phrase.lower())
        if not words:
            self._unworded.append(entry)
            return
        word = max(words, key=len)  # the longest is the rarest, near enough
        self._by_word.setdefault(word, []).append(entry)
        if word == words[-1]:
            self._by_word.setdefault(word + "s", []).append(entry)

    def methods(self, paper: Paper, plain: Callable[[str], str]) -> frozenset[str]:
        """The slugs that ``paper`` speaks of, by its key, title and abstract (or remark).

        Args:
            plain: takes the TeX out of a text.
        Cost: O(length of the text).
        """
        found = set(self._by_key.get(paper.key, ()))
        if self._by_word or self._unworded:
            found |= self.spoken(plain(f"{paper.title}\n\n{paper.abstract or paper.remark}"))
        return frozenset(found)

    def spoken(self, text: str) -> set[str]:
        """The slugs whose phrases occur in ``text``."""
        found: set[str] = set()
        for word in self._by_word.keys() & set(_WORD.findall(text.lower())):
            for pattern, slug in self._by_word[word]:
                if slug not in found and pattern.search(text):
                    found.add(slug)
        for pattern, slug in self._unworded:
            if slug not in found and pattern.search(text):
                found.add(slug)
        return found


def digest(aliases: Mapping[str, Sequence[str]]) -> str:
    """A hash of the aliases and of the rules by which they are matched."""
    plain = {slug: sorted(set(phrases)) for slug, phrases in aliases.items()}
    return hashlib.blake2b(orjson.dumps([_RULES, plain], option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def _is_key(phrase: str) -> bool:
    return phrase.startswith(("arxiv:", "doi:", "bibtex:"))


def _pattern(phrase: str) -> re.Pattern[str]:
    parts = [part for part in _PART.split(phrase) if part]
    body = _GAP.join(_written(part) for part in parts)
    head = "" if _HAN.match(phrase[0]) or not _is_wordy(phrase[0]) else r"(?<!\w)"
    tail = "" if _HAN.match(phrase[-1]) else r"s?(?!\w)" if _is_wordy(phrase[-1]) else r"(?!\w)"
    return re.compile(head + body + tail)


def _written(word: str) -> str:
    exact = any(c.isupper() for c in word[1:]) or (word[0].isupper() and any(c.isdigit() for c in word))
    return re.escape(word) if exact else f"(?i:{re.escape(word)})"


def _is_wordy(character: str) -> bool:
    return character.isalnum() or character == "_"
