"""Sparse patterns: what two layers reach, by their masks and by the gradients of layers, and what a window costs."""

from __future__ import annotations

import time

import torch
from torch.nn.functional import scaled_dot_product_attention

from carrel.atlas.report import Report, progress
from carrel.attention import MHA, SparseAttention, SparsePattern

_HEADS = 4
_TIMED = 256
_REAL = torch.float64


def run(*, seed: int, length: int, rounds: int, longest: int) -> Report:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    report = Report("sparse-attention")
    root = max(2, round(length**0.5))
    patterns = {
        "strided": SparsePattern("strided", root),
        "fixed": SparsePattern("fixed", root, summary=max(1, root // 4)),
        "window": SparsePattern("window", 2 * root),
        "all": SparsePattern("window", length),
    }
    error = max(_apart(pattern, generator) for pattern in patterns.values())
    report.check("Against a mask over all pairs, float64", error, high=1e-12)
    report.check("Whole against single tokens, float64", _streaming_error(patterns, generator), high=1e-12)
    reach = {name: _reach(pattern, length) for name, pattern in patterns.items()}
    seen = {name: _seen(pattern, length, generator) for name, pattern in patterns.items()}
    for name in ("strided", "fixed"):
        report.check(f"Pairs that two {name} layers join, share", reach[name][1], low=1.0)
        report.check(f"Tokens that move the last one through two {name} layers, share", seen[name] / length, low=1.0)

    progress(0.05, "timing")
    lengths = [512 * 2**i for i in range((longest // 512).bit_length())]
    ours, full = _times(lengths, rounds, generator)
    report.curve(
        f"Forward and backward, window of {_TIMED}, 4 heads of 64, one thread",
        x=lengths,
        y={"window": ours, "full causal": full},
        x_label="length (tokens)",
        y_label="time (s)",
        log="xy",
    )
    report.table(
        f"Edges and reach over {length} tokens",
        ["pattern", "edges per token", "pairs joined by one layer (%)", "by two (%)", "tokens that move the last"],
        [[name, edges, 100 * one, 100 * two, seen[name]] for name, (edges, two, one) in reach.items()],
    )

    if seen["strided"] == seen["fixed"] == length and seen["window"] < length and full[-1] > 2 * ours[-1]:
        report.verdict(
            "holds",
            "Two strided or fixed layers reach every earlier token where two windows of as many edges do not, and the "
            "window's cost grows with the length alone.",
        )
    elif full[-1] > ours[-1]:
        report.verdict("caveat", "Two layers reach everything, but at these lengths the window saves little.")
    else:
        report.verdict("not-shown", "At these lengths sparse patterns save nothing.")
    return report


def _reach(pattern: SparsePattern, length: int) -> tuple[float, float, float]:
    """Edges per token, and the shares of causal pairs that two layers and that one layer join."""
    one = pattern.dense(length).double()
    pairs = length * (length + 1) / 2
    return float(one.sum() / length), float((one @ one > 0).sum() / pairs), float(one.sum() / pairs)


def _mixer(pattern: SparsePattern, dim: int) -> SparseAttention:
    return SparseAttention(
        dim, _HEADS, pattern=pattern.kind, width=pattern.width, sinks=pattern.sinks, summary=pattern.summary
    )


def _seen(pattern: SparsePattern, length: int, generator: torch.Generator) -> int:
    """Tokens whose input has a gradient at the last token's output, two layers up."""
    x = torch.randn(1, length, 16, generator=generator, dtype=_REAL).requires_grad_()
    y = x
    for _ in range(2):
        y = _mixer(pattern, 16).to(_REAL)(y)[0]
    (dx,) = torch.autograd.grad(y[0, -1].sum(), x)
    return int((dx != 0).any(-1).sum())


def _apart(pattern: SparsePattern, generator: torch.Generator) -> float:
    """From attention with a mask over all pairs, the weights' softmax done by torch."""
    mixer = _mixer(pattern, 16).to(_REAL)
    mixer.rotary_base = None
    x = torch.randn(2, 150, 16, generator=generator, dtype=_REAL)
    with torch.no_grad():
        q, k, v = mixer.qkv(x).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        o = scaled_dot_product_attention(q, k, v, attn_mask=pattern.dense(150))
        return float((mixer(x)[0] - mixer.out(o.transpose(1, 2).flatten(2))).abs().max())


def _streaming_error(patterns: dict[str, SparsePattern], generator: torch.Generator) -> float:
    worst = 0.0
    for pattern in patterns.values():
        mixer, state, pieces = _mixer(pattern, 16).to(_REAL), None, []
        x = torch.randn(1, 70, 16, generator=generator, dtype=_REAL)
        with torch.no_grad():
            for token in torch.split(x, 1, 1):
                y, state = mixer(token, state)
                pieces.append(y)
            worst = max(worst, float((torch.cat(pieces, 1) - mixer(x)[0]).abs().max()))
    return worst


def _times(lengths: list[int], rounds: int, generator: torch.Generator) -> tuple[list[float], list[float]]:
    mixers = SparseAttention(256, 4, width=_TIMED), MHA(256, 4)
    best = {(i, n): float("inf") for i in (0, 1) for n in lengths}
    for n in lengths:
        x = torch.randn(1, n, 256, generator=generator)
        for _ in range(rounds):
            for i, mixer in enumerate(mixers):
                began = time.process_time()
                torch.autograd.backward(mixer(x)[0].sum())
                best[i, n] = min(best[i, n], time.process_time() - began)
    return [best[0, n] for n in lengths], [best[1, n] for n in lengths]
