"""Squared-ReLU attention: o_i = 1/n_i sum_{j <= i + m} relu(c q_i.k_j)^2 v_j."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.func import vmap

from carrel.ops import relu2_attention
from carrel.ops._relu2_attention import cpu

REAL = torch.float64


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(length, columns=None, batch=2, heads=3, size=5, value=4, dtype=REAL):
    torch.manual_seed(0)
    columns = length if columns is None else columns
    shapes = ((length, size), (columns, size), (columns, value))
    return [torch.randn(batch, heads, *shape, dtype=dtype).requires_grad_() for shape in shapes]


def defined(q, k, v, causal=True, scale=None, count=None):
    """The right-hand side, query by query."""
    length, columns = q.shape[2], k.shape[2]
    rows = []
    for i in range(length):
        seen = columns - length + i + 1 if causal else columns
        n = seen if count is None else count
        score = (q[:, :, i, None] * k[:, :, :seen]).sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weight = torch.where(score > 0, score * score, 0.0) / n
        rows.append((weight.unsqueeze(-1) * v[:, :, :seen]).sum(2))
    return torch.stack(rows, 2)


def same_with_gradients(got, wanted, inputs, atol=1e-12):
    torch.testing.assert_close(got, wanted, atol=atol, rtol=0)
    g = torch.randn_like(wanted)
    for x, y in zip(*(torch.autograd.grad(o, inputs, g) for o in (got, wanted)), strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("length", "columns"), [(1, 1), (2, 2), (7, 7), (1, 9), (70, 70), (65, 130)])
def test_o_i_is_the_sum_of_values_weighed_by_squares_of_positive_scores(backend, causal, length, columns):
    inputs = problem(length, columns)
    same_with_gradients(relu2_attention(*inputs, causal=causal, backend=backend), defined(*inputs, causal), inputs)


@pytest.mark.parametrize("options", [{"scale": 0.3}, {"count": 7}, {"scale": 1.0, "count": 25.0}])
def test_scale_and_count_are_what_they_are_set_to(options):
    inputs = problem(20, 33)
    same_with_gradients(relu2_attention(*inputs, **options), defined(*inputs, **options), inputs)


def test_counts_may_differ_by_query_and_by_row_of_the_batch():
    q, k, v = problem(6)
    own = torch.arange(3.0, 15.0, dtype=REAL).view(2, 6)
    bare = relu2_attention(q, k, v, count=1)
    torch.testing.assert_close(relu2_attention(q, k, v, count=own), bare / own[:, None, :, None], atol=1e-12, rtol=0)
    torch.testing.assert_close(relu2_attention(q, k, v, count=own[0]), bare / own[0, :, None], atol=1e-12, rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    ("rows", "length", "columns"), [(1, 1700, 1700), (1, 300, 1100), (5, 100, 256), (40, 257, 257)]
)
def test_blocks_of_the_cpu_kernel_meet_without_seam(causal, rows, length, columns):
    inputs = problem(length, columns, batch=1, heads=rows)
    got, wanted = (relu2_attention(*inputs, causal=causal, backend=name) for name in ("cpu", "reference"))
    same_with_gradients(got, wanted, inputs)


def test_no_block_above_the_diagonal_is_looked_at():
    blocks = list(cpu._blocks(1, 4096, 4096, True))
    pairs = sum((b.i.stop - b.i.start) * (b.j.stop - b.j.start) for b in blocks)
    assert pairs < 1.15 * 4096 * 4097 / 2


def test_no_more_than_a_block_of_pairs_is_held(monkeypatch):
    asked = []
    made = cpu._Scratch.__call__
    monkeypatch.setattr(cpu._Scratch, "__call__", lambda self, *shape: asked.append(shape) or made(self, *shape))
    inputs = problem(2500, batch=1, heads=2)
    torch.autograd.backward(relu2_attention(*inputs, backend="cpu").sum())
    assert max(math.prod(shape) for shape in asked) <= 384 * 768


def test_results_of_blocks_of_keys_add_up():
    q, k, v = problem(5, 40)
    split = sum(
        relu2_attention(q, k[:, :, at], v[:, :, at], causal=False, count=40) for at in (slice(13), slice(13, 40))
    )
    torch.testing.assert_close(split, relu2_attention(q, k, v, causal=False), atol=1e-12, rtol=0)


def test_keys_of_zeros_weigh_nothing_and_get_no_gradient():
    q, k, v = problem(4, 6)
    k = k.detach().index_fill(2, torch.tensor([1, 2]), 0.0).requires_grad_()
    dk, dv = torch.autograd.grad(relu2_attention(q, k, v).sum(), (k, v))
    assert not dk[:, :, 1:3].any()
    assert not dv[:, :, 1:3].any()


def test_the_gradient_has_no_step_where_scores_change_sign():
    k, v = torch.ones(1, 1, 1, 1, dtype=REAL), torch.ones(1, 1, 1, 1, dtype=REAL)
    slopes = []
    for at in (-1e-9, 0.0, 1e-9):
        q = torch.full((1, 1, 1, 1), at, dtype=REAL, requires_grad=True)
        slopes.append(torch.autograd.grad(relu2_attention(q, k, v).sum(), q)[0].item())
    assert slopes == [0.0, 0.0, pytest.approx(2e-9)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("causal", [True, False])
def test_first_and_second_derivatives_and_forward_mode(backend, causal):
    inputs = problem(3, 4, batch=1, heads=2, size=2, value=2)

    def run(*x):
        return relu2_attention(*x, causal=causal, backend=backend)

    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, inputs)


def test_a_gradient_that_can_be_differentiated_again_is_the_same_gradient():
    inputs = problem(9, 12)
    o = relu2_attention(*inputs)
    g = torch.randn_like(o)
    plain, again = (torch.autograd.grad(o, inputs, g, retain_graph=True, create_graph=more) for more in (False, True))
    for x, y in zip(again, plain, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


def test_vmap_is_a_batch():
    inputs = [torch.stack([x, 2 * x]).detach() for x in problem(6)]
    torch.testing.assert_close(
        vmap(relu2_attention)(*inputs),
        torch.stack([relu2_attention(*(x[i] for x in inputs)) for i in range(2)]),
        atol=1e-12,
        rtol=0,
    )


def test_it_compiles_as_one_graph_with_its_gradient():
    torch.compiler.reset()
    inputs = problem(9, 12)
    compiled = torch.compile(relu2_attention, backend="aot_eager", fullgraph=True)
    same_with_gradients(compiled(*inputs), relu2_attention(*inputs), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype):
    inputs = [x.detach().to(dtype).requires_grad_() for x in problem(600, batch=1, heads=1)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    o, wanted = relu2_attention(*inputs), relu2_attention(*wide)
    g = torch.ones_like(wanted)
    found = (o, *torch.autograd.grad(o, inputs, g.to(dtype)))
    for x, y in zip(found, (wanted, *torch.autograd.grad(wanted, wide, g)), strict=True):
        assert x.dtype == dtype
        largest = float(y.detach().abs().max())
        torch.testing.assert_close(x.double(), y, atol=torch.finfo(dtype).eps * largest, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize(("length", "columns"), [(0, 0), (0, 5)])
def test_no_queries_give_nothing_and_keys_get_no_gradient(backend, length, columns):
    inputs = problem(length, columns)
    o = relu2_attention(*inputs, backend=backend)
    assert o.shape == (2, 3, length, 4)
    assert not any(x.any() for x in torch.autograd.grad(o.sum(), inputs))


def test_no_keys_give_zeros():
    assert not relu2_attention(*problem(3, 0), causal=False).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": torch.zeros(2, 3, 4)}, "q must be (batch, heads, length, N) with N >= 1, got (2, 3, 4)"),
        ({"q": [1.0]}, "q must be a tensor, got list"),
        ({"k": torch.zeros(2, 3, 4, 6)}, "k must be (2, 3, 'columns', 5), got (2, 3, 4, 6)"),
        ({"v": torch.zeros(2, 3, 5, 4)}, "v must be (2, 3, 4, 'P') with P >= 1, got (2, 3, 5, 4)"),
        ({"v": torch.zeros(2, 3, 4, 4, dtype=torch.int64)}, "v must be real floating point, got torch.int64"),
        ({"q": torch.zeros(2, 3, 5, 5)}, "there are 5 queries and 4 columns"),
        ({"count": 0}, "count must be a finite number above 0, got 0"),
        ({"count": torch.ones(3)}, "count must be (4,) or (2, 4) on the device of q, got (3,)"),
        ({"backend": "gpu"}, 'backend="gpu" needs'),
        ({"backend": "numba"}, "backend must be one of"),
    ],
)
def test_bad_input_is_said_in_one_sentence(change, words):
    given = dict(zip("qkv", problem(4, dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=re.escape(words)):
        relu2_attention(**given)
