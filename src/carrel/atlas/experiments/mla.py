"""What multi-head latent attention keeps for a token, and what it costs to look at that without rebuilding it.

Sizes are those of DeepSeek-V2 but for the number of heads that are timed. Bytes are counted on tensors; a token is
decoded both ways, and by the usual attention with as many heads, after contexts of growing length.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest.mock import patch

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.attention import MHA, MLA
from carrel.layers import KVCache, LatentCache

_RANK, _KEY, _TURNED, _DIM = 512, 128, 64, 512  # of the latent vector, a head's key and value, the turned key, x
_PAPER = 128  # heads
_SHORTEST, _REPEATS = 256, 4
_PIECES = (1, 8, 32, 96, 256)  # new tokens at once
Step = Callable[[], Callable[[], object]]  # makes ready what is then timed


def run(*, seed: int, heads: int, longest: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _measure(heads, longest)
    finally:
        torch.set_num_threads(threads)


def _measure(heads: int, longest: int) -> Report:
    latent, usual = MLA(_DIM, heads).eval(), MHA(_DIM, heads, head_dim=_KEY).eval()
    lengths = [_SHORTEST << k for k in range((longest // _SHORTEST).bit_length())]
    one: dict[str, list[float]] = {"absorbed": [], "rebuilt": [], "usual attention": []}
    for i, length in enumerate(lengths):
        progress(0.6 * i / len(lengths), f"a token after {length}")
        x = torch.randn(1, 1, _DIM)
        sides = {**_ways(latent, x, _latent_cache(length)), "usual attention": _call(usual, x, _cache(heads, length))}
        for name, spent in _times(sides).items():
            one[name].append(spent)
    many: dict[str, list[float]] = {"absorbed": [], "rebuilt": []}
    before = lengths[-1] // 2
    cache = _latent_cache(before)
    for i, piece in enumerate(_PIECES):
        progress(0.6 + 0.4 * i / len(_PIECES), f"{piece} tokens at once")
        for name, spent in _times(_ways(latent, torch.randn(1, piece, _DIM), cache)).items():
            many[name].append(spent)
    kept, without = _bytes_kept()
    report = Report("mla")
    report.check(
        f"Bytes of a token over those of {_PAPER} heads, from tensors", kept / without, low=0.0175, high=0.0177
    )
    report.check("Absorbed against rebuilt, float64", _apart(), high=1e-10)
    report.check("Time of rebuilding over absorbing, at the longest", one["rebuilt"][-1] / one["absorbed"][-1], low=5)
    report.curve(
        f"One token after others, {heads} heads, one thread",
        x=lengths,
        y=one,
        x_label="tokens before",
        y_label="milliseconds",
        log="xy",
    )
    report.curve(
        f"Many tokens at once after {before} others",
        x=list(_PIECES),
        y=many,
        x_label="new tokens",
        y_label="milliseconds",
        log="xy",
    )
    faster = [a < b for a, b in zip(many["absorbed"], many["rebuilt"], strict=True)]
    chosen = [latent._absorbs(piece, before + piece) for piece in _PIECES]
    report.table(
        "Which way, by the number of new tokens",
        ["new tokens", "absorbed (ms)", "rebuilt (ms)", "the rule absorbs"],
        [[n, a, b, c] for n, a, b, c in zip(_PIECES, *many.values(), chosen, strict=True)],
    )
    report.table(
        "What a token leaves behind in bfloat16",
        ["attention", "bytes per token and layer"],
        [
            [f"{_PAPER} heads of {_KEY}", without],
            [f"8 key-value heads of {_KEY}", without * 8 // _PAPER],
            [f"one key-value head of {_KEY}", without // _PAPER],
            [f"a latent vector of {_RANK} and a turned key of {_TURNED}", kept],
        ],
    )
    if one["absorbed"][-1] < min(one["usual attention"][-1], one["rebuilt"][-1] / 5) and faster[0] and not faster[-1]:
        report.verdict(
            "holds",
            "The cache is that small, both ways give the same, and a token is decoded faster than by as many heads "
            "with keys of their own; what it does to the quality of a large model is not asked here.",
        )
    else:
        report.verdict(
            "caveat", "The cache is that small and both ways agree, but on this machine speed does not follow."
        )
    return report


def _latent_cache(length: int) -> LatentCache:
    pos = torch.full((1,), length)
    return LatentCache(torch.randn(1, 1, length, _RANK), torch.randn(1, 1, length, _TURNED), pos)


def _cache(heads: int, length: int) -> KVCache:
    k, v = torch.randn(2, 1, heads, length, _KEY)
    return KVCache(k, v, torch.full((1,), length))


def _ways(mixer: MLA, x: Tensor, cache: LatentCache) -> dict[str, Step]:
    def forced(absorb: bool) -> Step:
        def ready() -> Callable[[], object]:
            own = cache.append(cache.c[:, :, :0], cache.k_rope[:, :, :0])  # with room, which only one call finds free

            def run() -> object:
                with patch.object(mixer, "_absorbs", lambda *_: absorb):
                    return mixer(x, own)

            return run

        return ready

    return {"absorbed": forced(True), "rebuilt": forced(False)}


def _call(mixer: MHA, x: Tensor, cache: KVCache) -> Step:
    def ready() -> Callable[[], object]:
        own = cache.append(cache.k[:, :, :0], cache.v[:, :, :0])
        return lambda: mixer(x, own)

    return ready


def _times(sides: dict[str, Step]) -> dict[str, float]:
    """Milliseconds: the least of a few, taken in turn."""
    spent: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(_REPEATS):
        for name, side in sides.items():
            act = side()
            start = time.perf_counter()
            act()
            spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: min(each[1:]) for name, each in spent.items()}


def _bytes_kept() -> tuple[int, int]:
    """Of one token in bfloat16: by the latent vector, and by heads with keys and values of their own."""
    x = torch.randn(1, 1, 16, dtype=torch.bfloat16)
    latent = MLA(16, _PAPER).to(torch.bfloat16)(x)[1]
    usual = MHA(16, _PAPER, head_dim=_KEY).to(torch.bfloat16)(x)[1]
    kept, without = (sum(t.numel() * t.element_size() for t in s[:2]) for s in (latent, usual))
    return kept, without


def _apart() -> float:
    mixer = MLA(64, 4).double()
    _, cache = mixer(torch.randn(2, 40, 64, dtype=torch.float64))
    found = [side()()[0] for side in _ways(mixer, torch.randn(2, 3, 64, dtype=torch.float64), cache).values()]  # type: ignore[index]
    return float((found[0] - found[1]).abs().max())
