"""Where in a TOML text a key stands. Read only when a card is wrong: the standard parser keeps no positions."""

from __future__ import annotations

import re
from collections import Counter

Where = tuple[str | int, ...]
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'))*)\s*=""")


def line_of(source: str, where: Where) -> int:
    """The line (from 1) of a key such as ``("parameters", "length", "default")`` or ``("papers", 1, "year")``.

    A key that is not there is looked for one level up, where its table begins; failing that, line 1.
    """
    places = _places(source)
    while where:
        if where in places:
            return places[where]
        where = where[:-1]
    return 1


def _places(source: str) -> dict[Where, int]:
    places: dict[Where, int] = {}
    table: Where = ()
    counts: Counter[str] = Counter()
    quotes = ""  # the three quotes that a text of several lines waits for
    depth = 0  # brackets of a list that goes on over lines
    for at, line in enumerate(source.splitlines(), 1):
        if quotes:
            quotes = "" if quotes in line else quotes
            continue
        if not depth and (header := _HEADER.match(line)):
            table = _split(header[2])
            if header[1] == "[[":
                table = (*table, counts[header[2]])
                counts[header[2]] += 1
            places.setdefault(table, at)
        elif not depth and (key := _KEY.match(line)):
            parts = _split(key[1])
            for end in range(1, len(parts) + 1):
                places.setdefault((*table, *parts[:end]), at)
            for inner in re.finditer(r"[{,]\s*([A-Za-z0-9_-]+)\s*=", line):  # a table written on one line
                places.setdefault((*table, *parts, inner[1]), at)
        rest = line
        for three in ('"""', "'''"):
            if line.count(three) % 2:
                quotes, rest = three, line.split(three)[0]
        bare = re.sub(r""""(\\.|[^"\\])*"|'[^']*'|#.*""", "", rest)
        if depth or _KEY.match(line):
            depth = max(0, depth + bare.count("[") - bare.count("]"))
    return places


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
