"""How numba compiles our kernels: they give the lock away, and what was compiled is kept on disk while it is right.

numba keeps it until the kernel's own file changes. Ours call functions of other files, which are compiled into them, so
what is kept here is dropped when any file of the operation's folder, or one that all operations share, changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from numba import njit

_SHARED = Path(__file__).parent


def compiler(fastmath: Iterable[str]) -> Callable[..., Any]:
    """A decorator for kernels whose arithmetic is free in these ways, as LLVM calls them."""
    options: dict[str, Any] = {"fastmath": set(fastmath), "error_model": "numpy"}

    def compiled(function: Callable[..., Any]) -> Any:
        made = njit(nogil=True, cache=True, **options)(function)
        kept = made._cache._cache_file
        kept._source_stamp = (kept._source_stamp, _digest(Path(function.__code__.co_filename).parent))
        return made

    return compiled


@lru_cache(maxsize=64)
def _digest(folder: Path) -> str:
    """Of all sources that a kernel of this folder may be made of."""
    sources = sorted({*folder.glob("*.py"), *_SHARED.glob("*.py")})
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in sources)).hexdigest()


# Products and sums may fuse and reorder; NaN and infinity keep their meaning.
kernel = compiler(("contract", "reassoc", "nsz"))
