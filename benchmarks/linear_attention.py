"""Exact causal linear attention beside the same chunked algebra in torch, two packages' paths for CPUs, and softmax."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional

from carrel.attention import linear_attention

from .case import Bar, Case, Problem, Side

_BATCH, _HEADS, _LENGTH, _SIZE = 2, 8, 2048, 64
_CHUNKS = (32, 64, 128)
_OURS = "carrel linear_attention"
_PERFORMER, _LUCIDRAINS = "performer-pytorch, exact on the CPU", "linear-attention-transformer, exact (buckets of 1)"
_SOFTMAX = "torch scaled_dot_product_attention"
Form = Callable[[Tensor, Tensor, Tensor], Tensor]


def _phi(x: Tensor) -> Tensor:
    return functional.elu(x) + 1


def _ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return linear_attention(q, k, v)[0]


def chunked(chunk: int) -> Form:
    """All chunks in one batched product each; the memories before them as one running sum."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, heads, length, _ = q.shape
        q, k, v = (x.reshape(batch * heads, length // chunk, chunk, -1) for x in (_phi(q), _phi(k), v))
        added, sums = k.mT @ v, k.sum(2)
        before, total = added.cumsum(1) - added, sums.cumsum(1) - sums
        weights = (q @ k.mT).tril()
        o = weights @ v + q @ before
        return (o / (weights.sum(-1, keepdim=True) + q @ total.unsqueeze(-1))).view(batch, heads, length, -1)

    return run


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def _module(name: str) -> ModuleType | str:
    """A peer's module, or why there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(name)
        except ImportError as error:
            return f"not installed ({error})"


def _peers() -> tuple[dict[str, Form], dict[str, str]]:
    forms: dict[str, Form] = {f"torch, chunks of {chunk}": chunked(chunk) for chunk in _CHUNKS}
    absent = {}
    performer = _module("performer_pytorch.performer_pytorch")
    if isinstance(performer, str):
        absent[_PERFORMER] = performer
    else:
        forms[_PERFORMER] = lambda q, k, v: performer.causal_linear_attention_noncuda(_phi(q), _phi(k), v)
    lucidrains = _module("linear_attention_transformer.linear_attention_transformer")
    if isinstance(lucidrains, str):
        absent[_LUCIDRAINS] = lucidrains
    else:  # its features are a softmax of q and exp(k), so it does a little less than elu + 1 asks for
        forms[_LUCIDRAINS] = lambda q, k, v: lucidrains.causal_linear_attn(q, k, v, bucket_size=1)
    return forms, absent


def _side(form: Form, leaves: list[Tensor], arrived: Tensor | None) -> Side:
    def run() -> object:
        if arrived is not None:
            return torch.autograd.grad(form(*leaves), leaves, arrived)
        with torch.no_grad():
            return form(*leaves)

    return run


def _problem(batch: int, heads: int, length: int, backward: bool, others: bool) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        shape = (batch, heads, length, _SIZE)
        leaves = [torch.randn(shape, device=device, requires_grad=True) for _ in range(3)]
        arrived = torch.randn(shape, device=device) if backward else None
        forms: dict[str, Form] = {_OURS: _ours}
        peers, absent = _peers() if others else ({}, {})
        forms |= peers
        forms[_SOFTMAX] = _softmax

        def check() -> float:
            """Outputs on the first tokens, of all that compute this, against every weight written down."""
            few = [x[:, :, :256].detach() for x in leaves]
            q, k, v = (x.double() for x in few)
            weights = (_phi(q) @ _phi(k).mT).tril()
            wanted = weights @ v / weights.sum(-1, keepdim=True)
            same = {name: form for name, form in forms.items() if name not in (_LUCIDRAINS, _SOFTMAX)}
            return max(float((form(*few) - wanted).abs().max() / wanted.abs().max()) for form in same.values())

        sides = {name: _side(form, leaves, arrived) for name, form in forms.items()}
        return Problem(check, 1e-4, sides, absent=absent)

    return build


_SHAPE = f"{_BATCH} x {_HEADS} heads x {_LENGTH} x {_SIZE} float32"
_BARS = (*(Bar(f"torch, chunks of {chunk}", 1.5) for chunk in _CHUNKS), Bar(_PERFORMER, 20), Bar(_LUCIDRAINS, 20))

CASES = (
    Case(
        "linear-attention-forward",
        f"forward, {_SHAPE}",
        _problem(_BATCH, _HEADS, _LENGTH, False, True),
        bars=_BARS,
        rounds=3,
        warmup=1,
    ),
    Case(
        "linear-attention",
        f"forward and backward, {_SHAPE}",
        _problem(_BATCH, _HEADS, _LENGTH, True, True),
        bars=_BARS,
        rounds=3,
        warmup=1,
    ),
    *(
        Case(
            f"linear-attention-{length}",
            f"forward, 1 x {_HEADS} heads x {length} x {_SIZE} float32",
            _problem(1, _HEADS, length, False, False),
        )
        for length in (256, 512, 1024, 2048, 4096)
    ),
    Case(
        "gpu-linear-attention",
        f"forward and backward, 8 x 16 heads x 4096 x {_SIZE} float32",
        _problem(8, 16, 4096, True, False),
        "cuda",
        inner=5,
    ),
)
