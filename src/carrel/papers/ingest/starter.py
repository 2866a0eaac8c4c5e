"""The starter shelf: the papers that the methods come from, with a remark of ours in place of the abstract."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib.resources import files

from carrel.papers.categories import canonical
from carrel.papers.identifiers import parse_arxiv_id
from carrel.papers.model import Paper

SOURCE = "starter"


def starter_papers() -> Iterator[Paper]:
    """The papers of ``starter.toml``; whatever else describes them comes before these records, which have no date."""
    text = files("carrel.papers").joinpath("starter.toml").read_text(encoding="utf-8")
    for entry in tomllib.loads(text)["paper"]:
        if "id" in entry:
            key = parse_arxiv_id(entry["id"]).key
        elif "doi" in entry:
            key = f"doi:{entry['doi'].lower()}"
        else:
            key = f"starter:{entry['key']}"
        yield Paper(
            key=key,
            source=SOURCE,
            title=entry["title"],
            authors=tuple(entry["authors"]),
            year=entry["year"],
            categories=tuple(dict.fromkeys(canonical(code) for code in entry.get("categories", ()))),
            venue=entry.get("venue"),
            doi=entry.get("doi"),
            remark=entry.get("remark", ""),
        )
