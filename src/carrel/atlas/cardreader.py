"""Reads a card and holds it to its form; whatever is wrong is told with file, line and a sentence."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from carrel.atlas.card import FAMILIES, Card, CardError, Comparable, PaperReference, Peer, Reference
from carrel.atlas.cardlines import line_of
from carrel.atlas.parameter import BadParameter, Parameter

_SLUG = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = {"seed", "seeds", "quick", "fresh", "json", "html", "data", "help"}  # by carrel run, the form and experiments
_ARXIV = re.compile(r"\d{4}\.\d{4,5}|[a-z]+(-[a-z]+)*/\d{7}")
_TEXT, _WHOLE, _REAL, _TEXTS = (str,), (int,), (int, float), (list,)
_TYPE_NAMES = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    list: "a list of texts",
    dict: "a table",
}

Kinds = tuple[type, ...]
_CARD: dict[str, tuple[Kinds, bool]] = {  # field -> (types, required)
    "slug": (_TEXT, True),
    "title": (_TEXT, True),
    "family": (_TEXT, True),
    "module": (_TEXT, True),
    "aliases": (_TEXTS, True),
    "summary": (_TEXT, True),
    "equation": (_TEXT, True),
    "claim": (_TEXT, True),
    "usage": (_TEXT, True),
    "seconds": (_REAL, True),
    "papers": ((list,), False),
    "references": ((list,), False),
    "parameters": ((dict,), False),
    "peers": ((list,), False),
    "compare": ((dict,), False),
}
_PAPER: dict[str, tuple[Kinds, bool]] = {
    "id": (_TEXT, True),
    "title": (_TEXT, True),
    "author": (_TEXT, True),
    "year": (_WHOLE, True),
    "remark": (_TEXT, True),
}
_REFERENCE: dict[str, tuple[Kinds, bool]] = {
    "url": (_TEXT, True),
    "title": (_TEXT, True),
    "author": (_TEXT, False),
    "year": (_WHOLE, True),
    "remark": (_TEXT, False),
}
_COMPARE: dict[str, tuple[Kinds, bool]] = {"options": ((dict,), True), "mlp": (_REAL, False)}
_PEER: dict[str, tuple[Kinds, bool]] = {"name": (_TEXT, True), "ratio": (_REAL, True)}


def read_card(path: Path) -> Card:
    """Read one card. Raises CardError naming file and line if anything is missing, unknown or out of range."""
    try:
        source = path.read_text(encoding="utf-8")
        raw = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        line = int(found[1]) if found else source.count("\n") + 1
        raise CardError(path, line, f"not TOML: {error}") from None
    except UnicodeDecodeError:
        raise CardError(path, 1, "not UTF-8 text") from None
    return _Reader(path, source).card(raw)


class _Reader:
    """Checks one card's tables; every complaint finds the line that it is about."""

    def __init__(self, path: Path, source: str) -> None:
        self._path, self._source = path, source

    def card(self, raw: dict[str, Any]) -> Card:
        self._fields(raw, _CARD, ())
        if raw["slug"] != self._path.stem:
            self._fail(("slug",), f'slug must be the file\'s name, "{self._path.stem}", got "{raw["slug"]}"')
        if not _SLUG.fullmatch(raw["slug"]):
            self._fail(("slug",), f'slug is small letters, digits and single hyphens, got "{raw["slug"]}"')
        if raw["family"] not in FAMILIES:
            self._fail(("family",), f'family must be one of {", ".join(FAMILIES)}, got "{raw["family"]}"')
        if not _MODULE.fullmatch(raw["module"]):
            self._fail(("module",), f'module looks like "carrel.recurrent.lru:LRU", got "{raw["module"]}"')
        if not raw["aliases"] or not all(isinstance(alias, str) and alias.strip() for alias in raw["aliases"]):
            self._fail(("aliases",), "aliases wants at least one phrase, and only phrases")
        if raw["seconds"] <= 0:
            self._fail(("seconds",), f"seconds must be above 0, got {raw['seconds']}")
        if not raw.get("papers") and not raw.get("references"):
            self._fail((), "a card cites at least one source: [[papers]] on arXiv or [[references]] elsewhere")
        plain = {key: raw[key] for key in ("slug", "title", "family", "module", "summary", "equation", "claim")}
        return Card(
            **{key: value.strip() for key, value in plain.items()},
            usage=raw["usage"].strip("\n"),
            seconds=float(raw["seconds"]),
            aliases=tuple(raw["aliases"]),
            papers=tuple(self._paper(d, i) for i, d in enumerate(raw.get("papers", ()))),
            references=tuple(self._reference(d, i) for i, d in enumerate(raw.get("references", ()))),
            parameters=tuple(self._parameter(name, d) for name, d in raw.get("parameters", {}).items()),
            peers=tuple(self._peer(d, i) for i, d in enumerate(raw.get("peers", ()))),
            path=self._path,
            compare=self._comparable(raw["compare"]) if "compare" in raw else None,
        )

    def _paper(self, d: Any, index: int) -> PaperReference:
        where = ("papers", index)
        self._fields(d, _PAPER, where)
        if not _ARXIV.fullmatch(d["id"]):
            self._fail((*where, "id"), f'id must be an arXiv id such as "2303.06349", got "{d["id"]}"')
        self._year(d, where)
        return PaperReference(**d)

    def _reference(self, d: Any, index: int) -> Reference:
        where = ("references", index)
        self._fields(d, _REFERENCE, where)
        if not re.match(r"https?://[^\s/]", d["url"]):
            self._fail((*where, "url"), f'url must start with https:// or http://, got "{d["url"]}"')
        self._year(d, where)
        return Reference(**d)

    def _peer(self, d: Any, index: int) -> Peer:
        self._fields(d, _PEER, ("peers", index))
        return Peer(**d)

    def _comparable(self, d: Any) -> Comparable:
        where = ("compare",)
        self._fields(d, _COMPARE, where)
        for name, value in d["options"].items():
            if not isinstance(value, bool | int | float | str):
                kinds = "a number, a text, true or false"
                self._fail((*where, "options", name), f"option {name} must be {kinds}, got {value!r}")
        if d.get("mlp", 0) < 0:
            self._fail((*where, "mlp"), f"mlp must not be below 0, got {d['mlp']}")
        return Comparable(d["options"], float(d.get("mlp", 0)))

    def _parameter(self, name: str, d: Any) -> Parameter:
        where = ("parameters", name)
        if not _NAME.fullmatch(name) or name in _TAKEN:
            names = "in small letters and underscores, and not as the commands name their own options"
            self._fail(where, f'a parameter is named {names}, got "{name}"')
        if not isinstance(d, dict):
            self._fail(where, f"{name} must be a table, [parameters.{name}]")
        kind = d.get("type")
        fields: dict[str, tuple[Kinds, bool]] = {"type": (_TEXT, True), "help": (_TEXT, True), "unit": (_TEXT, False)}
        number: Kinds = _WHOLE if kind == "int" else _REAL
        if kind in ("int", "float"):
            fields |= {"default": (number, True), "low": (number, True), "high": (number, True)}
            fields["quick"] = (number, False)
        elif kind == "choice":
            fields |= {"default": (_TEXT, True), "quick": (_TEXT, False), "choices": (_TEXTS, True)}
        elif kind == "bool":
            fields |= {"default": ((bool,), True), "quick": ((bool,), False)}
        elif kind is not None:
            self._fail((*where, "type"), f"type must be int, float, choice or bool, got {kind!r}")
        self._fields(d, fields, where)
        if kind == "choice" and (len(d["choices"]) < 2 or not all(isinstance(c, str) for c in d["choices"])):
            self._fail((*where, "choices"), "choices wants at least two texts")
        if kind in ("int", "float") and d["low"] > d["high"]:
            self._fail((*where, "low"), f"low must not be above high, got {d['low']} and {d['high']}")
        parameter = Parameter(name=name, **{**d, "choices": tuple(d.get("choices", ()))})
        for key in ("default", "quick"):
            if key in d:
                try:
                    parameter.parse(d[key])
                except BadParameter as error:
                    self._fail((*where, key), f"{key} is not a value it may take: {error}")
        return parameter

    def _year(self, d: dict[str, Any], where: tuple[str | int, ...]) -> None:
        if not 1600 <= d["year"] <= 2100:
            self._fail((*where, "year"), f"year must be a year such as 2023, got {d['year']}")

    def _fields(self, d: Any, fields: Mapping[str, tuple[Kinds, bool]], where: tuple[str | int, ...]) -> None:
        """Hold a table to its fields: none unknown, none missing, each of its type, no text empty."""
        if not isinstance(d, dict):
            self._fail(where, f"{where[0]} must be tables, [[{where[0]}]]")
        table = f" in [{_dotted(where)}]" if where else ""
        for key, value in d.items():
            if key not in fields:
                near = difflib.get_close_matches(key, fields, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(fields)}"
                self._fail((*where, key), f'unknown field "{key}"{table}; {hint}')
            kinds = fields[key][0]
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                wanted = "true or false" if kinds == (bool,) else _TYPE_NAMES[kinds[-1]]
                self._fail((*where, key), f"{key} must be {wanted}, got {value!r}")
            if isinstance(value, str) and not value.strip():
                self._fail((*where, key), f"{key} must not be empty")
        for key, (_, required) in fields.items():
            if required and key not in d:
                self._fail(where, f'missing field "{key}"{table}')

    def _fail(self, where: tuple[str | int, ...], sentence: str) -> NoReturn:
        raise CardError(self._path, line_of(self._source, where), sentence)


def _dotted(where: tuple[str | int, ...]) -> str:
    return ".".join(part for part in where if isinstance(part, str))
