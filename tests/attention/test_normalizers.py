"""Scores become weights by name; the losses' gradients are weights minus the truth."""

import math

import pytest
import torch

from carrel.attention import (
    NORMALIZERS,
    entmax_loss,
    normalize,
    perturb_max,
    sparse_softmax_loss,
    sparsemax_loss,
    taylor_softmax,
)
from carrel.ops import entmax, entmax15, sparsemax

REAL = torch.float64
OPTIONS = {
    "sparse-softmax": {"k": 3},
    "entmax": {"alpha": 1.25},
    "taylor-softmax": {"order": 4},
    "perturb-max": {"points": 64},
}
ALPHAS = [1.0, 1.25, 1.5, 2.0, 3.0]
every_kind = pytest.mark.parametrize("kind", NORMALIZERS)


def scores(*shape, size=1.0):
    torch.manual_seed(0)
    return size * torch.randn(*shape, dtype=REAL)


def named(x, kind, **more):
    return normalize(x, kind, **OPTIONS.get(kind, {}), **more)


def test_every_name_is_the_rule_of_its_definition():
    x = scores(4, 7)
    kept = x >= x.topk(3).values[:, -1:]
    f = 1 + x + x**2 / 2 + x**3 / 6 + x**4 / 24
    wanted = {
        "softmax": torch.softmax(x, -1),
        "sparse-softmax": torch.softmax(x, -1) * kept / (torch.softmax(x, -1) * kept).sum(-1, keepdim=True),
        "sparsemax": sparsemax(x),
        "entmax15": entmax15(x),
        "entmax": entmax(x, 1.25),
        "taylor-softmax": f / f.sum(-1, keepdim=True),
        "relu2": x.clamp(min=0) ** 2 / (x.clamp(min=0) ** 2).sum(-1, keepdim=True),
        "perturb-max": perturb_max(x),
    }
    assert set(wanted) == set(NORMALIZERS)
    for kind, p in wanted.items():
        torch.testing.assert_close(named(x, kind), p, atol=1e-14, rtol=0, msg=kind)


@every_kind
def test_weights_are_shares_along_any_axis_and_their_gradient_is_exact(kind):
    x = scores(3, 5, 4, size=0.7).requires_grad_()
    p = named(x, kind, dim=1)
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(1), torch.ones(3, 4, dtype=REAL), atol=1e-12, rtol=0)
    assert torch.autograd.gradcheck(lambda t: named(t, kind, dim=1), x)


@every_kind
def test_a_masked_entry_is_as_if_it_were_not_there(kind):
    x = scores(3, 8).requires_grad_()
    mask = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1], dtype=torch.bool)
    p = named(x, kind, mask=mask)
    torch.testing.assert_close(p[:, mask], named(x[:, mask], kind), atol=1e-13, rtol=0)
    (dx,) = torch.autograd.grad(p.pow(2).sum(), x)
    assert (p[:, ~mask] == 0).all()
    assert (dx[:, ~mask] == 0).all()
    assert dx[:, mask].any()


@every_kind
def test_a_row_without_a_visible_entry_is_zero_with_zero_gradient(kind):
    x = scores(2, 6).requires_grad_()
    mask = torch.tensor([[True], [False]])
    p = named(x, kind, mask=mask)
    (dx,) = torch.autograd.grad((p * scores(2, 6)).sum(), x)
    assert (p[1] == 0).all()
    assert (dx[1] == 0).all()
    assert torch.isfinite(dx).all()


@pytest.mark.parametrize("kind", [k for k in NORMALIZERS if k not in ("taylor-softmax", "relu2")])
def test_a_shift_of_the_row_does_not_matter(kind):
    x = scores(3, 9)
    torch.testing.assert_close(named(x + 40, kind), named(x, kind), atol=1e-12, rtol=0)


