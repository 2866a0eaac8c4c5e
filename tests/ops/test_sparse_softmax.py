"""p = softmax over the k largest of a row, 0 elsewhere; of equal scores the first are kept."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.ops import sparse_softmax

REAL = torch.float64
BACKENDS = ["reference", "cpu"]
# a row shorter than the lanes, one with a rest behind them, many; k below and above half the lanes
SIZES = [(1, 1), (7, 3), (255, 10), (256, 64), (300, 65), (1000, 10), (1000, 1), (1000, 1000)]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def scores(*shape, size=2.0, seed=0):
    return size * torch.randn(*shape, dtype=REAL, generator=torch.Generator().manual_seed(seed))


def by_definition(row, k):
    """Python's sort is stable: of equal scores the first stays first."""
    kept = sorted(range(len(row)), key=lambda i: -row[i])[:k]
    kept = [i for i in kept if row[i] > -math.inf]
    p = [0.0] * len(row)
    total = math.fsum(math.exp(row[i] - row[kept[0]]) for i in kept) if kept else 1.0
    for i in kept:
        p[i] = math.exp(row[i] - row[kept[0]]) / total
    return p


@every_backend
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_weights_are_the_definition_written_out(backend, n, k):
    x = scores(6, n)
    x[1] = x[1].round()  # many equal scores
    x[2] = 0.5
    x[3] = x[3].sort().values
    x[4] = x[4].sort(descending=True).values
    x[5, n // 3 :] = -math.inf
    wanted = torch.tensor([by_definition(row, k) for row in x.tolist()], dtype=REAL)
    torch.testing.assert_close(sparse_softmax(x, k, backend=backend), wanted, atol=1e-15, rtol=1e-13)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from([-math.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, 1e4]), min_size=1, max_size=300),
    st.integers(1, 300),
)
def test_any_row_of_few_values_is_the_definition(row, k):
    k = min(k, len(row))
    wanted = torch.tensor(by_definition(row, k), dtype=REAL)
    for backend in BACKENDS:
        found = sparse_softmax(torch.tensor(row, dtype=REAL), k, backend=backend)
        torch.testing.assert_close(found, wanted, atol=1e-15, rtol=1e-13)


@every_backend
def test_ten_of_a_thousand_are_the_softmax_over_the_mass_they_keep(backend):
    x = scores(20, 1000)
    p, softmax = sparse_softmax(x, 10, backend=backend), torch.softmax(x, -1)
    assert ((p > 0).sum(-1) == 10).all()
    torch.testing.assert_close(p, softmax * (p > 0) / softmax.topk(10).values.sum(-1, keepdim=True), atol=1e-14, rtol=0)
    torch.testing.assert_close(sparse_softmax(x, 1000, backend=backend), softmax, atol=1e-15, rtol=0)
    torch.testing.assert_close(sparse_softmax(x + 40, 10, backend=backend), p, atol=1e-12, rtol=0)


@every_backend
def test_gradients_of_both_orders_and_forward_mode(backend):
    x = scores(3, 9).requires_grad_()

    def f(t):
        return sparse_softmax(t, 4, backend=backend)

    assert torch.autograd.gradcheck(f, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, x)
    (dx,) = torch.autograd.grad((f(x) * scores(3, 9, seed=1)).sum(), x)
    assert ((dx != 0) == (f(x) > 0)).all()


@every_backend
def test_a_row_without_a_visible_entry_is_zero_with_zero_gradient(backend):
    x = scores(2, 300)
    x[1] = -math.inf
    x.requires_grad_()
    p = sparse_softmax(x, 3, backend=backend)
    (dx,) = torch.autograd.grad((p * scores(2, 300, seed=1)).sum(), x)
    assert (p[1] == 0).all()
    assert (dx[1] == 0).all()
    assert dx[0].any()


@every_backend
@pytest.mark.parametrize("at", [0, 150, 299])
def test_what_is_not_a_number_is_not_passed_over(backend, at):
    x = scores(2, 300)
    x[0, at] = math.nan
    p = sparse_softmax(x, 5, backend=backend)
    assert p[0].isnan().all()
    assert not p[1].isnan().any()


@every_backend
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)])
def test_narrow_types_are_rounded_once(backend, dtype, bound):
    x = scores(5, 400).to(dtype)
    p = sparse_softmax(x, 7, backend=backend)
    assert p.dtype == dtype
    torch.testing.assert_close(p.to(REAL), sparse_softmax(x.to(REAL), 7, backend="reference"), atol=bound, rtol=0)


def test_any_axis_and_any_memory():
    x = scores(4, 30, 5)
    wanted = sparse_softmax(x.movedim(1, -1).contiguous(), 6).movedim(-1, 1)
    torch.testing.assert_close(sparse_softmax(x, 6, dim=1), wanted, atol=0, rtol=0)
    torch.testing.assert_close(sparse_softmax(x[::2, :, 1], 6), sparse_softmax(x[::2, :, 1].clone(), 6), atol=0, rtol=0)
    assert sparse_softmax(x[:0], 2).shape == (0, 30, 5)


def test_compiled_whole_and_under_vmap():
    torch.compiler.reset()
    x = scores(4, 40).requires_grad_()

    def run(t):
        return torch.autograd.grad(sparse_softmax(t, 5).square().sum(), t)[0]

    compiled = torch.compile(lambda t: sparse_softmax(t, 5).square().sum(), backend="aot_eager", fullgraph=True)
    (found,) = torch.autograd.grad(compiled(x), x)
    torch.testing.assert_close(found, run(x), atol=1e-14, rtol=0)
    many = torch.func.vmap(lambda row: sparse_softmax(row, 5))(x.detach())
    torch.testing.assert_close(many, sparse_softmax(x.detach(), 5), atol=0, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: sparse_softmax(x, 4), "k from 1 to 3, the entries of a row, not 4"),
        (lambda x: sparse_softmax(x, 0), "k from 1 to 3"),
        (lambda x: sparse_softmax(x, 1.5), "k from 1 to 3"),
        (lambda x: sparse_softmax(x.long(), 1), "floating point, not torch.int64"),
        (lambda x: sparse_softmax(x, 1, dim=2), "an axis of x of shape"),
        (lambda x: sparse_softmax(x[:, :0], 1), "at least one entry along axis -1"),
        (lambda x: sparse_softmax(x, 1, backend="gpu"), "no kernel for the GPU"),
        (lambda x: sparse_softmax(x, 1, backend="fast"), "backend must be one of"),
    ],
)
def test_bad_input_is_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 3))
