"""Refusing a state that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def check_state(owner: nn.Module, state: Any, kind: type, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless the state is None, or of this kind with fields of these shapes."""
    if state is None:
        return
    name = type(owner).__name__
    if not isinstance(state, kind):
        raise ValueError(f"{name} wants {kind.__name__} or None as its state, not {type(state).__name__}")
    for field, wanted in shapes.items():
        got = tuple(getattr(state, field).shape)
        if got != wanted:
            raise ValueError(f"{name} wants a state with {field} of shape {wanted}, not {got}")
