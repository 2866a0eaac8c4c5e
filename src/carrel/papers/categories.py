"""arXiv's categories: their canonical codes, and expressions such as ``cs.LG+cs.CL-cs.CV`` over them.

Some categories carry two codes (``cs.NA`` and ``math.NA`` list the same papers), and archives of the nineties were
taken over by later categories. We accept every code and keep one. The facts stand in ``taxonomy.toml`` beside this.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType

_LONGEST_EXPRESSION = 500  # characters


class BadExpression(ValueError):
    """The text is no category expression; the message says why."""


class UnknownCategory(BadExpression):
    """A code that arXiv does not have; the message names a near one."""


@dataclass(frozen=True, slots=True)
class Category:
    """One category: its code (``cs.LG``), its names, and the group and the archive it lies in (``cs``, ``cs``)."""

    code: str
    name_en: str
    name_zh: str
    group: str
    archive: str


@dataclass(frozen=True, slots=True)
class CategoryExpression:
    """Which papers a list shows: those in any included category and in none of the excluded.

    Attributes:
        include, exclude: canonical codes, archives written out.
        text: the canonical spelling, for addresses and links; archives stay archives.
    """

    include: frozenset[str]
    exclude: frozenset[str]
    text: str = field(compare=False)

    def matches(self, categories: Iterable[str]) -> bool:
        """Whether a paper with these canonical categories is listed."""
        codes = frozenset(categories)
        return not codes.isdisjoint(self.include) and codes.isdisjoint(self.exclude)


@dataclass(frozen=True, slots=True)
class _Tables:
    categories: Mapping[str, Category]
    archives: Mapping[str, Category]  # an archive described like a category; `archive` is its own code
    same_as: Mapping[str, str]  # aliases and closed archives -> canonical code
    expansion: Mapping[str, frozenset[str]]  # any code in small letters -> canonical categories
    spelling: Mapping[str, str]  # any code in small letters -> canonical code or archive


@lru_cache(maxsize=1)
def _tables() -> _Tables:
    data = tomllib.loads(files("carrel.papers").joinpath("taxonomy.toml").read_text(encoding="utf-8"))
    categories = {entry["code"]: Category(**entry) for entry in data["category"]}
    archives = {
        entry["code"]: Category(entry["code"], entry["name_en"], entry["name_zh"], entry["group"], entry["code"])
        for entry in data["archive"]
    }
    aliases: dict[str, str] = data["aliases"]
    same_as = {**aliases, **data["subsumed"]}
    spelling = {code.lower(): code for code in (*archives, *categories)}
    spelling |= {code.lower(): home for code, home in same_as.items()}
    expansion = {code: frozenset({home}) for code, home in spelling.items()}
    for entry in data["archive"]:
        archive = entry["code"]
        if archive in categories:  # hep-th, math-ph: archive and category in one; their aliases mean the same code
            continue
        inside = {code for code, category in categories.items() if category.archive == archive}
        # arXiv lists a paper of math.NA under cs as well, since it also carries cs.NA
        inside |= {home for code, home in aliases.items() if code.partition(".")[0] == archive}
        if entry.get("bare"):
            inside.add(archive)
        expansion[archive.lower()] = frozenset(inside)
    return _Tables(
        categories=MappingProxyType(categories),
        archives=MappingProxyType(archives),
        same_as=MappingProxyType(same_as),
        expansion=MappingProxyType(expansion),
        spelling=MappingProxyType(spelling),
    )


def taxonomy() -> Mapping[str, Category]:
    """The canonical categories by code, in arXiv's order; loaded once."""
    return _tables().categories


def archives() -> Mapping[str, Category]:
    """The archives by code, each described as a category is; ``cs``, ``math``, ``hep-th``, …"""
    return _tables().archives


def canonical(code: str) -> str:
    """The code under which papers of category ``code`` are kept: ``cs.NA`` gives ``math.NA``, ``cmp-lg`` ``cs.CL``.

    A code that the taxonomy lacks comes back as it is: a category founded tomorrow must not stop an import.
    """
    known = _tables()
    return known.same_as.get(code) or known.spelling.get(code.strip().lower(), code.strip())


def parse_expression(text: str) -> CategoryExpression:
    """Read ``cs.LG+cs.CL-cs.CV``: ``+`` or ``,`` (or a blank) joins, ``-`` takes away, archives mean all they hold.

    Codes contain hyphens themselves (``hep-th``, ``cond-mat.mes-hall``), so the longest code that exists is read first.
    The order of the terms does not matter: what is taken away anywhere stays away.

    Raises UnknownCategory: a code that does not exist, with the nearest that does; BadExpression: nothing is left to
        list, or more than 500 characters. Both are ValueErrors.
    Cost: O(len(text)).
    """
    if len(text) > _LONGEST_EXPRESSION:
        raise BadExpression(f"a category expression has at most {_LONGEST_EXPRESSION} characters, not {len(text)}")
    known = _tables()
    signs: dict[str, str] = {}
    for sign, code in _terms(text):
        if sign == "-" or code not in signs:
            signs[code] = sign
    included = [code for code, sign in signs.items() if sign == "+"]
    excluded = [code for code, sign in signs.items() if sign == "-"]
    if not included:
        raise BadExpression(f"{text!r} lists nothing: wanted at least one category, such as 'cs.LG+cs.CL'")
    include = frozenset[str]().union(*(known.expansion[code.lower()] for code in included))
    exclude = frozenset[str]().union(*(known.expansion[code.lower()] for code in excluded))
    if include <= exclude:
        raise BadExpression(f"{text!r} lists nothing: it takes away all that it names")
    return CategoryExpression(include, exclude, "+".join(included) + "".join(f"-{code}" for code in excluded))


def _terms(text: str) -> Iterable[tuple[str, str]]:
    """(sign, canonical code or archive) of each term."""
    spelling = _tables().spelling
    sign = "+"
    for chunk in re.split(r"[+,\s]+", text):
        pieces = chunk.split("-")
        start = 0
        if chunk and not pieces[0]:  # "-cs.CV" after a separator
            sign, start = "-", 1
        while start < len(pieces) and chunk:
            for end in range(min(len(pieces), start + 3), start, -1):
                code = spelling.get("-".join(pieces[start:end]).lower())
                if code is not None:
                    yield sign, code
                    break
            else:
                raise _unknown("-".join(pieces[start:]), text)
            start, sign = end, "-"
        sign = "+"


def _unknown(code: str, text: str) -> BadExpression:
    from difflib import get_close_matches

    if not code.strip("-"):
        return BadExpression(f"{text!r} ends or doubles with '-': wanted a category after it")
    known = _tables()
    candidates = {**known.spelling, **{name.lower(): name for name in known.same_as}}
    shown = code if len(code) <= 40 else code[:40] + "…"
    for attempt in (code.lower(), code.lower().partition("-")[0]):
        near = [key for key in candidates if key.partition(".")[2] == attempt]  # "LG": the class without its archive
        near = near or get_close_matches(attempt, candidates, n=1, cutoff=0.6)
        if near:
            return UnknownCategory(f"arXiv has no category {shown!r}; did you mean {candidates[near[0]]!r}?")
    return UnknownCategory(
        f"arXiv has no category {shown!r}; wanted a code such as 'cs.LG' or an archive such as 'math'"
    )
