"""Squares of positive scores as attention: exact in blocks, what they weigh, and their time beside a softmax's."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention

from carrel.atlas.report import Report, progress
from carrel.ops import relu2_attention

_HEADS, _SIZE, _MOST_PAIRS = 4, 64, 2048
_CLEARLY = 1.2  # times as long
_OURS, _PLAIN, _SOFTMAX = "squares of positive scores", "the same, all pairs in torch", "softmax, fused in torch"
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(*, seed: int, longest: int, rounds: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(torch.Generator().manual_seed(seed), longest, rounds)
    finally:
        torch.set_num_threads(threads)


def _measure(generator: torch.Generator, longest: int, rounds: int) -> Report:
    report = Report("relu2")
    report.check("Outputs and gradients against all pairs, float64", _apart(generator), high=1e-11)
    report.check("Sums over parts of the keys, added up, float64", _added(generator), high=1e-12)
    report.check("Kept for the backward, over q, k, v and nothing else", _kept(generator), high=1.01)
    lengths = [256 * 2**i for i in range((longest // 256).bit_length())]
    sizes = _sizes(lengths, generator)
    report.curve(
        "Size of the output by length, all inputs normal",
        x=lengths,
        y=sizes,
        x_label="length (tokens)",
        y_label="root mean square of the last outputs",
        log="xy",
    )
    times = _times(lengths, rounds, generator)
    report.curve(
        f"Forward and backward, {_HEADS} heads of {_SIZE}, one thread",
        x={name: lengths[: len(t)] for name, t in times.items()},
        y=times,
        x_label="length (tokens)",
        y_label="time (s)",
        log="xy",
    )
    ours, softmax, plain = times[_OURS], times[_SOFTMAX], times[_PLAIN]
    report.table(
        "Times ours takes them, forward and backward",
        ["length", _SOFTMAX, _PLAIN],
        [[n, softmax[i] / ours[i], plain[i] / ours[i] if i < len(plain) else None] for i, n in enumerate(lengths)],
    )
    report.table(
        f"Weights of the last of {_MOST_PAIRS} tokens, scores normal",
        ["rule", "exactly zero (%)", "in the largest 1% (%)"],
        _weights(generator),
    )
    saved = softmax[-1] / ours[-1]
    if saved >= _CLEARLY:
        report.verdict(
            "holds",
            "Squares of positive scores, block by block, are exact without maximum or sum, half of them are zero, and "
            "they take less time than a fused softmax of the same sizes.",
        )
    elif saved >= 1 / _CLEARLY**2:
        report.verdict(
            "caveat",
            "Squares of positive scores are exact in blocks without maximum or sum and half of them are zero, but they "
            "save no time to speak of: a fused softmax spends most of its own on the same products.",
        )
    else:
        report.verdict(
            "not-shown",
            "Squares of positive scores are exact in blocks, but take longer than a fused softmax of the same sizes.",
        )
    return report


def _noise(length: int, generator: torch.Generator, dtype: torch.dtype) -> list[Tensor]:
    shape = (1, _HEADS, length, _SIZE)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seen = torch.arange(1, q.shape[2] + 1, dtype=q.dtype).unsqueeze(1)
    return (torch.relu(q @ k.mT * q.shape[-1] ** -0.5).square() / seen).tril() @ v


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _apart(generator: torch.Generator) -> float:
    inputs = _noise(600, generator, torch.float64)
    found = []
    for form in (relu2_attention, _plain):
        o = form(*inputs)
        found.append((o, *torch.autograd.grad(o.square().sum(), inputs)))
    return max(float((a - b).detach().abs().max()) for a, b in zip(*found, strict=True))


def _added(generator: torch.Generator) -> float:
    q, k, v = (x.detach() for x in _noise(600, generator, torch.float64))
    whole = relu2_attention(q, k, v, causal=False)
    parts = (slice(0, 100), slice(100, 357), slice(357, 600))
    split = sum((relu2_attention(q, k[:, :, p], v[:, :, p], causal=False, count=600) for p in parts), 0 * whole)
    return float((whole - split).abs().max())


def _kept(generator: torch.Generator) -> float:
    """Numbers that autograd keeps, over those of q, k and v."""
    inputs = _noise(600, generator, torch.float32)
    kept: list[int] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(x.numel())
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        relu2_attention(inputs[0], inputs[1], inputs[2], count=600)
    return sum(kept) / sum(x.numel() for x in inputs)


def _sizes(lengths: list[int], generator: torch.Generator) -> dict[str, list[float]]:
    """Of the last 64 outputs, by what the squares are divided by."""
    sizes: dict[str, list[float]] = {"n, the number of tokens seen": [], "n², as in the paper's listing": [], "1": []}
    for n in lengths:
        q, k, v = (x.detach() for x in _noise(n, generator, torch.float32))
        q = q[:, :, -64:]
        found = (
            relu2_attention(q, k, v),
            relu2_attention(q, k, v, scale=1.0, count=float(n) ** 2),
            relu2_attention(q, k, v, count=1),
        )
        for name, o in zip(sizes, found, strict=True):
            sizes[name].append(float(o.square().mean().sqrt()))
    return sizes


def _weights(generator: torch.Generator) -> list[list[object]]:
    scores = torch.randn(200, _MOST_PAIRS, generator=generator, dtype=torch.float64)
    rows = []
    for name, p in (("squares of positive scores", torch.relu(scores).square()), ("softmax", scores.softmax(-1))):
        top = p.sort(-1, descending=True).values[:, : _MOST_PAIRS // 100].sum(-1) / p.sum(-1)
        rows.append([name, 100 * float((p == 0).double().mean()), 100 * float(top.mean())])
    return rows


def _times(lengths: list[int], rounds: int, generator: torch.Generator) -> dict[str, list[float]]:
    forms: dict[str, Form] = {_OURS: relu2_attention, _SOFTMAX: _softmax, _PLAIN: _plain}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for i, n in enumerate(lengths):
        inputs = _noise(n, generator, torch.float32)
        best = dict.fromkeys((name for name in forms if name != _PLAIN or n <= _MOST_PAIRS), float("inf"))
        for turn in range(rounds + 1):
            for name in best:
                began = time.process_time()
                torch.autograd.grad(forms[name](*inputs).sum(), inputs)
                if turn:  # the first warms up
                    best[name] = min(best[name], time.process_time() - began)
        for name, seconds in best.items():
            times[name].append(seconds)
        progress((i + 1) / len(lengths), f"timed at {n} tokens")
    return times
