"""How concentrated rows of attention are, from running sums and from the matrix, in time and in bytes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from carrel.theory import Concentration, attention_concentration, concentration

from .case import Bar, Case, Problem, Side

_TOKENS, _DIM = 4096, 64
_MATRIX = "the matrix, then its measures"


def _from_matrix(q: Tensor, k: Tensor) -> Concentration:
    return concentration(torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1))


def _problem(device: torch.device) -> Problem:
    q, k = torch.randn(2, _TOKENS, _DIM, generator=torch.Generator().manual_seed(0)).to(device)

    def check() -> float:
        pairs = zip(attention_concentration(q[:300], k), _from_matrix(q[:300].double(), k.double()), strict=True)
        return max(float(((x - y) / y).abs().max()) for x, y in pairs)

    sides: dict[str, Side] = {
        "carrel attention_concentration": lambda: attention_concentration(q, k),
        _MATRIX: lambda: _from_matrix(q, k),
        "the product alone": lambda: q @ k.mT,
    }
    return Problem(check, 1e-3, sides, memory=True)


CASES = (
    Case(
        "concentration",
        f"softmax, {_TOKENS} queries and keys of {_DIM}, float32",
        _problem,
        bars=(Bar(_MATRIX, 1),),
        rounds=3,
        warmup=1,
    ),
)
