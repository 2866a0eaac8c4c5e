"""Sparsemax against sorting, and fitting shares of topics with its loss and with cross-entropy.

The shares are those of documents about a few of many topics. Both sides are linear models of word counts, trained by
L-BFGS on their convex losses, each with the weight decay that serves it best on held-out documents.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from carrel.atlas.report import Report, number, progress
from carrel.attention import entmax_loss, normalize, sparsemax_loss
from carrel.ops import sparsemax

_REAL = torch.float64
_DECAYS = (1e-5, 1e-4, 1e-3, 5e-3, 2e-2)
_VOCABULARY, _WORDS = 300, 200
_SIZES = (10, 30, 100, 300, 1000, 3000)
_SIDES = {"softmax, cross-entropy": ("softmax", 1.0), "sparsemax, its own loss": ("sparsemax", 2.0)}


def run(*, seed: int, documents: int, topics: int, present: int, steps: int) -> Report:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    report = Report("sparsemax")
    x = 2 * torch.randn(200, 1000, generator=generator, dtype=_REAL)
    p = sparsemax(x)
    report.check("Against the threshold found by sorting", (p - _by_sorting(x)).abs().max(), high=1e-12)
    report.check("Sum of the weights, distance from 1", (p.sum(-1) - 1).abs().max(), high=1e-12)
    report.check("Gradient outside the support", _gradient_outside(x), high=0.0)
    report.check("Loss of a class that leads by one", _loss_at_a_lead(x[:, :10], 1.0), high=1e-12)
    report.check("Loss of a class that leads by a little less", _loss_at_a_lead(x[:, :10], 0.9), low=1e-4)
    report.check("Weights above zero, of 1000 scores of size 2", _support(p), low=1.5, high=4.5)

    rows = [2 * torch.randn(200, n, generator=generator, dtype=_REAL) for n in _SIZES]
    report.curve(
        "Weights above zero, scores of size 2",
        x=list(_SIZES),
        y={
            "sparsemax": [_support(sparsemax(r)) for r in rows],
            "softmax, effective (1 / Σp²)": [float((1 / torch.softmax(r, -1).square().sum(-1)).mean()) for r in rows],
        },
        x_label="scores in a row",
        y_label="weights",
        log="xy",
    )
    fits = _Fits(documents, topics, present, steps, generator)
    report.table(
        f"Shares of {topics} topics, {present} of which a document is about",
        ["side", "weight decay", "divergence (nats)", "right topics (%)", "zeros (%)", "absent topics at zero (%)"],
        [[name, number(fit["decay"]), *fit["scores"]] for name, fit in fits.best.items()],
    )
    report.table(
        "Choosing the weight decay: divergence on held-out documents (nats)",
        ["side", *(number(d) for d in _DECAYS)],
        [[name, *sweep] for name, sweep in fits.sweep.items()],
    )
    soft, sparse = (fit["scores"] for fit in fits.best.values())
    zeros, nearer = sparse[3] > 50 and soft[3] == 0, sparse[0] <= soft[0]
    if zeros and nearer:
        report.verdict(
            "holds",
            "Most absent topics get a share of exactly zero, and the shares are nearer to the truth than softmax's.",
        )
    elif zeros and sparse[0] <= 2 * soft[0]:
        report.verdict(
            "caveat",
            "Most absent topics get a share of exactly zero, but the shares as a whole are no nearer to the truth than "
            "softmax's.",
        )
    else:
        report.verdict("not-shown", "Here the exact zeros cost more than they bring.")
    return report


class _Fits:
    """Both linear models, tuned alike."""

    def __init__(self, documents: int, topics: int, present: int, steps: int, generator: torch.Generator) -> None:
        speech = torch.softmax(1.5 * torch.randn(topics, _VOCABULARY, generator=generator, dtype=_REAL), -1)
        train, held, test = (_written(documents, speech, present, generator) for _ in range(3))
        self.sweep: dict[str, list[float]] = {}
        self.best: dict[str, dict[str, Any]] = {}
        for i, (name, (kind, alpha)) in enumerate(_SIDES.items()):
            weights = []
            for j, decay in enumerate(_DECAYS):
                progress((i * len(_DECAYS) + j) / (len(_SIDES) * len(_DECAYS)), f"{name}: decay {number(decay)}")
                weights.append(_fit(train, alpha, decay, steps))
            losses = self.sweep[name] = [_divergence(normalize(held[0] @ w, kind), held[1]) for w in weights]
            least = min(range(len(_DECAYS)), key=losses.__getitem__)
            p, y = normalize(test[0] @ weights[least], kind), test[1]
            found = p.topk(present).indices
            scores = [
                _divergence(p, y),
                100 * float((y.gather(-1, found) > 0).double().mean()),
                100 * float((p == 0).double().mean()),
                100 * float((p[y == 0] == 0).double().mean()),
            ]
            self.best[name] = {"decay": _DECAYS[least], "scores": scores}


def _written(documents: int, speech: Tensor, present: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Scaled word counts with a column of ones, and the shares of the topics."""
    topics = len(speech)
    chosen = torch.rand(documents, topics, generator=generator).argsort(-1)[:, :present]
    parts = torch.empty(documents, present, dtype=_REAL).exponential_(generator=generator) + 0.2
    shares = torch.zeros(documents, topics, dtype=_REAL).scatter_(-1, chosen, parts / parts.sum(-1, keepdim=True))
    words = torch.multinomial(shares @ speech, _WORDS, replacement=True, generator=generator)
    counts = torch.zeros(documents, speech.shape[1], dtype=_REAL).scatter_add_(
        -1, words, torch.ones(words.shape, dtype=_REAL)
    )
    return torch.cat([counts.sqrt(), torch.ones(documents, 1, dtype=_REAL)], -1), shares


def _fit(data: tuple[Tensor, Tensor], alpha: float, decay: float, steps: int) -> Tensor:
    x, y = data
    w = torch.zeros(x.shape[1], y.shape[1], dtype=_REAL, requires_grad=True)
    optimiser = torch.optim.LBFGS([w], max_iter=steps, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = entmax_loss(x @ w, y, alpha) + decay * w.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)
    return w.detach()


def _divergence(p: Tensor, y: Tensor) -> float:
    """Jensen and Shannon's, which zeros leave finite; 0 to ln 2."""
    middle = (p + y) / 2
    each = torch.xlogy(p, p) + torch.xlogy(y, y) - 2 * torch.xlogy(middle, middle)
    return float(each.sum(-1).mean() / 2)


def _support(p: Tensor) -> float:
    return float((p > 0).sum(-1).double().mean())


def _by_sorting(x: Tensor) -> Tensor:
    falling = x.sort(-1, descending=True).values
    taus = (falling.cumsum(-1) - 1) / torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    last = (falling > taus).sum(-1, keepdim=True) - 1
    return (x - taus.gather(-1, last)).clamp(min=0)


def _gradient_outside(x: Tensor) -> float:
    x = x.clone().requires_grad_()
    p = sparsemax(x)
    (dx,) = torch.autograd.grad(p.pow(3).sum(), x)
    return float(dx[p == 0].abs().max())


def _loss_at_a_lead(x: Tensor, lead: float) -> float:
    x = x.clone()
    x[:, 0] = x[:, 1:].amax(-1) + lead
    losses = sparsemax_loss(x, torch.zeros(len(x), dtype=torch.int64), reduction="none")
    return float(losses.max() if lead >= 1 else losses.min())
