"""`fft_conv`: y_l = sum_{i <= l} k_i u_{l-i} + carry_l."""

import pytest
import torch

from carrel.layers import fft_conv
from carrel.layers.fft_conv import transform_size


@pytest.mark.parametrize("length", [0, 1, 2, 7, 100])
@pytest.mark.parametrize("taps", [0, 1, 5, 100, 130])
def test_output_is_the_causal_sum(length, taps):
    torch.manual_seed(0)
    u, k = torch.randn(2, 3, length, dtype=torch.float64), torch.randn(3, taps, dtype=torch.float64)
    wanted = torch.zeros_like(u)
    for t in range(length):
        for i in range(min(t + 1, taps)):
            wanted[..., t] += k[:, i] * u[..., t - i]
    torch.testing.assert_close(fft_conv(u, k), wanted, atol=1e-12, rtol=0)
    carry = torch.randn_like(u)
    torch.testing.assert_close(fft_conv(u, k, carry), wanted + carry, atol=1e-12, rtol=0)


def test_half_precision_is_transformed_in_float32():
    u, k = torch.randn(3, 50).bfloat16(), torch.randn(3, 50)
    y = fft_conv(u, k)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, fft_conv(u.float(), k), atol=0, rtol=0)


def test_gradients():
    u, k = torch.randn(2, 2, 5, dtype=torch.float64), torch.randn(2, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(fft_conv, (u.requires_grad_(), k.requires_grad_()))


def test_transforms_have_even_sizes_of_small_primes():
    for least in (1, 2, 3, 7, 11, 127, 1023, 16385):
        size = transform_size(least)
        assert size >= least
        assert size % 2 == 0
        for prime in (2, 3, 5):
            while size % prime == 0:
                size //= prime
        assert size == 1
    assert transform_size(16384) == 16384


@pytest.mark.parametrize(
    ("u", "k", "carry", "sentence"),
    [
        (
            torch.zeros(3, 5) + 0j,
            torch.zeros(3, 5),
            None,
            "must be real and floating point, got torch.complex64",
        ),
        (torch.zeros(3, 5), torch.zeros(3, 5, dtype=torch.int64), None, "got torch.float32 and torch.int64"),
        (torch.zeros(3, 5), torch.zeros(2, 5), None, r"k of shape \(2, 5\) does not fit u of shape \(3, 5\)"),
        (torch.zeros(3, 5), torch.zeros(3, 5), torch.zeros(3, 4), r"state_carry must be \(3, 5\) like the result"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(u, k, carry, sentence):
    with pytest.raises(ValueError, match=sentence):
        fft_conv(u, k, carry)
