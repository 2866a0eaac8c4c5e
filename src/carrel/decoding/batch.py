"""Prompts of different lengths read together and continued by the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .protocol import CausalOutput


class PromptBatch:
    """Rows in slices of similar length, each slice with its own cache.

    Args:
        model: see :class:`carrel.decoding.NBCE`.
        takes: names of the optional arguments that it takes.
        prompts: tokens of each row, at least one.
        filler: the token that stands left of shorter prompts; it is masked.
        rows: at most so many in a slice; all if None.
    """

    def __init__(
        self,
        model: Callable[..., CausalOutput],
        takes: frozenset[str],
        prompts: list[list[int]],
        filler: int,
        rows: int | None,
    ) -> None:
        self._model, self._takes = model, takes
        device = getattr(model, "device", None)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # little padding in a slice
        self._slices = [
            _Slice(part, [prompts[row] for row in part], filler, device) for part in _cut(order, rows or len(order))
        ]
        self._back = torch.tensor(order).argsort()

    def read(self) -> Tensor:
        """Logits after every prompt, (rows, vocab), in the order of the prompts."""
        return self._ordered([self._ask(part, part.tokens) for part in self._slices])

    def append(self, token: Tensor) -> Tensor:
        """Logits after one more token, (1,), which is the same for all rows."""
        return self._ordered([self._ask(part, part.grow(token)) for part in self._slices])

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows alone, in this order; the others and what the model made of them are let go."""
        number = {row: at for at, row in enumerate(rows)}
        for part in self._slices:
            part.pick([i for i, row in enumerate(part.rows) if row in number])
            part.rows = [number[row] for row in part.rows]
        self._slices = [part for part in self._slices if part.rows]
        self._back = torch.tensor([row for part in self._slices for row in part.rows]).argsort()

    def _ordered(self, parts: list[Tensor]) -> Tensor:
        logits = torch.cat(parts)
        return logits[self._back.to(logits.device)]

    def _ask(self, part: _Slice, tokens: Tensor) -> Tensor:
        options: dict[str, Any] = {name: 1 for name in self._takes if name != "position_ids"}
        if "position_ids" in self._takes:
            positions = part.mask.cumsum(-1) - 1
            options["position_ids"] = positions[:, -tokens.shape[1] :].clamp(min=0)
        if part.cache is not None:
            options["past_key_values"] = part.cache
        output = self._model(input_ids=tokens, attention_mask=part.mask, use_cache=True, **options)
        part.cache = output.past_key_values
        if part.cache is None:
            raise ValueError(f"NBCE wants a model that returns past_key_values, not {type(self._model).__name__}")
        return output.logits[:, -1]


class _Slice:
    """rows: their numbers; tokens and mask: (rows, length), padded on the left; cache: what the model made of them."""

    def __init__(self, rows: list[int], prompts: list[list[int]], filler: int, device: torch.device | None) -> None:
        self.rows = rows
        longest = max(map(len, prompts))
        self.tokens = torch.tensor([[filler] * (longest - len(p)) + p for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.cache: Any = None

    def pick(self, inside: list[int]) -> None:
        if len(inside) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in inside]
        at = torch.tensor(inside, dtype=torch.int64, device=self.mask.device)
        self.tokens, self.mask = self.tokens[at], self.mask[at]
        if inside:
            self.cache = _picked(self.cache, at)

    def grow(self, token: Tensor) -> Tensor:
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return token.to(self.mask.device).expand(self.mask.shape[0], 1)


def _picked(cache: Any, rows: Tensor) -> Any:
    """Some rows of a cache of transformers, or of tensors with the batch first."""
    if isinstance(cache, Tensor):
        return cache[rows.to(cache.device)]
    if isinstance(cache, tuple | list):
        parts = [_picked(part, rows) for part in cache]
        return type(cache)(*parts) if hasattr(cache, "_fields") else type(cache)(parts)
    if hasattr(cache, "batch_select_indices"):
        cache.batch_select_indices(rows)
        return cache
    raise ValueError(f"prune wants a cache whose rows can be picked, which {type(cache).__name__} is not")


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
