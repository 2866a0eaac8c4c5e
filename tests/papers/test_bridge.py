"""Papers are linked to the methods they speak of, as they come in and again when the aliases change."""

from __future__ import annotations

import time
from datetime import date
from pathlib import Path

import pytest

from carrel.papers.bridge import Bridge, digest
from carrel.papers.model import Paper
from carrel.papers.store import Store, open_store
from carrel.papers.text import plain

ALIASES = {
    "lru": ["linear recurrent unit", "LRU", "arxiv:2303.06349"],
    "rope": ["RoPE", "rotary position embedding"],
    "s4": ["S4"],
    "self-attention": ["self-attention"],
    "min-abc": ["min(a+b+c)"],
    "zh": ["线性注意力"],
    "mamba": ["Mamba"],
    "bare": [],
    "dashes": ["", " ", "-", "--"],
    "both": ["linear recurrent unit"],
}


@pytest.fixture(scope="module")
def bridge() -> Bridge:
    return Bridge(ALIASES)


@pytest.mark.parametrize(
    ("text", "slugs"),
    [
        ("We use Linear Recurrent Units here.", {"lru", "both"}),
        ("THE LINEAR RECURRENT UNIT", {"lru", "both"}),
        ("a linear-recurrent\nunit", {"lru", "both"}),
        ("linear. Recurrent unit", set()),
        ("nonlinear recurrent unit", set()),
        ("linear recurrent unity", set()),
        ("The LRU and LRUs", {"lru"}),
        ("an lru cache", set()),
        ("LRUCache", set()),
        ("(RoPE)", {"rope"}),
        ("a rope; ROPE", set()),
        ("S4, not s4", {"s4"}),
        ("in s4", set()),
        ("S4D", set()),
        ("self attention, Self-Attention", {"self-attention"}),
        ("myself attention", set()),
        ("find min(a+b+c)!", {"min-abc"}),
        ("min a b c", set()),
        ("一种线性注意力机制", {"zh"}),
        ("the MAMBA; mamba", {"mamba"}),
        ("", set()),
        ("İ: Linear Recurrent Unit", {"lru", "both"}),  # a letter that becomes two when made small
        ("İ: lru", set()),
        ("ropes of RoPE", {"rope"}),
        ("x_LRU and LRU_x", set()),
    ],
)
def test_phrases_are_whole_words_and_acronyms_keep_their_case(bridge: Bridge, text: str, slugs: set[str]) -> None:
    assert bridge.spoken(text) == slugs


def test_a_paper_is_matched_by_key_title_and_abstract_without_tex(bridge: Bridge) -> None:
    def slugs(**said: str) -> frozenset[str]:
        return bridge.methods(Paper(**{"key": "doi:1", "source": "s", "title": "t", **said}), plain)

    assert slugs() == frozenset()
    assert slugs(key="arxiv:2303.06349") == {"lru"}
    assert slugs(title="RoPE", abstract="Mamba") == {"rope", "mamba"}
    assert slugs(abstract=r"the \emph{linear recurrent} unit") == {"lru", "both"}
    assert slugs(remark="On Mamba") == {"mamba"}
    assert slugs(title="linear recurrent", abstract="unit") == frozenset()


def test_the_digest_tells_aliases_apart_but_not_their_order() -> None:
    assert digest({"a": ["x", "y"], "b": []}) == digest({"b": [], "a": ["y", "x", "x"]})
    assert digest({"a": ["x"]}) != digest({"a": ["y"]})
    assert digest({"a": ["x"]}) != digest({"b": ["x"]})


def paper(number: int, title: str, **said: object) -> Paper:
    day = date(2024, 1, number)
    return Paper(**{"key": f"arxiv:2401.{number:05}", "source": "daily", "title": title, "announced": day, **said})


def put(store: Store, *papers: Paper) -> None:
    with store.begin() as shelf:
        shelf.put(papers)


@pytest.fixture
def store(tmp_path: Path):
    store = open_store(tmp_path, aliases=ALIASES)
    yield store
    store.close()


def test_links_are_made_as_papers_come_in_and_go_when_the_text_changes(store: Store) -> None:
    put(store, paper(1, "Mamba and S4"), paper(2, "Mamba"), paper(3, "Neither"))
    with store.begin() as papers:
        keys = [f"arxiv:2401.{n:05}" for n in (1, 2, 3)]
        assert papers.methods_of(keys) == {keys[0]: ("mamba", "s4"), keys[1]: ("mamba",)}
        assert [p.title for p in papers.speaking_of("mamba")] == ["Mamba", "Mamba and S4"]
        assert [p.title for p in papers.speaking_of("mamba", limit=1)] == ["Mamba"]
        assert papers.speaking_of("nothing") == []
        assert papers.speaking_counts() == {"mamba": 2, "s4": 1}
        assert [p.title for p in papers.speaking(limit=2)] == ["Mamba", "Mamba and S4"]
    put(store, paper(1, "Snakes", as_of="2024-02-01"))
    with store.begin() as papers:
        assert papers.speaking_counts() == {"mamba": 1}


def test_links_are_made_again_when_the_aliases_change_and_only_then(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    put(store, paper(1, "Mamba"), paper(2, "Cobra"))
    with store.begin() as papers:
        assert papers.relink({"m": ["Mamba"]}) == 1
        assert papers.relink({"m": ["Mamba"]}) == 0
        assert papers.relink({"m": ["Mamba"], "c": ["cobra"]}) == 1
        assert papers.speaking_counts() == {"c": 1, "m": 1}
    put(store, paper(3, "Cobra"))  # with the aliases that relink brought
    with store.begin() as papers:
        assert papers.speaking_counts() == {"c": 2, "m": 1}
        assert papers.relink({}) == 3
        assert papers.speaking_counts() == {}
    store.close()


def test_papers_that_came_in_under_other_aliases_are_found_by_the_next_relink(tmp_path: Path) -> None:
    first = open_store(tmp_path, aliases={"m": ["Mamba"]})
    with first.begin() as papers:
        papers.relink({"m": ["Mamba"]})
    other = open_store(tmp_path)  # knows no aliases
    put(other, paper(1, "Mamba"))
    other.close()
    with first.begin() as papers:
        assert papers.speaking_counts() == {}
        assert papers.relink({"m": ["Mamba"]}) == 1
        assert papers.speaking_counts() == {"m": 1}
    first.close()


def test_sixty_methods_cost_hardly_more_than_one() -> None:
    words = [f"w{n}" for n in range(3000)]
    text = " ".join(words[(n * 7919) % 3000] for n in range(250)) + " Gated words" * 3
    many = Bridge({f"m{n}": [f"{words[n]} {words[n + 1]}", f"A{n}B", f"gated thing {n}", words[-n]] for n in range(60)})
    few = Bridge({"m": ["gated thing"]})

    def seconds(bridge: Bridge) -> float:
        runs = []
        for _ in range(30):
            start = time.perf_counter()
            bridge.spoken(text)
            runs.append(time.perf_counter() - start)
        return min(runs)

    assert seconds(many) < 4 * seconds(few) + 1e-4  # 0.11 ms against 0.06 here; one expression a phrase takes 10 ms