def test_taylor_softmax_tends_to_softmax_and_its_order_two_is_a_product_of_features():
    x = scores(4, 9)
    gaps = [(taylor_softmax(x, m) - torch.softmax(x, -1)).abs().max().item() for m in (2, 4, 8, 16)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6
    line = torch.linspace(-20, 20, 4001, dtype=REAL)
    for order, least in ((2, 0.5), (4, 0.2704), (6, 0.1493)):
        values = sum(line**m / math.factorial(m) for m in range(order + 1))
        assert abs(values.min().item() - least) < 1e-4
        torch.testing.assert_close(taylor_softmax(line, order), values / values.sum(), atol=1e-14, rtol=0)
    q, k = scores(1, 5), scores(7, 5, size=0.5)

    def features(u):
        return torch.cat([torch.ones(len(u), 1, dtype=REAL), u, (u[:, :, None] * u[:, None]).flatten(1) / 2**0.5], 1)

    product = features(q) @ features(k).T
    torch.testing.assert_close(taylor_softmax(q @ k.T), product / product.sum(), atol=1e-14, rtol=0)


def test_relu2_of_half_precision_does_not_overflow():
    x = torch.tensor([600.0, 300.0, -1.0], dtype=torch.float16)
    torch.testing.assert_close(normalize(x, "relu2"), torch.tensor([0.8, 0.2, 0.0], dtype=torch.float16))
    assert (normalize(-x.abs(), "relu2") == 0).all()


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_loss_is_the_definition_and_its_gradient_is_p_minus_the_truth(alpha):
    x, target = scores(6, 5).requires_grad_(), torch.tensor([0, 1, 2, 3, 4, 0])
    p, y = entmax(x.detach(), alpha), torch.nn.functional.one_hot(target, 5).to(REAL)
    if alpha == 1:
        wanted = torch.nn.functional.cross_entropy(x.detach(), target, reduction="none")
    else:
        wanted = ((p - y) * x.detach()).sum(-1) + (1 - p.pow(alpha).sum(-1)) / (alpha * (alpha - 1))
    losses = entmax_loss(x, target, alpha, reduction="none")
    torch.testing.assert_close(losses, wanted, atol=1e-13, rtol=0)
    (dx,) = torch.autograd.grad(losses.sum(), x)
    torch.testing.assert_close(dx, p - y, atol=1e-12, rtol=0)
    torch.testing.assert_close(entmax_loss(x, target, alpha), losses.mean(), atol=1e-15, rtol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_derivatives_of_the_loss_of_both_orders(alpha):
    x, y = scores(3, 4, size=0.4).requires_grad_(), torch.softmax(scores(3, 4), -1)
    assert torch.autograd.gradcheck(lambda t: entmax_loss(t, y, alpha), x)
    assert torch.autograd.gradgradcheck(lambda t: entmax_loss(t, y, alpha), x)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_loss_against_a_distribution_is_zero_where_the_weights_are_that_distribution(alpha):
    x = scores(4, 6)
    y = entmax(x, alpha)
    assert entmax_loss(x, y, alpha).abs() < 1e-13
    assert entmax_loss(x + scores(6), y, alpha) > 1e-3


def test_sparsemax_loss_is_the_papers_formula_and_zero_exactly_from_a_lead_of_one():
    x, target = scores(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    p = sparsemax(x)
    tau = ((x - p) * (p > 0)).sum(-1, keepdim=True) / (p > 0).sum(-1, keepdim=True)
    wanted = ((x**2 - tau**2) * (p > 0)).sum(-1) / 2 + 0.5 - x.gather(-1, target[:, None])[:, 0]
    torch.testing.assert_close(sparsemax_loss(x, target, reduction="none"), wanted, atol=1e-13, rtol=0)
    row = torch.tensor([[0.3, -1.0, 0.1]], dtype=REAL)
    for lead, zero in ((1.0 + 1e-9, True), (1.0 - 1e-3, False)):
        row[0, 1] = 0.3 + lead
        assert (sparsemax_loss(row, torch.tensor([1])).item() == 0) is zero


def test_sparse_softmax_loss_counts_the_right_class_in():
    x, target = scores(30, 12).requires_grad_(), torch.arange(30) % 12
    rows = torch.arange(30)
    kept = x >= x.topk(4).values[:, -1:]
    outside = ~kept[rows, target]
    assert outside.any()
    assert (~outside).any()
    with_it = kept.clone()
    with_it[rows, target] = True
    for include, chosen in ((True, with_it), (False, kept)):
        losses = sparse_softmax_loss(x, target, 4, include_target=include, reduction="none")
        wanted = x.masked_fill(~chosen, -math.inf).logsumexp(-1) - x[rows, target]
        torch.testing.assert_close(losses, wanted, atol=1e-14, rtol=0)
    assert (sparse_softmax_loss(x, target, 4, reduction="none") >= 0).all()
    full = torch.nn.functional.cross_entropy(x, target)
    torch.testing.assert_close(sparse_softmax_loss(x, target, 12), full, atol=1e-14, rtol=0)
    assert torch.autograd.gradcheck(lambda t: sparse_softmax_loss(t, target, 4), x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: normalize(x, "hardmax"), "kind among softmax"),
        (lambda x: normalize(x, "softmax", k=3), r"options of softmax \(none\), not k"),
        (lambda x: normalize(x, mask=torch.ones(3)), "mask of bool"),
        (lambda x: normalize(x, mask=torch.ones(9, dtype=torch.bool)), r"broadcasts to \(2, 3\), not \(9,\)"),
        (lambda x: normalize(x.to(torch.complex64)), "floating point, not torch.complex64"),
        (lambda x: normalize(x[:, :0]), "at least one entry along axis -1"),
        (lambda x: normalize(x, "sparse-softmax", k=4), "k from 1 to 3"),
        (lambda x: sparse_softmax_loss(x, torch.tensor([0, 1]), 0), "k from 1 to 3"),
        (lambda x: taylor_softmax(x, 3), "even order of at least 2, not 3"),
        (lambda x: taylor_softmax(x, dim=2), "an axis of x of shape"),
        (lambda x: entmax_loss(x, torch.tensor([0, 1]), 0.5), "alpha to be at least 1, not 0.5"),
        (lambda x: entmax_loss(x, torch.tensor([0, 3])), r"classes from 0 to 2, not 0 .. 3"),
        (lambda x: entmax_loss(x, torch.tensor([0])), r"target of shape \(2,\)"),
        (lambda x: sparsemax_loss(x, torch.tensor([0, 1]), reduction="total"), "reduction among mean"),
        (lambda x: sparse_softmax_loss(x, x, 2), "not a distribution"),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.ones(2, 3))
