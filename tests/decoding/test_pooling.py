"""Pooled next-token distributions: z = (beta + 1) P[log p(t|S_k)] - beta log p(t)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from carrel.decoding import pool
from carrel.decoding.pooling import nucleus

INF = float("inf")


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(3, 5, 40, generator=g, dtype=torch.float64) * 3,
        torch.randn(3, 40, generator=g, dtype=torch.float64) * 2,
    )


def the_published_order(ctx: Tensor, free: Tensor, beta: float, top_p: float, pooling: str) -> Tensor:
    """One row of the batch: log-softmax, top-p, entropy with clipped logs, merge, keep where free is lost."""
    logits = torch.cat((free[None], ctx))
    logits = logits - logits.logsumexp(-1, keepdim=True)
    for row in logits:
        order = row.argsort(descending=True)
        mass = 0.0
        for token in order.tolist():
            lost = mass >= top_p
            mass += math.exp(row[token])
            if lost:
                row[token] = -INF
    entropy = -(logits.exp() * logits.clip(-100, 0)).sum(-1)
    best = logits[1:].max(0).values if pooling == "max" else logits[1 + int(entropy[1:].argmin())]
    merged = (1 + beta) * best - beta * logits[0]
    return torch.where(logits[0] > -100, merged, best)


@pytest.mark.parametrize("pooling", ["min-entropy", "max"])
@pytest.mark.parametrize("top_p", [0.95, 0.5, 1.0])
def test_it_is_the_published_order_of_steps(rows, pooling: str, top_p: float) -> None:
    ctx, free = rows
    got, _ = pool(ctx, free, pooling, 0.25, top_p)
    for b in range(3):
        torch.testing.assert_close(
            got[b], the_published_order(ctx[b], free[b], 0.25, top_p, pooling), rtol=0, atol=1e-12
        )


def independent_tables(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """log p(T|S_k) (1, n, V), log p(T), and log p(T|S_1..S_n), where the S_k are independent given T."""
    g = torch.Generator().manual_seed(seed)
    prior = torch.rand(9, generator=g, dtype=torch.float64).softmax(-1)
    likelihood = torch.rand(n, 9, 6, generator=g, dtype=torch.float64).softmax(-1)  # p(S_k | T)
    drawn = torch.randint(6, (n,), generator=g)
    seen = likelihood[torch.arange(n), :, drawn]
    one = (seen * prior).log().log_softmax(-1)
    joint = torch.zeros(9, dtype=torch.float64)  # the whole table p(T, S_1..S_n), read where it was seen
    for t in range(9):
        table = prior[t]
        for k in range(n):
            table = table[..., None] * likelihood[k, t]
        joint[t] = table[tuple(drawn.tolist())]
    return one[None], prior.log()[None], (joint / joint.sum()).log()[None]


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_the_mean_with_beta_n_minus_1_is_bayes_rule_where_contexts_are_independent(n: int, seed: int) -> None:
    ctx, free, posterior = independent_tables(n, seed)
    z, _ = pool(ctx, free, "mean", n - 1, top_p=1)
    torch.testing.assert_close(z.log_softmax(-1), posterior, rtol=0, atol=1e-12)


def test_one_context_with_beta_0_is_that_context(rows) -> None:
    ctx, free = rows
    for pooling in ("min-entropy", "mean", "max"):
        z, _ = pool(ctx[:, :1], free, pooling, 0.0, top_p=1)
        torch.testing.assert_close(z, ctx[:, 0].log_softmax(-1), rtol=0, atol=1e-12)


def test_beta_minus_1_is_the_models_own_opinion_even_where_a_context_excludes_a_token(rows) -> None:
    ctx, free = rows
    ctx[:, :, 3] = -INF
    z, info = pool(ctx, free, "max", -1.0, top_p=1)
    torch.testing.assert_close(z, free.log_softmax(-1), rtol=0, atol=1e-12)
    assert info.chosen.tolist() == [-1] * 3


@pytest.mark.parametrize("pooling", ["min-entropy", "mean", "max"])
def test_the_order_of_contexts_changes_nothing_but_their_numbers(rows, pooling: str) -> None:
    ctx, free = rows
    order = torch.tensor([3, 0, 4, 1, 2])
    z, info = pool(ctx, free, pooling)
    z2, info2 = pool(ctx[:, order], free, pooling)
    torch.testing.assert_close(z2, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(info2.entropies, info.entropies[:, order], rtol=0, atol=0)
    if pooling != "mean":
        assert torch.equal(order[info2.chosen], info.chosen)


@pytest.mark.parametrize("pooling", ["min-entropy", "max"])
def test_a_context_given_twice_counts_once(rows, pooling: str) -> None:
    ctx, free = rows
    assert torch.equal(pool(torch.cat((ctx, ctx[:, :2]), 1), free, pooling)[0], pool(ctx, free, pooling)[0])


def test_a_constant_added_to_all_logits_of_a_row_changes_nothing(rows) -> None:
    ctx, free = rows
    shift = torch.tensor([0.0, 5.0, -7.0, 300.0, -900.0], dtype=torch.float64)[:, None]
    z, info = pool(ctx, free)
    z2, info2 = pool(ctx + shift, free - 40)
    torch.testing.assert_close(info2.entropies, info.entropies, rtol=0, atol=1e-11)
    torch.testing.assert_close(z2, z, rtol=0, atol=1e-11)


def test_the_entropy_is_that_of_what_is_kept_without_renormalizing_unless_asked() -> None:
    p = torch.tensor([0.6, 0.3, 0.06, 0.04], dtype=torch.float64)
    kept = p[:2]
    _, info = pool(p.log()[None, None], p.log()[None], top_p=0.9 - 1e-9)
    assert float(info.entropies) == pytest.approx(float(-(kept * kept.log()).sum()), abs=1e-12)
    share = kept / kept.sum()
    z, info = pool(p.log()[None, None], p.log()[None], beta=0, top_p=0.9 - 1e-9, renormalize=True)
    assert float(info.entropies) == pytest.approx(float(-(share * share.log()).sum()), abs=1e-12)
    assert z[0].exp().tolist() == pytest.approx([*share.tolist(), 0, 0], abs=1e-12)


def test_the_surest_context_is_chosen_row_by_row() -> None:
    sure, unsure = torch.tensor([9.0, 0, 0, 0]), torch.zeros(4)
    ctx = torch.stack((torch.stack((unsure, sure)), torch.stack((sure, unsure))))
    assert pool(ctx, torch.zeros(2, 4))[1].chosen.tolist() == [1, 0]


def test_tokens_that_the_model_alone_excludes_keep_the_pooled_value(rows) -> None:
    ctx, free = rows
    free[:, 7], free[:, 8] = -INF, -500.0
    z, _ = pool(ctx, free, "max", 0.5, top_p=1)
    torch.testing.assert_close(z[:, 7:9], ctx.log_softmax(-1).amax(1)[:, 7:9], rtol=0, atol=1e-12)
    assert z.isfinite().all()


@pytest.mark.parametrize("beta", [-1.0, -0.5, 0.0, 0.25, 4.0])
@pytest.mark.parametrize("pooling", ["min-entropy", "mean", "max"])
def test_tokens_at_minus_infinity_never_make_nan(rows, pooling: str, beta: float) -> None:
    ctx, free = rows
    ctx[:, 0, ::2], ctx[:, 1:, 1::3], free[:, ::5] = -INF, -INF, -INF
    z, info = pool(ctx, free, pooling, beta)
    assert not z.isnan().any()
    assert z.amax(-1).isfinite().all()
    assert info.entropies.isfinite().all()


def test_a_mean_of_contexts_that_share_no_token_after_the_filter_is_taken_before_it() -> None:
    ctx = torch.tensor([[[9.0, 0, 1, 0], [0, 9.0, 1, 0]]])
    z, _ = pool(ctx, torch.zeros(1, 4), "mean", 0.0, top_p=0.9)
    torch.testing.assert_close(z, ctx.log_softmax(-1).mean(1))


def test_a_function_may_pool(rows) -> None:
    ctx, free = rows

    def weighted(each: Tensor, entropies: Tensor) -> Tensor:
        return (each * entropies.neg().softmax(-1)[..., None]).sum(1)

    z, info = pool(ctx, free, weighted, 0.0, top_p=1)
    each = ctx.log_softmax(-1)
    torch.testing.assert_close(z, weighted(each, -(each.exp() * each).sum(-1)), rtol=0, atol=1e-12)
    assert info.chosen.tolist() == [-1] * 3


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.95, 0.999999, 1.0])
def test_the_filter_is_that_of_transformers(top_p: float) -> None:
    warper = pytest.importorskip("transformers").TopPLogitsWarper(top_p)
    g = torch.Generator().manual_seed(1)
    flat = torch.randn(4, 5000, generator=g, dtype=torch.float64) * 0.1  # thousands of tokens are kept
    steep = torch.randn(4, 5000, generator=g, dtype=torch.float64) * 5
    for logits in (flat, steep):
        logp = logits.log_softmax(-1)
        assert torch.equal(nucleus(logp, top_p), warper(None, logp) if top_p < 1 else logp)


def test_tokens_as_likely_as_the_last_one_kept_are_kept() -> None:
    assert nucleus(torch.zeros(1, 8).log_softmax(-1), 0.3).isfinite().all()


def test_half_precision_is_pooled_in_single() -> None:
    g = torch.Generator().manual_seed(0)
    ctx, free = torch.randn(1, 3, 50, generator=g).bfloat16(), torch.randn(1, 50, generator=g).bfloat16()
    z, _ = pool(ctx, free)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, pool(ctx.float(), free.float())[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pooling": "median"}, "median"),
        ({"beta": -1.1}, "-1.1"),
        ({"beta": float("nan")}, "nan"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "1.5"),
        ({"pooling": lambda each, h: each}, r"\(3, 40\)"),
        ({"logp_ctx": torch.zeros(3, 0, 40)}, "at least one context"),
        ({"logp_ctx": torch.zeros(3, 40)}, r"\(3, 40\)"),
        ({"logp_free": torch.zeros(3, 41)}, r"\(3, 41\)"),
        ({"logp_free": torch.full((3, 40), -INF)}, "without context"),
    ],
)
def test_what_cannot_be_pooled_is_refused_in_one_sentence(rows, change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        pool(**{"logp_ctx": rows[0], "logp_free": rows[1], **change})


@pytest.mark.parametrize("bad", [float("nan"), INF])
def test_logits_that_are_not_finite_are_refused_naming_their_context(rows, bad: float) -> None:
    ctx, free = rows
    ctx[1, 2, 5] = bad
    with pytest.raises(ValueError, match="of context 2"):
        pool(ctx, free)


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="int64"):
        pool(torch.zeros(1, 1, 4, dtype=torch.int64), torch.zeros(1, 4))
