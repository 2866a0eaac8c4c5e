"""The taxonomy file by itself: complete, consistent, named in both languages."""

from __future__ import annotations

import json
import lzma
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

ALIASES = {
    "cs.NA": "math.NA",
    "cs.SY": "eess.SY",
    "math.IT": "cs.IT",
    "math.MP": "math-ph",
    "q-fin.EC": "econ.GN",
    "stat.TH": "math.ST",
}
HAN = re.compile(r"[\u4e00-\u9fff]")


@pytest.fixture(scope="module")
def taxonomy() -> dict[str, Any]:
    return tomllib.loads(files("carrel.papers").joinpath("taxonomy.toml").read_text(encoding="utf-8"))


def _codes(taxonomy: dict[str, Any], table: str) -> list[str]:
    return [entry["code"] for entry in taxonomy[table]]


def _arxiv(shared: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((shared / "data/papers/arxiv/taxonomy" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", ["category", "archive", "group"])
def test_no_code_stands_twice_and_every_one_has_both_names(taxonomy, table):
    codes = _codes(taxonomy, table)
    assert len(codes) == len(set(codes)) > 0
    for entry in taxonomy[table]:
        assert entry["name_en"].isascii(), entry
        assert entry["name_en"] == entry["name_en"].strip() != "", entry
        assert HAN.search(entry["name_zh"]), entry


def test_a_category_lies_in_its_archive_and_an_archive_in_its_group(taxonomy):
    archives = {entry["code"]: entry for entry in taxonomy["archive"]}
    for category in taxonomy["category"]:
        assert category["code"].partition(".")[0] == category["archive"]
        assert category["group"] == archives[category["archive"]]["group"]
    assert {entry["group"] for entry in taxonomy["archive"]} == set(_codes(taxonomy, "group"))
    assert {entry["archive"] for entry in taxonomy["category"]} == set(archives)


def test_aliases_and_closed_archives_lead_to_a_category_and_are_none_themselves(taxonomy):
    categories = set(_codes(taxonomy, "category"))
    assert taxonomy["aliases"] == ALIASES
    for table in ("aliases", "subsumed"):
        for code, successor in taxonomy[table].items():
            assert successor in categories
            assert code not in categories
    assert not set(taxonomy["subsumed"]) & set(_codes(taxonomy, "archive"))


@pytest.mark.parametrize(
    ("code", "name_en", "name_zh"),
    [
        ("cs.LG", "Machine Learning", "机器学习"),
        ("cs.CL", "Computation and Language", "计算与语言"),
        ("math.AG", "Algebraic Geometry", "代数几何"),
        ("quant-ph", "Quantum Physics", "量子物理"),
    ],
)
def test_some_names_that_every_reader_knows(taxonomy, code, name_en, name_zh):
    (entry,) = [entry for entry in taxonomy["category"] if entry["code"] == code]
    assert (entry["name_en"], entry["name_zh"]) == (name_en, name_zh)


def test_two_categories_of_one_archive_never_share_a_name(taxonomy):
    for name in ("name_en", "name_zh"):
        pairs = [(entry["archive"], entry[name]) for entry in taxonomy["category"]]
        assert len(pairs) == len(set(pairs))


def test_every_code_that_arxiv_defines_is_a_category_an_alias_or_a_closed_archive(taxonomy, shared):
    known = set(_codes(taxonomy, "category")) | set(taxonomy["aliases"]) | set(taxonomy["subsumed"])
    known |= {entry["code"] for entry in taxonomy["archive"] if entry.get("bare")}
    defined = {entry["category"]: entry for entry in _arxiv(shared, "arXiv_category_def")}
    real = {code for code in defined if code != "test" and not code.startswith("test.")}
    assert known == real
    current = {code for code in real if defined[code]["active"]} - set(ALIASES)
    assert set(_codes(taxonomy, "category")) == current
    for entry in taxonomy["category"]:
        assert entry["name_en"] == defined[entry["code"]]["name"]


def test_archives_and_groups_are_those_arxiv_has_open(taxonomy, shared):
    archives = {
        entry["archive_id"]: entry for entry in _arxiv(shared, "arXiv_archives") if entry["archive_id"] != "test"
    }
    closed = {code for code, entry in archives.items() if entry["end_date"]}
    assert set(taxonomy["subsumed"]) == closed
    for entry in taxonomy["archive"]:
        assert entry["name_en"] == archives[entry["code"]]["archive_name"]
        assert entry["group"] == archives[entry["code"]]["in_group"]
    assert set(_codes(taxonomy, "archive")) == set(archives) - closed
    groups = {entry["group_id"]: entry["group_name"] for entry in _arxiv(shared, "arXiv_groups")}
    assert {entry["code"]: entry["name_en"] for entry in taxonomy["group"]} | {"test": "Test"} == groups


def test_every_category_of_three_months_of_listings_is_known(taxonomy, shared):
    known = set(_codes(taxonomy, "category")) | set(taxonomy["aliases"])
    found: set[str] = set()
    for path in sorted((shared / "data/papers/arxiv/daily").glob("*.xz")):
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            found.update(*(json.loads(line)["categories"] for line in lines))
    assert "cs.CL" in found
    assert found <= known
