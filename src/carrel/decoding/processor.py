"""Pooling inside the ``generate`` of transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from .nbce import draw
from .pooling import Pooling, check_options, pool_all


class NBCELogitsProcessor:
    """Makes groups of n + 1 rows write the same token, pooled from them; for ``generate(logits_processor=[…])``.

    Args:
        groups: how many questions; rows come group by group, in each the row without context first, then n contexts.
        pooling, beta, top_p, renormalize: as for :func:`carrel.decoding.pool`.
        temperature, generator: as for :meth:`NBCE.stream`. The token is drawn here, once per group, since ``generate``
            would draw every row's own: its settings of sampling change nothing.
    ``chosen``: a list with one tensor (groups,) per token, the context that it comes from, -1 for all of them.
    """

    def __init__(
        self,
        groups: int = 1,
        pooling: Pooling = "min-entropy",
        beta: float = 0.25,
        top_p: float = 0.95,
        *,
        renormalize: bool = False,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_options(pooling, beta, top_p)
        if groups < 1:
            raise ValueError(f"groups should be at least 1, not {groups}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature should be at least 0, not {temperature}")
        self.groups, self.temperature, self.generator = groups, temperature, generator
        self._options = (pooling, beta, top_p, renormalize)
        self.chosen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, vocab) that leave each group one token."""
        rows, vocab = scores.shape
        if rows % self.groups or rows < 2 * self.groups:
            raise ValueError(f"{rows} rows are not {self.groups} groups of one row without context and some with one")
        each = scores.reshape(self.groups, -1, vocab)
        pooled = pool_all(each[:, 1:], each[:, 0], *self._options)
        token, _ = draw(pooled.logits, self.temperature, self.generator)
        self.chosen.append(pooled.chosen(token))
        only = torch.full_like(scores, float("-inf"))
        return only.scatter_(-1, token.repeat_interleave(rows // self.groups)[:, None], 0.0)
