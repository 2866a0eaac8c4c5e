"""What loads what: the site stays without torch, importing is free."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_TORCH = [
    "carrel",
    "carrel.cli",
    "carrel.doctor",
    "carrel.desk",
    "carrel.algorithms",
    "carrel.papers.browse",
    "carrel.papers.store",
    "carrel.papers.search",
    "carrel.papers.ingest",
    "carrel.atlas.catalogue",
    "carrel.atlas.report",
    "carrel.atlas.runner",
    "carrel.atlas.console",
    "carrel.atlas.compare.running",
    "carrel.atlas.compare.console",
    "carrel.atlas.compare.html",
    "carrel.atlas.html",
    "carrel.web.app",
    "carrel.web.serve",
]


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint('\\n'.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_it_loads_neither_torch_nor_numba(module: str) -> None:
    assert not {"torch", "triton", "numba"} & modules_after(f"import {module}")


def test_importing_the_root_loads_nothing_of_others() -> None:
    loaded = modules_after("import carrel")
    assert not {"numpy", "rich", "typer", "fastapi", "sqlalchemy"} & loaded


def test_asking_for_help_loads_neither_the_site_nor_the_store() -> None:
    loaded = modules_after("from carrel.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass")
    assert not {"fastapi", "sqlalchemy", "tantivy", "torch"} & loaded


def test_the_root_offers_its_rooms_lazily() -> None:
    loaded = modules_after("import carrel\ncarrel.atlas")
    assert "carrel.atlas" in loaded
    assert "carrel.papers" not in loaded
