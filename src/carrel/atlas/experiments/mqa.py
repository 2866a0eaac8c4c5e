"""One key-value head for all query heads: the cache it leaves, the time of a token by context, and what it costs.

The cost is looked for where heads are needed most, in naming the tokens at six distances at once; sides are trained
alike, each at the learning rate that its own sweep chose.
"""

from __future__ import annotations

import time

import torch

from carrel.atlas.report import Report, progress
from carrel.attention import MHA
from carrel.layers import KVCache

from .recent_recall import DISTANCES, RecallTrained

_DIM, _SIZE, _REPEATS = 256, 64, 7  # of x, of a head
_TRAINED = 8  # query heads of what is trained
_LENGTH, _LONG, _WIDTH = 64, 256, 64


def run(*, seed: int, heads: int, tokens: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _report(seed, heads, tokens, steps)
    finally:
        torch.set_num_threads(threads)


def _report(seed: int, heads: int, tokens: int, steps: int) -> Report:
    contexts = [n for n in (tokens >> k for k in range(5, -1, -1)) if n]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        apart = _apart(heads)
        spent, sizes = {}, {}
        for kept in (heads, 1):
            progress(0.0, f"one token, {kept} key-value heads")
            spent[kept], sizes[kept] = _decoding(heads, kept, contexts)
    report = Report("mqa")
    report.check(
        "Bytes per token against 4 (d + d) for one head",
        abs(sizes[1] - 4 * 2 * _SIZE),
        high=0,
    )
    report.check(
        "All heads' bytes over one head's, against their number", sizes[heads] / sizes[1] - heads, low=0, high=0
    )
    report.check("One head against all heads with keys and values repeated, float64", apart, high=1e-10)
    report.curve(
        f"One token more, {heads} query heads of {_SIZE}, one thread",
        x=contexts,
        y={"a key-value head for each": spent[heads], "one for all": spent[1]},
        x_label="tokens before it",
        y_label="milliseconds",
        log="xy",
    )
    report.table(
        "One token more",
        ["tokens before it", "cache of all (MB)", "of one (MB)", "time of all (ms)", "of one (ms)", "times faster"],
        [
            [n, sizes[heads] * n / 1e6, sizes[1] * n / 1e6, every, one, every / one]
            for n, every, one in zip(contexts, spent[heads], spent[1], strict=True)
        ],
    )
    mixers = {
        "a key-value head for each": lambda dim: MHA(dim, _TRAINED),
        "two for all": lambda dim: MHA(dim, _TRAINED, kv_heads=2),
        "one for all": lambda dim: MHA(dim, _TRAINED, kv_heads=1),
    }
    trained = RecallTrained(mixers, seed, length=_LENGTH, width=_WIDTH, steps=steps, long=_LONG)
    report.check(
        "One token by one against the whole, float64", trained.sides["one for all"].streaming_error(), high=1e-10
    )
    trained.tell(report)
    parameters = {name: sum(p.numel() for p in side.model.parameters()) for name, side in trained.sides.items()}
    report.table(
        f"{_TRAINED} query heads on a width of {_WIDTH}: named right at {len(DISTANCES)} distances",
        ["side", "parameters", "named right (%)"],
        [[name, parameters[name], 100 * trained.mean(name)] for name in mixers],
    )
    gain = spent[heads][-1] / spent[1][-1]
    lost = trained.mean("a key-value head for each") - trained.mean("one for all")
    if gain < heads / 4:
        report.verdict("not-shown", "On this machine the time of a token does not follow the bytes of its cache.")
    elif lost > 0.15:
        report.verdict(
            "caveat",
            "A token after a long context is several times faster, but where heads look to different places, recall "
            "suffers from sharing one set of keys and values.",
        )
    elif gain < 0.75 * heads:
        report.verdict(
            "caveat",
            "A token after a long context is several times faster, though by less than the bytes fall, and recall "
            "suffers little, if at all.",
        )
    else:
        report.verdict("holds", "The time of a token falls with its bytes, and recall suffers little, if at all.")
    return report


def _decoding(heads: int, kept: int, contexts: list[int]) -> tuple[list[float], int]:
    """Milliseconds of a token after so many others, the least of a few in a row; bytes that every token leaves."""
    mixer = MHA(_DIM, heads, kv_heads=kept, head_dim=_SIZE).eval()
    x, spent, size = torch.randn(1, 1, _DIM), [], 0
    for context in contexts:
        k, v = torch.randn(2, 1, kept, context, _SIZE)
        _, cache = mixer(x, KVCache(k, v, torch.full((1,), context)))  # which also moves it into a buffer with room
        size = sum(t.numel() * t.element_size() for t in cache[:2]) // cache.k.shape[2]
        found = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            _, cache = mixer(x, cache)
            found.append(1e3 * (time.perf_counter() - start))
        spent.append(min(found[1:]))
    return spent, size


def _apart(heads: int) -> float:
    """A mixer with one pair of keys and values, and one to whose heads the same weights are given each."""
    size, dim = 4, 16
    one = MHA(dim, heads, kv_heads=1, head_dim=size).double()
    every = MHA(dim, heads, head_dim=size).double()
    q, k, v = torch.split(one.qkv.weight, [heads * size, size, size])
    every.qkv.weight.copy_(torch.cat([q, k.repeat(heads, 1), v.repeat(heads, 1)]))
    every.out.weight.copy_(one.out.weight)
    x = torch.randn(2, 9, dim, dtype=torch.float64)
    return float((one(x)[0] - every(x)[0]).abs().max())
