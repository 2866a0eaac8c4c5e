"""Results kept on disk, by what was asked and by the version of the code that answered."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from carrel.atlas.parts import ReportError
from carrel.atlas.result import Result

_PACKAGE = Path(__file__).parents[1]
# Rooms whose code cannot change what an experiment finds.
_OTHER_ROOMS = {"papers", "web", "atlas", "desk.py", "cli.py", "mcp.py", "doctor.py", "__main__.py"}
_ATLAS_FILES = ("parts.py", "report.py", "result.py", "worker.py")
_PEERS = ("torch", "numpy", "numba", "scipy", "scikit-learn")
_Stamp = tuple[tuple[str, int, int], ...]


class ResultCache:
    """A folder of results, one file each; at most ``keep`` of them, the oldest leave first."""

    def __init__(self, folder: Path, keep: int = 500) -> None:
        self.folder, self._keep = folder, keep

    def get(self, slug: str, key: str) -> Result | None:
        """The kept result, or None. A file that cannot be read counts as absent."""
        try:
            return Result.from_json(self._file(slug, key).read_text(encoding="utf-8"))
        except (OSError, ReportError, UnicodeDecodeError):
            return None

    def put(self, key: str, result: Result) -> Path:
        """Keep a result. Raises OSError if the folder cannot be written."""
        path = self._file(result.slug, key)
        write_whole(path, result.text())
        files = sorted(self.folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
        for old in files[: -self._keep]:
            old.unlink(missing_ok=True)
        return path

    def _file(self, slug: str, key: str) -> Path:
        return self.folder / f"{slug}-{key}.json"


def cache_key(slug: str, parameters: Mapping[str, Any], seeds: Sequence[int], quick: bool, code: str) -> str:
    asked = json.dumps([slug, dict(sorted(parameters.items())), list(seeds), quick, code])
    return hashlib.sha256(asked.encode()).hexdigest()[:20]


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def code_version(experiments: Path) -> str:
    """A hash of everything that can change what an experiment finds: our library, the experiments, the packages below.

    Files are read again only when their time or size changed.
    """
    files = sorted({*_library(), *experiments.glob("*.py")})
    stamp = tuple((str(file), (stat := file.stat()).st_mtime_ns, stat.st_size) for file in files)
    return _hash(stamp)


def _library() -> Iterator[Path]:
    for entry in _PACKAGE.iterdir():
        if entry.name in _OTHER_ROOMS:
            continue
        if entry.is_dir():
            yield from entry.rglob("*.py")
        elif entry.suffix == ".py":
            yield entry
    yield from (_PACKAGE / "atlas" / name for name in _ATLAS_FILES)


@lru_cache(maxsize=8)
def _hash(stamp: _Stamp) -> str:
    digest = hashlib.sha256(repr(versions()).encode())
    for name, _, _ in stamp:
        path = Path(name)
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Versions of what an experiment stands on, asked of the installed packages' records and not by importing them."""
    found = {"carrel": importlib.import_module("carrel").__version__, "python": platform.python_version()}
    for name in _PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Processors this process may use: those it is bound to, fewer if a control group grants less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(bound, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return bound


@lru_cache(maxsize=1)
def machine() -> str:
    """The processor's model and how many of it, without the machine's name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    count = cores()
    return f"{' '.join(model.split())}, {count} core{'s' if count != 1 else ''}"
