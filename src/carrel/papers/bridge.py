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
_GAP = r"(?:(?!\n\n)[\s\-‐-―])+"  # a phrase does not reach from one paragraph into the next


class Bridge:
    """One matcher over all phrases of all methods.

    A phrase is sought as whole words, with blanks and hyphens alike and an ``s`` allowed at its end. Words with a
    capital after their first letter, or a capital beside a digit (``LRU``, ``RoPE``, ``S4``), are sought as they are
    written, all others in any case.

    A text is cut into words once. One word of each phrase stands in a table, so that only phrases whose word occurs are
    looked at, and only those whose words occur side by side are compared with the text as it is written. So the cost is
    that of cutting the text into words, however many phrases there are.

    Args:
        aliases: method slug to phrases and keys such as ``"arxiv:2303.06349"``.
    """

    def __init__(self, aliases: Mapping[str, Sequence[str]]) -> None:
        self.digest = digest(aliases)
        self._by_key: dict[str, set[str]] = {}
        self._by_word: dict[str, list[_Phrase]] = {}
        self._unworded: list[_Phrase] = []
        spoken: dict[str, set[str]] = {}
        for slug, phrases in aliases.items():
            for phrase in phrases:
                if _is_key(phrase):
                    self._by_key.setdefault(phrase, set()).add(slug)
                elif _PART.sub("", phrase):
                    spoken.setdefault(phrase.strip(), set()).add(slug)
        for phrase, slugs in spoken.items():
            self._add(_Phrase(phrase, frozenset(slugs)))

    def _add(self, phrase: _Phrase) -> None:
        if not phrase.words:
            self._unworded.append(phrase)
            return
        word = max(phrase.words, key=len)  # the longest is the rarest, near enough
        self._by_word.setdefault(word, []).append(phrase)
        if word == phrase.words[-1]:
            self._by_word.setdefault(word + "s", []).append(phrase)

    def methods(self, paper: Paper, plain: Callable[[str], str]) -> frozenset[str]:
        """The slugs that ``paper`` speaks of, by its key, title and abstract (or remark).

        Args:
            plain: takes the TeX out of a text.
        Cost: O(length of the text).
        """
        found = set(self._by_key.get(paper.key, ()))
        if self._by_word or self._unworded:
            found |= self.spoken(f"{plain(paper.title)}\n\n{plain(paper.abstract or paper.remark)}")
        return frozenset(found)

    def spoken(self, text: str) -> set[str]:
        """The slugs whose phrases occur in ``text``."""
        small = text.lower()
        words = _WORD.findall(small)
        candidates = [phrase for word in self._by_word.keys() & set(words) for phrase in self._by_word[word]]
        found: set[str] = set()
        if candidates:
            side_by_side = f" {' '.join(words)} "
            for phrase in candidates:
                if phrase.side_by_side in side_by_side and phrase.occurs(text, small):
                    found |= phrase.slugs
        for phrase in self._unworded:
            if phrase.occurs(text, small):
                found |= phrase.slugs
        return found


class _Phrase:
    """A phrase, the methods that go by it, and the forms in which it is sought."""

    def __init__(self, phrase: str, slugs: frozenset[str]) -> None:
        self.slugs = slugs
        self.pattern = _pattern(phrase)
        # Chinese is written without blanks: there, a phrase is no sequence of words
        self.words = [] if _HAN.search(phrase) else _WORD.findall(phrase.lower())
        self.side_by_side = " " + " ".join(self.words)
        self._start = next(part for part in _PART.split(phrase) if part).lower()

    def occurs(self, text: str, small: str) -> bool:
        """Whether the phrase stands in ``text``, which is ``small`` in small letters."""
        if len(small) != len(text):  # a few letters become two when they are made small
            return self.pattern.search(text) is not None
        at = small.find(self._start)  # ten times faster than letting the expression look for its first word
        while at >= 0:
            if self.pattern.match(text, at):
                return True
            at = small.find(self._start, at + 1)
        return False


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
