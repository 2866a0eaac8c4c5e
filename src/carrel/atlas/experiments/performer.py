"""How far estimates of softmax attention by random features are off, by their number, kind and the size of the scores.

Two errors, each relative to the mean square of what is estimated: that of the kernel exp(q·k / √d), and that of the
outputs of attention. Median over draws of the features; queries, keys and values are drawn once per seed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.attention import Performer, gaussian_directions, random_features

_DIM, _TOKENS = 16, 256
_COUNTS, _SIZES, _EVEN = (16, 64, 256, 1024), (0.5, 1.0), 512
_KINDS = {"orthogonal": ("positive", True), "independent": ("positive", False), "trigonometric": ("trig", True)}
Errors = dict[tuple[str, float], list[float]]


def run(*, seed: int, draws: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return _report(seed, draws)
    finally:
        torch.set_num_threads(threads)


def _report(seed: int, draws: int) -> Report:
    generator = torch.Generator().manual_seed(seed)
    kernel, output = _errors(draws, generator)
    report = Report("performer")
    report.check("Mean of the estimates from the kernel, in standard errors", _bias(generator), high=4.5)
    report.check("Products of directions within a block", _skew(generator), high=1e-12)
    report.check("Mixer against features that nothing was subtracted from, float64", _ratio_error(seed), high=1e-10)
    at = _COUNTS.index(64)
    saved = kernel["independent", 0.5][at] / kernel["orthogonal", 0.5][at]
    blown = output["trigonometric", 1.0][2] / output["orthogonal", 1.0][2]
    report.check("Kernel's error, independent over orthogonal, 64 features, size 0.5", saved, low=1)
    report.check("Outputs' error, trigonometric over positive, 256 features, size 1", blown, low=10)
    for size in _SIZES:
        report.curve(
            f"Outputs of attention, entries of q and k of size {size:g}",
            x=list(_COUNTS),
            y={kind: output[kind, size] for kind in _KINDS},
            x_label="features",
            y_label="mean squared error, relative",
            log="xy",
        )
    for name, found in (("Kernel", kernel), ("Outputs of attention", output)):
        report.table(
            f"{name}: mean squared error, relative",
            ["features", *(f"{kind}, size {size:g}" for size in _SIZES for kind in _KINDS)],
            [[m, *(found[kind, size][i] for size in _SIZES for kind in _KINDS)] for i, m in enumerate(_COUNTS)],
        )
    pairs = zip(kernel["independent", 0.5], kernel["orthogonal", 0.5], strict=True)
    helps = sum(math.log(a / b) for a, b in pairs) / len(_COUNTS) > 0.05
    small = output["trigonometric", 0.5][2] < output["orthogonal", 0.5][2]
    useless = output["orthogonal", 1.0][-1] > 0.3
    if blown > 10 and helps and small and useless:
        report.verdict(
            "caveat",
            "Positive features prevent the blow-ups of trigonometric ones at ordinary score sizes, and orthogonal "
            "directions lower the error a little where scores are small. But there trigonometric features are "
            "several times better, and at ordinary sizes even the largest number of features leaves an error of the "
            "order of the signal.",
        )
    elif blown > 10 and helps:
        report.verdict("holds", "Positive orthogonal features estimate softmax attention without blow-ups.")
    else:
        report.verdict("not-shown", "At these settings positive orthogonal features show no advantage.")
    return report


def _errors(draws: int, generator: torch.Generator) -> tuple[Errors, Errors]:
    kernel: Errors = {(kind, size): [] for kind in _KINDS for size in _SIZES}
    output: Errors = {(kind, size): [] for kind in _KINDS for size in _SIZES}
    for at, size in enumerate(_SIZES):
        q, k = size * torch.randn(2, _TOKENS, _DIM, generator=generator, dtype=torch.float64)
        v = torch.randn(_TOKENS, _DIM, generator=generator, dtype=torch.float64)
        weights = torch.exp(q @ k.T / math.sqrt(_DIM))
        attended = weights @ v / weights.sum(-1, keepdim=True)
        for step, count in enumerate(_COUNTS):
            for name, (kind, orthogonal) in _KINDS.items():
                found = []
                for _ in range(draws * max(1, _EVEN // count)):  # few features: cheap draws, and far apart
                    w = gaussian_directions(count, _DIM, orthogonal=orthogonal, generator=generator)
                    estimate = random_features(q, w, kind) @ random_features(k, w, kind).T
                    answer = estimate @ v / estimate.sum(-1, keepdim=True)
                    found.append((_relative(estimate, weights), _relative(answer, attended)))
                errors = torch.tensor(found, dtype=torch.float64).median(0).values.tolist()
                kernel[name, size].append(errors[0])
                output[name, size].append(errors[1])
            progress((at + (step + 1) / len(_COUNTS)) / len(_SIZES), f"size {size:g}, {count} features")
    return kernel, output


def _relative(estimate: Tensor, exact: Tensor) -> float:
    return float((estimate - exact).square().mean() / exact.square().mean())


def _bias(generator: torch.Generator) -> float:
    """The worst of a few pairs: how many standard errors the mean of a thousand draws lies off."""
    q, k = 0.5 * torch.randn(2, 4, _DIM, generator=generator, dtype=torch.float64)
    found = []
    for _ in range(1000):
        w = gaussian_directions(_DIM, _DIM, generator=generator)
        found.append((random_features(q, w) * random_features(k, w)).sum(-1))
    products = torch.stack(found)
    exact = torch.exp((q * k).sum(-1) / math.sqrt(_DIM))
    return float(((products.mean(0) - exact).abs() / (products.std(0) / math.sqrt(len(products)))).max())


def _skew(generator: torch.Generator) -> float:
    block = gaussian_directions(_DIM, _DIM, generator=generator)
    gram = block @ block.T
    return float((gram - gram.diagonal().diag()).abs().max())


def _ratio_error(seed: int) -> float:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mixer, x = Performer(32, 2).double(), torch.randn(2, 150, 32, dtype=torch.float64)
    q, k, v = (t.transpose(1, 2) for t in mixer.qkv(x).view(2, 150, 3, 2, 16).unbind(2))
    weights = (random_features(q, mixer.directions) @ random_features(k, mixer.directions).mT).tril()
    o = (weights @ v / weights.sum(-1, keepdim=True)).transpose(1, 2).flatten(2)
    state, pieces = None, []
    for piece in torch.split(x, [1, 70, 79], 1):
        y, state = mixer(piece, state)
        pieces.append(y)
    return float((torch.cat(pieces, 1) - mixer.out(o)).abs().max())
