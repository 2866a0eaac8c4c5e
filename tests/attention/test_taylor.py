"""phi(u) . phi(w) = 1 + u . w + (u . w)^2 / 2."""

import pytest
import torch

from carrel.attention import taylor_features, taylor_softmax


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dim", [1, 2, 16])
def test_a_product_of_features_is_the_polynomial(dim):
    u, w = noise(5, dim), noise(7, dim, seed=1)
    score = u @ w.T
    product = taylor_features(u) @ taylor_features(w).T
    torch.testing.assert_close(product, 1 + score + score**2 / 2, atol=1e-12, rtol=1e-12)
    assert taylor_features(u).shape == (5, 1 + dim + dim * (dim + 1) // 2)
    torch.testing.assert_close(product / product.sum(-1, keepdim=True), taylor_softmax(score), atol=1e-13, rtol=0)


def test_products_of_features_are_at_least_a_half():
    u = noise(200, 6)
    products = taylor_features(4 * u) @ taylor_features(-u).T
    assert products.min() >= 0.5 - 1e-12
    assert products.min() < 0.51


def test_gradients():
    assert torch.autograd.gradcheck(taylor_features, noise(2, 3, 4).requires_grad_())
    assert torch.autograd.gradgradcheck(taylor_features, noise(2, 3).requires_grad_())


def test_no_channels_are_refused():
    with pytest.raises(ValueError, match=r"at least one channel on the last axis, not shape \(3, 0\)"):
        taylor_features(torch.ones(3, 0))
