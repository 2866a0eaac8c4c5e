"""Fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

_SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data that lies beside a development checkout; tests skip where it is absent."""
    if not (_SHARED / "data").is_dir():
        pytest.skip("needs the folder of real data beside the checkout, which is not part of the repository")
    return _SHARED
