"""S = E|a| / sqrt(E a^2), entropy, effective entries and ranks: of matrices, and of queries and keys."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from carrel.theory import (
    attention_concentration,
    concentration,
    decay_sparsity,
    effective_rank,
    sparsity,
)

REAL = torch.float64
WEIGHT = {"exp": torch.exp, "identity": lambda s: s, "relu2": lambda s: torch.relu(s).square()}
every_kind = pytest.mark.parametrize("kind", WEIGHT)


def test_features_that_are_nowhere_negative_follow_their_moments():
    q, mean, deviation = torch.rand(3, 20, generator=torch.Generator().manual_seed(0), dtype=REAL)
    generator = torch.Generator().manual_seed(1)
    shape = (mean / deviation).square()  # of a gamma law with that mean and deviation
    features = torch._standard_gamma(shape.expand(200_000, -1), generator=generator) * deviation.square() / mean
    found = concentration(features @ q).S
    assert float(found) == pytest.approx(sparsity("linear", float(q @ mean), float((q * deviation).norm())), rel=5e-3)


@pytest.mark.parametrize(("decay", "length"), [(0.5, 1), (0.9, 7), (0.99, 300), (1.0, 5), (0.0, 4)])
def test_the_row_of_a_decay_is_exact(decay, length):
    row = torch.tensor([decay**j for j in range(length)], dtype=REAL)
    assert decay_sparsity(decay, length) == pytest.approx(float(concentration(row).S), rel=1e-14)


def test_the_measures_of_a_row_by_hand():
    found = concentration(torch.tensor([[0.0, 1, 0, 0], [2, 2, 2, 2], [3, 1, 0, 0]], dtype=REAL), top=2)
    torch.testing.assert_close(found.S, torch.tensor([0.5, 1, 4 / math.sqrt(40)], dtype=REAL), atol=1e-15, rtol=0)
    mixed = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    torch.testing.assert_close(found.entropy, torch.tensor([0, math.log(4), mixed], dtype=REAL), atol=1e-15, rtol=0)
    torch.testing.assert_close(found.n_eff, torch.tensor([1, 4, 1.6], dtype=REAL), atol=1e-15, rtol=0)
    torch.testing.assert_close(found.top, torch.tensor([1, 0.5, 1], dtype=REAL), atol=1e-15, rtol=0)


def test_size_does_not_matter_and_effective_entries_are_n_times_s_squared():
    a = torch.rand(5, 30, generator=torch.Generator().manual_seed(0), dtype=REAL)
    plain = concentration(a, top=3)
    for x, y in zip(concentration(7 * a.T, dim=0, top=3), plain, strict=True):
        torch.testing.assert_close(x, y, atol=1e-13, rtol=0)
    torch.testing.assert_close(plain.n_eff, 30 * plain.S.square(), atol=1e-12, rtol=0)


def test_a_hidden_entry_is_not_there():
    a = torch.rand(6, 9, generator=torch.Generator().manual_seed(0), dtype=REAL)
    found = concentration(a, mask=torch.arange(9) < 4, top=2)
    for x, y in zip(found, concentration(a[:, :4], top=2), strict=True):
        torch.testing.assert_close(x, y, atol=1e-15, rtol=0)


def problem(length=23, keys=23, dim=5, size=2.0, lead=(2, 3)):
    generator = torch.Generator().manual_seed(0)
    q = size * torch.randn(*lead, length, dim, generator=generator, dtype=REAL)
    return q, torch.randn(*lead, keys, dim, generator=generator, dtype=REAL)


@every_kind
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "keys", "block"), [(23, 23, 5), (7, 23, 4), (23, 23, 100), (1, 9, 1)])
def test_running_sums_are_those_of_the_matrix(kind, causal, length, keys, block):
    q, k = problem(length, keys)
    scores = q @ k.mT / math.sqrt(5)
    mask = torch.ones(length, keys, dtype=torch.bool).tril(keys - length) if causal else None
    wanted = concentration(WEIGHT[kind](scores), mask=mask, top=3)
    found = attention_concentration(q, k, kind, causal=causal, top=3, block=block)
    for name, x, y in zip(wanted._fields, found, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-12, equal_nan=True, msg=name)
    assert found.S.shape == (2, 3, length)


def test_rising_scores_and_scores_far_beyond_the_exponential_are_no_trouble():
    k = torch.arange(1.0, 400, dtype=REAL).unsqueeze(-1)
    q = torch.tensor([[50.0], [-50.0], [0.01]], dtype=REAL)
    scores = q @ k.mT
    found = attention_concentration(q, k, scale=1.0, block=7)
    wanted = concentration(torch.softmax(scores, -1))
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-10)
    assert found.n_eff[0] == pytest.approx(1)


class _Largest(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


@every_kind
def test_the_matrix_is_never_there(kind):
    q, k = torch.randn(2, 1024, 8, generator=torch.Generator().manual_seed(0))
    with _Largest() as seen:
        attention_concentration(q, k, kind, causal=True, block=128)
    assert seen.numbers <= 128 * 128
    features = torch.rand(2, 5000, 4, generator=torch.Generator().manual_seed(0))
    with _Largest() as seen:
        effective_rank((features[0], features[1]))
    assert seen.numbers <= 5000 * 4


def test_the_effective_rank_counts_equal_directions_and_lies_below_the_rank():
    for rank in (1, 4, 7):
        A = torch.diag(torch.tensor([3.0] * rank + [0.0] * (9 - rank), dtype=REAL))
        assert float(effective_rank(A)) == pytest.approx(rank, rel=1e-14)
    shares = torch.tensor([0.7, 0.2, 0.1], dtype=REAL)
    turn = torch.linalg.qr(torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=REAL)).Q
    wanted = math.exp(-sum(p * math.log(p) for p in shares.tolist()))
    assert float(effective_rank(4 * turn * shares @ turn.mT)) == pytest.approx(wanted, rel=1e-12)


def test_factors_give_the_rank_of_their_product():
    left, right = (torch.randn(3, n, 4, generator=torch.Generator().manual_seed(n), dtype=REAL) for n in (30, 50))
    torch.testing.assert_close(effective_rank((left, right)), effective_rank(left @ right.mT), atol=1e-10, rtol=0)
    short = (left[:, :2], right[:, :3])  # more channels than rows
    torch.testing.assert_close(effective_rank(short), effective_rank(short[0] @ short[1].mT), atol=1e-10, rtol=0)


def test_rows_and_matrices_of_zeros_have_no_measure():
    a = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, -1.0]])
    found = concentration(a)
    assert found.S.isnan().tolist() == [True, False, False]
    assert found.entropy.isnan().tolist() == [True, False, True]
    assert effective_rank(torch.zeros(3, 3)).isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_types_are_summed_in_float32(dtype):
    q, k = (x.to(dtype) for x in problem())
    found = attention_concentration(q, k, causal=True)
    wanted = attention_concentration(q.double(), k.double(), causal=True)
    for x, y in zip(found, wanted, strict=True):
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), y, atol=1e-4, rtol=1e-4)


Q = torch.ones(4, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: concentration(Q, top=0), "top of at least 1, not torch.float32 of shape (4, 3) and 0"),
        (lambda: concentration(Q, dim=2), "a real attn that has axis 2"),
        (
            lambda: concentration(Q, mask=torch.ones(4, 3)),
            "a mask of bool that broadcasts to (4, 3), not torch.float32",
        ),
        (lambda: concentration(Q, mask=torch.ones(5, dtype=torch.bool)), "a mask of bool that broadcasts to (4, 3)"),
        (lambda: concentration(0 * Q, strict=True), "rows with an entry that is not 0, if strict"),
        (lambda: concentration(-Q, strict=True), "entries of at least 0 for an entropy, if strict"),
        (lambda: attention_concentration(Q, Q[:, :2]), "q (..., T, d) and k (..., n, d), not (4, 3) and (4, 2)"),
        (lambda: attention_concentration(Q, Q, "cosine"), "a kind among exp, identity, relu2, not 'cosine'"),
        (lambda: attention_concentration(Q, Q[:2], causal=True), "no more queries than keys if causal"),
        (lambda: attention_concentration(Q, Q, block=0), "top and block of at least 1"),
        (lambda: effective_rank(torch.ones(3)), "a real matrix (..., m, n), not torch.float32 of (3,)"),
        (lambda: effective_rank((Q, Q[:, :2])), "factors (..., m, r) and (..., n, r), not (4, 3) and (4, 2)"),
    ],
)
def test_bad_input_is_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        call()
