"""Public = listed in the room's ``__init__``; docs/reference.md lists the same names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("ops", "layers", "attention", "recurrent", "decoding", "models", "tasks", "theory", "algorithms")


def public(room: str) -> set[str]:
    """Names of the form ``from .x import Name as Name`` (or in ``__all__``, where the room loads lazily)."""
    tree = ast.parse((ROOT / "src" / "carrel" / room / "__init__.py").read_text(encoding="utf-8"))
    names = {
        alias.asname
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname and alias.asname == alias.name
    }
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            names |= set(ast.literal_eval(node.value))
    return names


def documented(room: str) -> set[str]:
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    section = re.search(rf"^## carrel\.{room}$(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert section, f"docs/reference.md has no section for carrel.{room}"
    return set(re.findall(r"^- `(\w+)", section[1], re.M))


@pytest.mark.parametrize("room", ROOMS)
def test_docs_list_exactly_the_public_names(room: str) -> None:
    assert public(room)
    assert documented(room) == public(room)
