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
            _Slice([prompts[row] for row in part], filler, device) for part in _cut(order, rows or len(order))
        ]
        self._back = torch.tensor(order).argsort()

    def read(self) -> Tensor:
        """Logits after every prompt, (rows, vocab), in the order of the prompts."""
        return self._ordered([self._ask(part, part.tokens) for part in self._slices])

    def append(self, token: Tensor) -> Tensor:
        """Logits after one more token, (1,), which is the same for all rows."""
        return self._ordered([self._ask(part, part.grow(token)) for part in self._slices])

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
    """tokens and mask: (rows, length), padded on the left; cache: what the model made of them."""

    def __init__(self, prompts: list[list[int]], filler: int, device: torch.device | None) -> None:
        longest = max(map(len, prompts))
        self.tokens = torch.tensor([[filler] * (longest - len(p)) + p for p in prompts], device=device)
        self.mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
        self.cache: Any = None

    def grow(self, token: Tensor) -> Tensor:
        self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=1)
        return token.to(self.mask.device).expand(self.mask.shape[0], 1)


def _cut(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]
