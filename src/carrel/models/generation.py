"""Writing sequences on, token by token, from a streaming state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .sequence import SequenceModel


def stream(
    model: SequenceModel,
    prompt: Tensor,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    state: tuple[Any, ...] | None = None,
) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    r"""Tokens that continue a prompt, without end.

    .. math:: x_{t+1} \sim \mathrm{softmax}(\text{model}(x_{1..t})_t / T)

    Args:
        model: one with tokens as input, ``pool="none"``, and no more outputs than tokens.
        prompt: (batch, tokens) int64, at least one token; rows of the same length.
        temperature: T, at least 0; 0 takes the likeliest token.
        generator: the source of chance, on the model's device; torch's own if None.
        state: what came before the prompt.
    Yields pairs: the next token of every row, (batch,) int64, and the state before it.
    Raises ValueError: a model, prompt or temperature other than above.
    Cost: the prompt is read once, and every token after it is one step of the mixers. With mixers whose state has a
    constant size that is constant time and memory per token. Logits are made for the last token of the prompt only.
    """
    if model.vocab is None or model.pool != "none" or model.out_dim > model.vocab:
        raise ValueError(
            'generation wants a model of tokens with pool="none" and no more outputs than tokens, '
            f"not vocab={model.vocab}, pool={model.pool!r} and out_dim={model.out_dim}"
        )
    if prompt.dim() != 2 or prompt.shape[1] < 1:
        raise ValueError(f"generation wants a prompt of shape (batch, 1 or more tokens), not {tuple(prompt.shape)}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"generation wants a temperature of at least 0, not {temperature}")
    return _tokens(model, prompt, temperature, generator, state)


def _tokens(
    model: SequenceModel,
    x: Tensor,
    temperature: float,
    generator: torch.Generator | None,
    state: tuple[Any, ...] | None,
) -> Iterator[tuple[Tensor, tuple[Any, ...]]]:
    while True:
        with torch.no_grad():  # not around the yield: the caller's own code would run without gradients, too
            h, state = model.features(x, state)
            token = _draw(model.head(h[:, -1]), temperature, generator)
            x = token[:, None]
        yield token, state


def _draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if temperature == 0 or not logits.shape[0]:
        return logits.argmax(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # the largest becomes 0 before the division, which a small temperature may otherwise carry beyond all numbers
    shares = ((logits - logits.amax(-1, keepdim=True)) / temperature).softmax(-1)
    return torch.multinomial(shares, 1, generator=generator).squeeze(1)
