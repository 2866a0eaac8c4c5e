"""Attention within a sliding window, trained: blocks beside full causal attention and beside a mask over all pairs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from carrel.attention.sparse import SparsePattern, _window

from .case import Bar, Case, Problem, Side

_HEADS, _SIZE, _WIDTH = 4, 64, 256
_FULL, _MASKED = "torch SDPA, full causal", "torch SDPA, masked"
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def _case(length: int) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        pattern = SparsePattern("window", _WIDTH)
        generator = torch.Generator().manual_seed(0)
        shape = (1, _HEADS, length, _SIZE)
        q, k, v, arrived = (torch.randn(shape, generator=generator).to(device) for _ in range(4))
        inputs = [t.requires_grad_() for t in (q, k, v)]
        mask = pattern.dense(length, device)

        def both(form: Form) -> Side:
            return lambda: torch.autograd.grad(form(*inputs), inputs, arrived)

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return _window(q, k, v, pattern)

        def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return scaled_dot_product_attention(q, k, v, attn_mask=mask)

        def check() -> float:
            few = [t.detach()[:, :1, :1500].double().requires_grad_() for t in inputs]
            g = arrived[:, :1, :1500].double()
            dense = scaled_dot_product_attention(*few, attn_mask=mask[:1500, :1500])
            pairs = (
                (ours(*few), dense),
                *zip(torch.autograd.grad(ours(*few), few, g), torch.autograd.grad(dense, few, g), strict=True),
            )
            return max(float((a - b).abs().max()) for a, b in pairs)

        sides = {
            "carrel SparseAttention, window": both(ours),
            _FULL: both(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)),
            _MASKED: both(masked),
        }
        return Problem(check, 1e-12, sides)

    return build


CASES = tuple(
    Case(
        f"window-attention-{length}",
        f"forward and backward, window of {_WIDTH}, {_HEADS} heads of {_SIZE}, length {length}, float32",
        _case(length),
        bars=(Bar(_FULL, 2),) if length == 8192 else (),
        rounds=3 if length > 4096 else 5,
    )
    for length in (1024, 2048, 4096, 8192)
)
