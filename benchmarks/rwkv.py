"""RWKV-4's averages beside transformers' path without CUDA, a loop in torch, and two linear scans."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from carrel.ops import linear_scan, wkv

from .case import Bar, Case, Problem, Side

Average = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _ours(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return wkv(w, u, k, v)[0]


def _loop(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The stable recurrence, token by token, with the past's half computed only once."""
    a, b, p = torch.zeros_like(k[:, 0]), torch.zeros_like(k[:, 0]), torch.full_like(k[:, 0], -1e38)
    own, rows = u + k, []
    for key, first, value in zip(k.unbind(1), own.unbind(1), v.unbind(1), strict=True):
        q = torch.maximum(p, first)
        old, new = torch.exp(p - q), torch.exp(first - q)
        rows.append(torch.addcmul(new * value, old, a) / torch.addcmul(new, old, b))
        p = p - w
        q = torch.maximum(p, key)
        old, new = torch.exp(p - q), torch.exp(key - q)
        a, b, p = torch.addcmul(new * value, old, a), torch.addcmul(new, old, b), q
    return torch.stack(rows, 1)


def _composed(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Two linear scans, of values and of weights, as multiples of the running maximum."""
    with torch.no_grad():
        faded = torch.arange(k.shape[1], device=k.device).unsqueeze(1) * w
        after = (k + faded).cummax(1).values - faded
        before = torch.cat([torch.full_like(after[:, :1], -1e38), after[:, :-1]], 1)
        q = torch.maximum(before, u + k)
    kept, added = torch.exp(before - w - after), torch.exp(k - after)
    sums = (linear_scan(kept, added * v)[0], linear_scan(kept, added)[0])
    a, b = (torch.cat([torch.zeros_like(s[:, :1]), s[:, :-1]], 1) for s in sums)
    old, new = torch.exp(before - q), torch.exp(u + k - q)
    return (old * a + new * v) / (old * b + new)


def _transformers() -> Average | None:
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("transformers.models.rwkv") is None:
        return None
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu
    return lambda w, u, k, v: rwkv_linear_attention_cpu(torch.log(w), u, k, v)[0]


def _averages() -> tuple[dict[str, Average], dict[str, str]]:
    """Ours first; and who is not there."""
    sides: dict[str, Average | None] = {
        "carrel wkv": _ours,
        "torch loop": _loop,
        "transformers without CUDA": _transformers(),
        "two linear_scans": _composed,
    }
    return {n: side for n, side in sides.items() if side}, {n: "not installed" for n, side in sides.items() if not side}


def _problem(batch: int, length: int, channels: int, training: bool) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        sides, absent = _averages()
        if device.type == "cuda":
            sides = {name: sides[name] for name in ("carrel wkv", "two linear_scans")}
        w, u = torch.rand(channels, device=device) + 0.01, torch.randn(channels, device=device)
        k, v, arrived = torch.randn(3, batch, length, channels, device=device)
        inputs = [t.requires_grad_() for t in (w, u, 3 * k, v)]

        def timed(average: Average) -> Side:
            def forward() -> object:
                with torch.no_grad():
                    return average(*inputs)

            return (lambda: torch.autograd.grad(average(*inputs), inputs, arrived)) if training else forward

        def check() -> float:
            short = [*inputs[:2], *(t[:, :200] for t in inputs[2:])]
            exact = _both(_loop, [t.double() for t in short], inputs, arrived[:, :200])
            found = [_both(average, short, inputs, arrived[:, :200]) for average in sides.values()]
            return max(
                float((x - y).abs().max() / y.abs().max()) for other in found for x, y in zip(other, exact, strict=True)
            )

        moved = k.numel() * k.element_size() * (8 if training else 3)
        return Problem(check, 1e-4, {name: timed(average) for name, average in sides.items()}, moved, absent)

    return build


def _both(average: Average, given: list[Tensor], inputs: list[Tensor], arrived: Tensor) -> list[Tensor]:
    y = average(*given)
    return [y.detach(), *torch.autograd.grad(y, inputs, arrived.to(y.dtype))]


CASES = (
    Case(
        "wkv",
        "forward and backward, 4 x 1024 x 256, float32",
        _problem(4, 1024, 256, True),
        bars=(Bar("torch loop", 10), Bar("transformers without CUDA", 10), Bar("two linear_scans", 2)),
        rounds=5,
        warmup=1,
    ),
    Case(
        "wkv-forward",
        "no gradient, 4 x 1024 x 256, float32",
        _problem(4, 1024, 256, False),
        bars=(Bar("torch loop", 10), Bar("transformers without CUDA", 10), Bar("two linear_scans", 2)),
        rounds=9,
        warmup=1,
    ),
    Case(
        "gpu-wkv",
        "forward and backward, 8 x 4096 x 1024, float32",
        _problem(8, 4096, 1024, True),
        "cuda",
        rounds=5,
        warmup=1,
    ),
)
