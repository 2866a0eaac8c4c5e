"""What must never be in the repository, and what every card must bring."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tracked() -> list[Path]:
    """The files git tracks; in an unpacked source archive there is no git and these tests have nothing to look at."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


# Spelt in pieces, so that this file does not find itself.
_HOSTS = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted", "registry" + r"\.npmjs", "deb" + r"\.debian"]))
_PATHS = re.compile(r"(?<![\w.:/])/(?:" + "|".join(["ro" + "ot", "ho" + "me", "Us" + "ers", "wo" + "rk"]) + r")/\w")


def test_no_registry_host_is_named() -> None:
    found = [f"{path.relative_to(ROOT)}: {m[0]}" for path in tracked() if (m := _HOSTS.search(text_of(path)))]
    assert not found


def test_no_path_of_a_developers_machine_is_named() -> None:
    found = [f"{path.relative_to(ROOT)}: {m[0]}" for path in tracked() if (m := _PATHS.search(text_of(path)))]
    assert not found


def test_no_built_asset_or_data_file_is_tracked() -> None:
    built = re.compile(r"\.(min\.js|woff2?|npz|pt|safetensors|sqlite3?|db|whl|so|xz|gz|zst|pdf|png)$")
    assert not [str(path.relative_to(ROOT)) for path in tracked() if built.search(path.name)]
    assert not [str(path.relative_to(ROOT)) for path in tracked() if "web/static" in path.as_posix()]


def test_no_drawer_of_odds_and_ends() -> None:
    drawers = {"utils.py", "helpers.py", "common.py", "misc.py", "util.py"}
    assert not [str(path.relative_to(ROOT)) for path in tracked() if path.name in drawers]


def test_the_changelog_speaks_of_this_version() -> None:
    from carrel import __version__

    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## Unreleased" in changelog or f"## {__version__}" in changelog
