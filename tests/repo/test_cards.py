"""One slug ties a method together: card, module, experiment, test, committed result."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from carrel.atlas.catalogue import Card, load_catalogue

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "carrel"
CARDS = list(load_catalogue().values())


@pytest.fixture(params=CARDS, ids=lambda card: card.slug)
def card(request: pytest.FixtureRequest) -> Card:
    return request.param


def source_of(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_there_are_cards() -> None:
    assert {card.slug for card in CARDS} >= {"lru", "min-abc"}


def test_the_module_named_by_the_card_defines_that_name(card: Card) -> None:
    module, name = card.module.split(":")
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    defined = {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    assert name in defined


def test_its_experiment_takes_a_seed_and_every_parameter_of_the_card(card: Card) -> None:
    path = PACKAGE / "atlas" / "experiments" / f"{card.slug.replace('-', '_')}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (run,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run"]
    assert {argument.arg for argument in run.args.kwonlyargs} == {"seed", *(p.name for p in card.parameters)}
    assert not run.args.args
    assert all(default is None for default in run.args.kw_defaults), "defaults live in the card alone"


def test_it_has_a_test_of_its_own(card: Card) -> None:
    module = card.module.split(":")[0].removeprefix("carrel.").replace(".", "/")
    expected = ROOT / "tests" / Path(module).parent / f"test_{Path(module).name.lstrip('_')}.py"
    assert expected.is_file(), f"tests mirror src: {expected.relative_to(ROOT)} is missing"


def test_its_last_result_is_committed_with_three_seeds_and_all_checks_held(card: Card) -> None:
    result = load_catalogue().result(card.slug)
    assert result is not None, f"run it and keep the result: make claims SLUGS={card.slug}"
    assert len(result.seeds) >= 3
    assert result.passed
    assert not result.quick, "the committed result is that of the full form"
    assert set(result.parameters) == {parameter.name for parameter in card.parameters}


def test_the_usage_on_the_card_runs_as_python(card: Card) -> None:
    ast.parse(card.usage)
    assert card.module.split(":")[1] in card.usage
