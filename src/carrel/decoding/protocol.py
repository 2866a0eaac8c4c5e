"""What decoding asks of a language model and of a tokenizer; models of transformers have it already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class CausalOutput(Protocol):
    """logits: (batch, 1 or length, vocab), the last of which speaks of the next token; and the cache so far."""

    @property
    def logits(self) -> Tensor: ...
    @property
    def past_key_values(self) -> Any: ...


class Tokenizer(Protocol):
    """The part of a tokenizer of transformers that is used here."""

    eos_token_id: int | None
    pad_token_id: int | None

    def encode(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = ...) -> str: ...


class Recomputed:
    """A plain function of whole token sequences as a causal model with a cache, which here is the text so far.

    Args:
        logits_of: tokens (1, length) int64 -> logits (1, length, vocab), causal. Every row is given alone and without
            padding, so a model that knows nothing of masks will do: ``Recomputed(lambda x: sequence_model(x)[0])``.
    Cost: every token reads its whole text again; meant for small models and for tests.
    """

    def __init__(self, logits_of: Callable[[Tensor], Tensor]) -> None:
        self.logits_of = logits_of

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Tensor | None = None,
        use_cache: bool = True,
    ) -> _Output:
        text = input_ids if past_key_values is None else torch.cat((past_key_values, input_ids), 1)
        rows = [self.logits_of(row[seen.bool()][None])[:, -1:] for row, seen in zip(text, attention_mask, strict=True)]
        return _Output(torch.cat(rows), text)


class _Output(NamedTuple):
    logits: Tensor
    past_key_values: Tensor
