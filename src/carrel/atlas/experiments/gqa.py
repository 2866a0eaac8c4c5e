"""What a token costs when fewer key-value heads serve all query heads: bytes of the cache, and time to read it."""

from __future__ import annotations

import time

import torch

from carrel.atlas.report import Report, progress
from carrel.attention import MHA
from carrel.layers import KVCache

_DIM, _SIZE, _REPEATS = 256, 64, 9  # of x, of a head


def run(*, seed: int, heads: int, tokens: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _measure(heads, tokens)
    finally:
        torch.set_num_threads(threads)


def _measure(heads: int, tokens: int) -> Report:
    kept = [heads >> k for k in range(heads.bit_length()) if heads % (1 << k) == 0]
    kept = kept if kept[-1] == 1 else [*kept, 1]
    x = torch.randn(1, 1, _DIM)
    sizes, spent = [], []
    for i, kv_heads in enumerate(kept):
        progress(i / len(kept), f"{kv_heads} key-value heads")
        mixer = MHA(_DIM, heads, kv_heads=kv_heads, head_dim=_SIZE).eval()
        k, v = torch.randn(2, 1, kv_heads, tokens, _SIZE)
        cache = KVCache(k, v, torch.full((1,), tokens))
        _, cache = mixer(x, cache)  # which also moves it into a buffer with room
        sizes.append(sum(t.numel() * t.element_size() for t in cache[:2]) // cache.k.shape[2])
        spent.append(_least(mixer, x, cache))
    formula = [4 * kv_heads * 2 * _SIZE for kv_heads in kept]
    report = Report("gqa")
    report.check(
        "Bytes per token against 4 G (d + d), largest difference",
        max(abs(a - b) for a, b in zip(sizes, formula, strict=True)),
        high=0,
    )
    report.check("Shared heads against all heads with keys and values repeated, float64", _apart(heads), high=1e-10)
    report.curve(
        f"One token after {tokens} others, {heads} query heads of {_SIZE}, one thread",
        x=[size * tokens / 1e6 for size in reversed(sizes)],
        y={
            "measured": list(reversed(spent)),
            "in proportion to bytes": [spent[0] * size / sizes[0] for size in reversed(sizes)],
        },
        x_label="cache (MB)",
        y_label="milliseconds",
        log="xy",
    )
    report.table(
        f"One token after {tokens} others",
        ["key-value heads", "bytes per token", "cache (MB)", "time (ms)", "read (GB/s)"],
        [
            [g, size, size * tokens / 1e6, t, size * tokens / t / 1e6]
            for g, size, t in zip(kept, sizes, spent, strict=True)
        ],
    )
    gain = spent[0] / spent[-1]
    if gain >= 0.75 * heads:
        report.verdict("holds", "The time of a token falls in proportion to the bytes that its heads keep.")
    elif gain >= heads / 4:
        report.verdict(
            "caveat",
            "Sharing keys and values makes a token several times faster, but time falls by less than bytes: the "
            "arithmetic of the query heads stays and takes over where few heads are kept.",
        )
    else:
        report.verdict("not-shown", "On this machine the time of a token does not follow the bytes of its cache.")
    return report


def _least(mixer: MHA, x: torch.Tensor, cache: KVCache) -> float:
    """Milliseconds of a token, the least of a few in a row: a cache that is gone on from twice is copied."""
    found = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        _, cache = mixer(x, cache)
        found.append(1e3 * (time.perf_counter() - start))
    return min(found[1:])


def _apart(heads: int) -> float:
    """A mixer that shares each pair among half of the heads, and one to which the same weights are given repeatedly."""
    size, dim, few = 4, 16, 2 if heads % 2 == 0 else 1
    shared = MHA(dim, heads, kv_heads=few, head_dim=size).double()
    every = MHA(dim, heads, head_dim=size).double()
    q, k, v = torch.split(shared.qkv.weight, [heads * size, few * size, few * size])
    repeated = [t.reshape(few, size, dim).repeat_interleave(heads // few, 0).flatten(0, 1) for t in (k, v)]
    every.qkv.weight.copy_(torch.cat([q, *repeated]))
    every.out.weight.copy_(shared.out.weight)
    x = torch.randn(2, 9, dim, dtype=torch.float64)
    return float((shared(x)[0] - every(x)[0]).abs().max())
