"""Mixers of the linear road over 8192 tokens: each beside itself with its memory in plain torch, and beside softmax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from carrel.attention import MHA, DiagAttention, GatedLinearAttention, NormAttention, Performer, Retention
from carrel.layers import Mixer

from .case import Bar, Case, Problem, Side
from .decay import Form, per_channel, per_head

_DIM, _HEADS, _LENGTH, _CHECKED = 512, 8, 8192, 512
_FEATURES, _BLOCK = 256, 64
_OURS, _SOFTMAX = "carrel", "softmax attention to all (carrel MHA)"
_MEMORY = "decay_attention"
_PER_HEAD = {f"torch, chunks of {c}": per_head(c) for c in (32, 64, 128)}
_PER_CHANNEL = {f"torch, chunks of {c} in parts of {p}": per_channel(c, p) for c, p in ((16, 8), (32, 8), (64, 8))}


def _memory(form: Form) -> Callable[..., tuple[Tensor, Tensor]]:
    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: None, **_: Any) -> tuple[Tensor, Tensor]:
        return form(q, k, v, log_decay)

    return run


def _blocks_of_softmax(q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool) -> Tensor:
    scores = q @ k.mT * q.shape[-1] ** -0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ v


def _case(
    make: Callable[[], Mixer], room: str, part: str, peers: dict[str, Callable[..., Any]]
) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        mixer, softmax = make().to(device).eval(), MHA(_DIM, _HEADS).to(device).eval()
        x = torch.randn(1, _LENGTH, _DIM, device=device)

        def side(mixer: Mixer, x: Tensor, peer: Callable[..., Any] | None = None) -> Side:
            def run() -> Tensor:
                with torch.no_grad():
                    if peer is None:
                        return mixer(x)[0]
                    with patch(f"carrel.attention.{room}.{part}", peer):
                        return mixer(x)[0]

            return run

        def check() -> float:
            few = x[:, :_CHECKED]
            with torch.no_grad():
                wanted = mixer.double()(few.double())[0]
            mixer.float()
            found = [side(mixer, few, peer)() for peer in (None, *peers.values())]
            return max(float((y - wanted).abs().max() / wanted.abs().max()) for y in found if isinstance(y, Tensor))

        sides = {_OURS: side(mixer, x)} | {name: side(mixer, x, peer) for name, peer in peers.items()}
        return Problem(check, 1e-4, sides | {_SOFTMAX: side(softmax, x)})

    return build


def _through(forms: dict[str, Form]) -> dict[str, Callable[..., Any]]:
    return {name: _memory(form) for name, form in forms.items()}


_ROWS: tuple[tuple[str, str, Callable[[], Mixer], str, str, dict[str, Callable[..., Any]]], ...] = (
    (
        "performer",
        f"{_FEATURES} features",
        lambda: Performer(_DIM, _HEADS, features=_FEATURES, generator=torch.Generator().manual_seed(0)),
        "linear",
        _MEMORY,
        _through(_PER_HEAD),
    ),
    ("norm-attention", "elu + 1", lambda: NormAttention(_DIM, _HEADS), "linear", _MEMORY, _through(_PER_HEAD)),
    (
        "diag-attention",
        f"blocks of {_BLOCK}",
        lambda: DiagAttention(_DIM, _HEADS, block=_BLOCK),
        "transnormer",
        "scaled_dot_product_attention",
        {"torch, blocks of softmax": _blocks_of_softmax},
    ),
    ("retention", "rotary", lambda: Retention(_DIM, _HEADS), "retention", _MEMORY, _through(_PER_HEAD)),
    (
        "gated-linear-attention",
        "a gate per channel",
        lambda: GatedLinearAttention(_DIM, _HEADS),
        "retention",
        _MEMORY,
        _through(_PER_CHANNEL),
    ),
)

CASES = tuple(
    Case(
        f"{name}-layer",
        f"a whole layer, forward, {about}, 1 x {_LENGTH} x {_DIM}, {_HEADS} heads, float32",
        _case(make, room, part, peers),
        bars=tuple(Bar(peer, 1) for peer in peers),
        rounds=3,
        warmup=1,
    )
    for name, about, make, room, part, peers in _ROWS
)
