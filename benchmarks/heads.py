"""Heads and their caches: a token after a long context, a factor by row, and turning queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from carrel.attention import MLA, attention_scale
from carrel.attention.attend import attend
from carrel.layers import LatentCache, rotary_frequencies, rotary_turns, rotate

from .case import Bar, Case, Problem, Side

_HEADS, _SIZE = 16, 64


def _quiet(side: Side) -> Side:
    def run() -> object:
        with torch.no_grad():
            return side()

    return run


def _apart(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).abs().max() / wanted.abs().max())


def _latent(device: torch.device) -> Problem:
    """One token after 4096 others; both ways copy the cache alike, as whoever branches from one does."""
    torch.manual_seed(0)
    mixer, before = MLA(512, _HEADS).to(device).eval(), 4096
    x = torch.randn(1, 1, 512, device=device)
    c, k_rope = torch.randn(1, 1, before, 512, device=device), torch.randn(1, 1, before, 64, device=device)
    cache = LatentCache(c, k_rope, torch.full((1,), before, device=device))

    def way(absorb: bool) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with torch.no_grad(), patch.object(mixer, "_absorbs", lambda *_: absorb):
                return mixer(x, cache)[0]

        return run

    sides: dict[str, Side] = {"carrel MLA, absorbed": way(True), "carrel MLA, rebuilt": way(False)}
    return Problem(lambda: _apart(way(True)(), way(False)()), 1e-4, sides, before * (512 + 64) * 4)


def _shared(device: torch.device) -> Problem:
    """One token's queries over caches of 32768 columns, by the number of heads that are kept."""
    torch.manual_seed(0)
    tokens = 32768
    q = torch.randn(1, _HEADS, 1, _SIZE, device=device)
    pos = torch.full((1,), tokens, device=device)
    caches = {g: torch.randn(2, 1, g, tokens, _SIZE, device=device) for g in (1, 4, _HEADS)}
    seen = torch.ones(1, 1, 1, tokens, dtype=torch.bool, device=device)

    def ours(g: int) -> Callable[[], Tensor]:
        return lambda: attend(q, caches[g][0], caches[g][1], pos)

    def torchs(g: int) -> Callable[[], Tensor]:
        k, v = caches[g]
        return lambda: scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)

    def check() -> float:
        return max(_apart(ours(g)(), torchs(g)()) for g in caches)

    sides: dict[str, Side] = {f"carrel, {g} kept": _quiet(ours(g)) for g in caches}
    sides |= {f"torch enable_gqa, {g} kept": _quiet(torchs(g)) for g in caches}
    return Problem(check, 1e-4, sides, tokens * 2 * _SIZE * 4)


def _all_kept(device: torch.device) -> Problem:
    """The same with every head's keys and values kept: reading them is the limit, and a copy of as many bytes its
    measure."""
    torch.manual_seed(0)
    tokens = 32768
    q = torch.randn(1, _HEADS, 1, _SIZE, device=device)
    pos = torch.full((1,), tokens, device=device)
    k, v = torch.randn(2, 1, _HEADS, tokens, _SIZE, device=device)
    room = torch.empty_like(k)

    def ours() -> Tensor:
        return attend(q, k, v, pos)

    def torchs() -> Tensor:
        return scaled_dot_product_attention(q, k, v)

    sides: dict[str, Side] = {
        "carrel": _quiet(ours),
        "torch": _quiet(torchs),
        "reading and writing as many bytes": _quiet(lambda: room.copy_(k)),
    }
    return Problem(lambda: _apart(ours(), torchs()), 1e-4, sides, 2 * k.numel() * 4)


def _factor(device: torch.device) -> Problem:
    """The rule ln n, whose factor is another for every row, over the same attention without it."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, 4096, _SIZE, device=device)
    counts = torch.arange(1, 4097, device=device)

    def scaled() -> Tensor:
        factor = attention_scale(counts, _SIZE, "entropy").to(q.dtype).unsqueeze(-1)
        return scaled_dot_product_attention(q * factor, k, v, is_causal=True, scale=1.0)

    def check() -> float:
        few = 64
        factor = attention_scale(counts[:few], _SIZE, "entropy").unsqueeze(-1)
        scores = factor * (q[:, :, :few].double() @ k[:, :, :few].double().mT)
        future = torch.ones(few, few, dtype=torch.bool, device=device).triu(1)
        wanted = torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ v[:, :, :few].double()
        return _apart(scaled()[:, :, :few].double(), wanted)

    plain = _quiet(lambda: scaled_dot_product_attention(q, k, v, is_causal=True))
    return Problem(check, 1e-5, {"carrel, a factor by row": _quiet(scaled), "torch attention": plain})


def _turning(device: torch.device) -> Problem:
    """Queries turned by known angles; reading and writing them once is the limit."""
    torch.manual_seed(0)
    x = torch.randn(4, 8, 2048, 128, device=device)
    turns = rotary_turns(torch.arange(2048, device=device), rotary_frequencies(128, device=device))
    cos, sin = torch.cat((turns.cos, turns.cos), -1), torch.cat((turns.sin, turns.sin), -1)

    def transformers() -> Tensor:
        """As transformers' Llama does it."""
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    def check() -> float:
        return _apart(rotate(x, turns), transformers())

    sides: dict[str, Side] = {
        "carrel rotate": _quiet(lambda: rotate(x, turns)),
        "carrel rotate, interleaved": _quiet(lambda: rotate(x, turns, "interleaved")),
        "as transformers does": _quiet(transformers),
        "copying": _quiet(x.clone),
    }
    return Problem(check, 1e-5, sides, 2 * x.numel() * 4)


def _windowed(device: torch.device) -> Problem:
    """A window of 256 over 8192 tokens."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, 8192, _SIZE, device=device)

    def check() -> float:
        few = [t[:, :, :600] for t in (q, k, v)]
        at = torch.arange(600, device=device)
        seen = (at <= at[:, None]) & (at > at[:, None] - 256)
        return _apart(attend(*few, window=256), scaled_dot_product_attention(*few, attn_mask=seen))

    sides: dict[str, Side] = {
        "carrel, a window of 256": _quiet(lambda: attend(q, k, v, window=256)),
        "torch attention to all": _quiet(lambda: scaled_dot_product_attention(q, k, v, is_causal=True)),
    }
    return Problem(check, 1e-5, sides)


CASES = (
    Case(
        "mla-token",
        "one token after 4096 others, 16 heads, float32",
        _latent,
        bars=(Bar("carrel MLA, rebuilt", 5),),
        rounds=7,
    ),
    Case(
        "gqa-token",
        "one token's 16 query heads over 32768 others, float32",
        _shared,
        bars=(Bar("carrel, 16 kept", 4), Bar("torch enable_gqa, 1 kept", 2)),
        rounds=9,
    ),
    Case(
        "mha-token",
        "one token's 16 heads over as many of 32768 others, float32",
        _all_kept,
        bars=(Bar("reading and writing as many bytes", 0.5),),
        rounds=9,
    ),
    Case(
        "scale-by-row",
        "no gradient, 1 x 8 heads x 4096 x 64, float32",
        _factor,
        bars=(Bar("torch attention", 1 / 1.02),),
        rounds=9,
    ),
    Case("rotary", "4 x 8 heads x 2048 x 128, float32", _turning, bars=(Bar("as transformers does", 1),), rounds=15),
    Case(
        "window",
        "no gradient, 1 x 8 heads x 8192 x 64, float32",
        _windowed,
        bars=(Bar("torch attention to all", 2),),
        rounds=5,
    ),
)
