"""The Triton kernels of relu2_attention equal the reference: on a GPU, or in Triton's interpreter on tiny shapes.

The interpreter must be chosen before Triton is imported, so the last test runs this file in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from carrel.ops import relu2_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"

here = pytest.mark.skipif(
    not RUNS, reason="needs a CUDA device, or Triton's interpreter (TRITON_INTERPRET=1 in a process of its own)"
)


def agree(batch, heads, length, columns, size, value, causal, dtype, atol):
    """o and all gradients, by both backends."""
    torch.manual_seed(0)
    shapes = ((length, size), (columns, size), (columns, value))
    inputs = [torch.randn(batch, heads, *shape).to(DEVICE, dtype).requires_grad_() for shape in shapes]
    got, wanted = (relu2_attention(*inputs, causal=causal, backend=name) for name in ("gpu", "reference"))
    g = torch.randn_like(wanted)
    pairs = [(got, wanted), *zip(*(torch.autograd.grad(o, inputs, g) for o in (got, wanted)), strict=True)]
    for x, y in pairs:
        assert x.dtype == y.dtype
        assert bool(x.isfinite().all())
        torch.testing.assert_close(x, y, atol=atol * max(1, float(y.detach().abs().max())), rtol=0)


@here
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", [(1, 2, 18, 18, 3, 17), (1, 1, 1, 20, 3, 2), (1, 1, 5, 34, 17, 3)])
def test_the_kernels_equal_the_reference(shape, causal):
    agree(*shape, causal, torch.float64, 1e-12)


@here
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_narrower_types_agree_to_their_precision(dtype, atol):
    agree(1, 1, 70, 70, 3, 130, True, dtype, atol)


@here
def test_a_later_query_of_another_block_sees_all_that_came_before():
    agree(1, 1, 66, 140, 4, 3, True, torch.float32, 2e-6)


@pytest.mark.skipif(RUNS, reason="the tests above run here as they are")
@pytest.mark.slow
def test_the_kernels_equal_the_reference_in_tritons_interpreter(passes_in_tritons_interpreter):
    passes_in_tritons_interpreter(__file__)
