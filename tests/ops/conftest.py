"""What tests of several operations need."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def passes_in_tritons_interpreter() -> Callable[..., None]:
    """``passes_in_tritons_interpreter(file, *options)``: run its tests in a process of their own, since Triton asks for
    its interpreter only when it is first imported."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs Triton")

    def run(file: str | Path, *options: str) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *options, str(file)],
            env=os.environ | {"TRITON_INTERPRET": "1"},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
        assert " passed" in done.stdout

    return run
