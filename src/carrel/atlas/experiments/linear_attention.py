"""What linear attention costs: time against length beside its own matrix and beside softmax, and time per token.

The same numbers are computed as a recurrence and as a matrix of weights, whose future half is skipped. Times are those
of the processor, one thread, the least of a few taken in turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.report import Report, progress
from carrel.attention import LINEAR_FEATURES, LinearAttentionState, linear_attention

_SIZE, _ROWS, _HEADS = 64, 512, 4
_SHORTEST, _REPEATS = 64, 5
_FIRST, _STEPS, _ROUNDS = 1024, 20, 50


def run(*, seed: int, longest: int, context: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return _report(seed, longest, context)
    finally:
        torch.set_num_threads(threads)


def _report(seed: int, longest: int, context: int) -> Report:
    generator = torch.Generator().manual_seed(seed)
    report = Report("linear-attention")
    report.check("Pieces and matrix against the whole, all features, float64", _disagreement(generator), high=1e-10)
    lengths, spent = _times(longest, generator)
    recurrence, _, softmax = spent.values()
    grows = {name: times[-1] / times[-3] for name, times in spent.items()}
    contexts, step, cached = _decoding(context, generator)
    spread = max(step) / min(step)
    report.curve(
        f"One head of {_SIZE} channels, forward, one thread",
        x=lengths,
        y=spent,
        x_label="tokens",
        y_label="milliseconds",
        log="xy",
    )
    report.curve(
        f"One token more, {_HEADS} heads of {_SIZE} channels",
        x=contexts,
        y={"linear attention, constant state": step, "softmax over a key-value cache": cached},
        x_label="tokens before it",
        y_label="microseconds",
        log="xy",
    )
    report.table(
        "Milliseconds by length",
        ["tokens", *spent, "softmax / recurrence"],
        [[n, *(times[i] for times in spent.values()), softmax[i] / recurrence[i]] for i, n in enumerate(lengths)],
    )
    report.table(
        "Time for the last fourfold of tokens",
        ["form", "times as long"],
        [[name, growth] for name, growth in grows.items()],
    )
    if grows["recurrence"] <= 5 and grows["matrix"] >= 12 and spread <= 1.3:
        report.verdict(
            "holds",
            "Time grows with the length where the matrix of the same numbers grows with its square, and a further "
            "token costs the same after any number of others.",
        )
    elif grows["recurrence"] <= 6 and grows["matrix"] >= 8:
        report.verdict("caveat", "Linear beside quadratic, but at these lengths or on this machine not clearly so.")
    else:
        report.verdict("not-shown", "At these lengths the two forms do not part as they should.")
    return report


def _weights(q: Tensor, k: Tensor) -> Tensor:
    return (functional.elu(q) + 1) @ (functional.elu(k) + 1).mT


def _matrix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Rows of weights, a few hundred at a time, over the keys up to the last of them."""
    rows = []
    for start in range(0, q.shape[2], _ROWS):
        stop = min(start + _ROWS, q.shape[2])
        weights = _weights(q[:, :, start:stop], k[:, :, :stop]).tril_(start)
        rows.append((weights @ v[:, :, :stop]).div_(weights.sum(-1, keepdim=True)))
    return torch.cat(rows, 2)


def _disagreement(generator: torch.Generator) -> float:
    worst = 0.0
    q, k, v = torch.randn(3, 1, 2, 1100, 8, generator=generator, dtype=torch.float64)
    worst = float((linear_attention(q, k, v)[0] - _matrix(q, k, v)).abs().max())
    for feature in LINEAR_FEATURES:
        normalize = feature != "identity"
        whole, _ = linear_attention(q, k, v, feature=feature, normalize=normalize)
        state: LinearAttentionState | None = None
        pieces = []
        cuts = [x.split([1, 63, 0, 65, 971], 2) for x in (q, k, v)]
        for some_q, some_k, some_v in zip(*cuts, strict=True):
            o, state = linear_attention(some_q, some_k, some_v, state, feature=feature, normalize=normalize)
            pieces.append(o)
        apart = (torch.cat(pieces, 2) - whole).abs().max() / whole.abs().max().clamp(min=1)
        worst = max(worst, float(apart))
    return worst


def _least(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each, the least of a few taken in turn."""
    spent: dict[str, float] = {}
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.thread_time()
            form()
            took = time.thread_time() - start
            spent[name] = min(took, spent.get(name, took))
    return spent


def _times(longest: int, generator: torch.Generator) -> tuple[list[int], dict[str, list[float]]]:
    lengths = [_SHORTEST << i for i in range((longest // _SHORTEST).bit_length())]
    found: dict[str, list[float]] = {"recurrence": [], "matrix": [], "softmax, fused": []}
    for length in lengths:
        q, k, v = torch.randn(3, 1, 1, length, _SIZE, generator=generator)

        def softmax(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> Tensor:
            return functional.scaled_dot_product_attention(q, k, v, is_causal=True)

        forms: dict[str, Callable[[], object]] = {
            "recurrence": lambda q=q, k=k, v=v: linear_attention(q, k, v),  # type: ignore[misc]
            "matrix": lambda q=q, k=k, v=v: _matrix(q, k, v),  # type: ignore[misc]
            "softmax, fused": softmax,
        }
        for name, seconds in _least(forms, _REPEATS if length <= 4096 else 3).items():
            found[name].append(1e3 * seconds)
        progress(0.8 * sum(n for n in lengths if n <= length) / sum(lengths), f"{length} tokens")
    return lengths, found


def _decoding(longest: int, generator: torch.Generator) -> tuple[list[int], list[float], list[float]]:
    """Microseconds of a further token after so many others: by the state, and by a cache of keys and values."""
    contexts = [_FIRST << i for i in range((longest // _FIRST).bit_length())]
    q, k, v = torch.randn(3, 1, _HEADS, 1, _SIZE, generator=generator)
    forms: dict[str, Callable[[], object]] = {}
    state: LinearAttentionState | None = None
    done = 0
    for context in contexts:
        fed = torch.randn(3, 1, _HEADS, context - done, _SIZE, generator=generator)
        _, state = linear_attention(fed[0], fed[1], fed[2], state)
        done = context
        keys, values = torch.randn(2, 1, _HEADS, context, _SIZE, generator=generator)

        def steps(state: LinearAttentionState = state) -> None:
            for _ in range(_STEPS):
                _, state = linear_attention(q, k, v, state)

        def softmax(keys: Tensor = keys, values: Tensor = values) -> Tensor:
            return functional.scaled_dot_product_attention(q, keys, values)

        forms[f"state {context}"], forms[f"cache {context}"] = steps, softmax
    spent = _least(forms, _ROUNDS)
    step = [1e6 * spent[f"state {context}"] / _STEPS for context in contexts]
    return contexts, step, [1e6 * spent[f"cache {context}"] for context in contexts]
