"""What RWKV's layers know of the token before: each sees a blend of x_t and x_{t-1}."""

from __future__ import annotations

import torch
from torch import Tensor


def token_before(x: Tensor, last: Tensor | None) -> tuple[Tensor, Tensor]:
    """x_{t-1} at every t, (batch, length, dim), and the last token, (batch, dim), for the next piece.

    ``last`` is the token before the first, or None for zeros.
    """
    first = x.new_zeros(x.shape[0], x.shape[2]) if last is None else last.to(x.dtype)
    line = torch.cat([first.unsqueeze(1), x], 1)
    # a copy: a view would keep the whole sequence in memory for as long as the state lives
    return line[:, :-1], line[:, -1].clone()
