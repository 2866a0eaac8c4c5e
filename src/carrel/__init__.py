"""Carrel: read the paper, run the method.

Importing this package loads nothing heavy; the rooms below load when they are first named.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__version__ = "0.1.0"

_ROOMS = (
    "algorithms",
    "atlas",
    "attention",
    "decoding",
    "layers",
    "models",
    "ops",
    "papers",
    "recurrent",
    "tasks",
    "testing",
    "theory",
)
__all__ = ["__version__", *_ROOMS]


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'carrel' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
