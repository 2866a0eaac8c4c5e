"""Compiled kernels are kept on disk while every source that they may be made of is what it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from carrel.ops import _compile

SOURCE = """
from carrel.ops._compile import kernel

@kernel
def twice(x):
    return x + x
"""


@pytest.fixture
def hits(tmp_path: Path):
    """``hits()``: load the kernel anew, run it, and say how often what was kept served."""
    path = tmp_path / "cpu.py"
    path.write_text(SOURCE, encoding="utf-8")

    def load() -> int:
        _compile._digest.cache_clear()
        spec = importlib.util.spec_from_file_location("a_kernel_that_is_kept", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.twice(1.5) == 3
        return sum(module.twice.stats.cache_hits.values())

    yield load
    _compile._digest.cache_clear()


def test_what_was_compiled_is_taken_from_the_disk(hits):
    assert [hits(), hits()] == [0, 1]


def test_a_change_in_a_file_beside_it_compiles_it_anew(hits, tmp_path):
    beside = tmp_path / "cpu_parts.py"
    beside.write_text("ONE = 1\n", encoding="utf-8")
    hits()
    assert hits() == 1
    beside.write_text("ONE = 2\n", encoding="utf-8")
    assert [hits(), hits()] == [0, 1]


def test_a_change_in_what_all_operations_share_compiles_it_anew(hits, tmp_path, monkeypatch):
    hits()
    monkeypatch.setattr(_compile, "_SHARED", tmp_path / "elsewhere")
    assert hits() == 0


def test_division_by_zero_is_a_number_and_no_error():
    @_compile.kernel
    def over(x, y):
        return x / y

    assert over(1.0, 0.0) == float("inf")
