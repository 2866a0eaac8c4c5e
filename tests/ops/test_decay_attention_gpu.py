"""The Triton kernel of decay_attention equals the reference: on a GPU, or in Triton's interpreter on tiny shapes.

The interpreter must be chosen before Triton is imported, so the last test runs this file in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from carrel.ops import decay_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
REAL = torch.float64

here = pytest.mark.skipif(
    not RUNS, reason="needs a CUDA device, or Triton's interpreter (TRITON_INTERPRET=1 in a process of its own)"
)


def problem(batch, heads, length, size, value, per_channel, dtype=REAL):
    torch.manual_seed(0)
    row = (batch, heads, length)
    shapes = ((*row, size), (*row, size), (*row, value), (*row, size) if per_channel else row)
    tensors = [torch.randn(shape, dtype=REAL) for shape in (*shapes, (batch, heads, size, value))]
    tensors[3] = -torch.nn.functional.softplus(tensors[3] - 1)
    return [x.to(DEVICE, dtype) for x in tensors]


def agree(given, atol=1e-10, **options):
    """o, the last memory and all gradients, by both backends."""
    inputs = [x.requires_grad_() for x in given]
    got, wanted = (decay_attention(*inputs, **options, backend=name) for name in ("gpu", "reference"))
    arrived = [torch.randn_like(x) for x in wanted]
    pairs = [*zip(got, wanted, strict=True)]
    gradients = (torch.autograd.grad(outputs, inputs, arrived) for outputs in (got, wanted))
    pairs += zip(*gradients, strict=True)
    for x, y in pairs:
        assert x.dtype == y.dtype
        assert bool(x.isfinite().all())
        torch.testing.assert_close(x, y, atol=atol * max(1, float(y.detach().abs().max())), rtol=0)


@here
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 35, 3, 18), (1, 2, 1, 3, 2), (1, 1, 17, 1, 2)])
def test_the_kernel_equals_the_reference(shape, per_channel, exclusive):
    agree(problem(*shape, per_channel), exclusive=exclusive)


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per_channel", [False, True])
def test_narrower_types_agree_to_their_precision(dtype, per_channel):
    given = problem(1, 1, 70, 4, 3, per_channel)
    given = [x.to(torch.float32 if i > 2 else dtype) for i, x in enumerate(given)]
    agree(given, atol=2e-6 if dtype == torch.float32 else 0.02)


@here
@pytest.mark.parametrize("per_channel", [False, True])
def test_tokens_that_forget_all_cost_their_neighbours_no_digits(per_channel):
    given = problem(1, 1, 40, 3, 2, per_channel, torch.float32)
    given[3][:, :, ::5] = -1e4
    agree(given, atol=2e-6)


@here
def test_without_gradient_pieces_are_the_whole():
    given = problem(1, 1, 40, 3, 2, True)
    with torch.no_grad():
        whole = decay_attention(*given, backend="gpu")
        outputs, S = [], given[4]
        for a, b in ((0, 0), (0, 1), (1, 18), (18, 40)):
            o, S = decay_attention(*(x[:, :, a:b] for x in given[:4]), S, backend="gpu")
            outputs.append(o)
    torch.testing.assert_close((torch.cat(outputs, 2), S), whole, atol=1e-10, rtol=0)


@pytest.mark.skipif(RUNS, reason="the tests above run here as they are")
@pytest.mark.slow
def test_the_kernel_equals_the_reference_in_tritons_interpreter(passes_in_tritons_interpreter):
    passes_in_tritons_interpreter(__file__)
