"""The Triton kernels equal the reference, forward and backward: on a GPU, or in Triton's interpreter on tiny shapes.

The interpreter must be chosen before Triton is imported, so `test_gpu_interpreter.py` runs this file in a process of
its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from carrel.ops import linear_scan, matrix_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REAL, COMPLEX = torch.float64, torch.complex128
SUFFIX = "needs a CUDA device, or Triton's interpreter (TRITON_INTERPRET=1 in a process of its own)"

pytestmark = pytest.mark.skipif(DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1", reason=SUFFIX)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 8 tokens by 8 channels, so that tiny shapes cross their borders and are cut into segments."""
    if DEVICE == "cpu":
        from carrel.ops._linear_scan import gpu

        monkeypatch.setattr(gpu, "_TILE", 8)
        monkeypatch.setattr(gpu, "_ROW_BYTES", 64)


def random(*shape, dtype=REAL):
    x = torch.randn(shape, dtype=dtype, device=DEVICE)
    return x / (1 + x.abs())


def agree(scan, inputs, reverse, atol=1e-10):
    """h, the last state and all gradients, by both backends."""
    inputs = [x.detach().requires_grad_() for x in inputs]
    got, wanted = (scan(*inputs, reverse=reverse, backend=name) for name in ("gpu", "reference"))
    arrived = [torch.randn_like(x) for x in wanted]
    pairs = [
        *zip(got, wanted, strict=True),
        *zip(
            torch.autograd.grad(got, inputs, arrived),
            torch.autograd.grad(wanted, inputs, arrived, allow_unused=True, materialize_grads=True),
            strict=True,
        ),
    ]
    for x, y in pairs:
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("shape", "factors"),
    [
        ((2, 5, 3), (2, 5, 3)),
        ((2, 1, 3), (2, 1, 3)),
        ((2, 8, 9), (9,)),
        ((2, 9, 2), (1, 9, 2)),
        ((2, 9, 2), (2, 1, 2)),
        ((1, 3, 2, 64), (1, 3, 2, 1)),
        ((1, 3, 2, 64), (2, 1)),
        ((2, 6), (2, 6)),
    ],
)
def test_the_linear_scan_equals_its_reference(dtype, reverse, shape, factors):
    torch.manual_seed(0)
    state = (shape[0], *shape[2:])
    agree(linear_scan, [random(*s, dtype=dtype) for s in (factors, shape, state)], reverse)


@pytest.mark.parametrize(("dtype", "reverse"), [(REAL, False), (COMPLEX, True)])
@pytest.mark.parametrize("factors", [(1, 70, 2), (2,)])
def test_time_is_cut_into_segments_where_rows_are_few(dtype, reverse, factors):
    torch.manual_seed(0)
    agree(linear_scan, [random(*s, dtype=dtype) for s in (factors, (1, 70, 2), (1, 2))], reverse)


@pytest.mark.skipif(DEVICE == "cpu", reason="too long for the interpreter")
@pytest.mark.parametrize("shape", [(1, 5000, 7), (8, 1000, 300), (2, 70000, 64)])
def test_long_scans_equal_their_reference(shape):
    torch.manual_seed(0)
    inputs = [random(*s) for s in (shape, shape, (shape[0], *shape[2:]))]
    for x, y in zip(
        linear_scan(*inputs, backend="gpu"), linear_scan(*(x.cpu() for x in inputs), backend="cpu"), strict=True
    ):
        torch.testing.assert_close(x.cpu(), y, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_carry_float32(dtype):
    torch.manual_seed(0)
    a, b, h0 = (random(*s, dtype=torch.float32) for s in ((2, 20, 3), (2, 20, 3), (2, 3)))
    a, b = a.to(dtype), b.to(dtype)
    h, last = linear_scan(a, b, h0, backend="gpu")
    wide, wide_last = linear_scan(a.float(), b.float(), h0, backend="gpu")
    assert (h.dtype, last.dtype) == (dtype, torch.float32)
    if DEVICE == "cuda":
        assert torch.equal(h, wide.to(dtype))
    else:  # the interpreter truncates to bfloat16 where the device rounds
        torch.testing.assert_close(h.float(), wide, atol=0, rtol=torch.finfo(dtype).eps)
    torch.testing.assert_close(last, wide_last, atol=0, rtol=0)


def test_no_tokens_and_real_factors_of_complex_states():
    torch.manual_seed(0)
    agree(linear_scan, [random(2, 0, 3), random(2, 0, 3), random(2, 3)], False)
    agree(linear_scan, [random(2, 5, 3), random(2, 5, 3, dtype=COMPLEX), random(2, 3, dtype=COMPLEX)], False)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("factors", "shape"),
    [
        ((2, 4, 3, 3), (2, 4, 3)),
        ((3, 3), (2, 4, 3)),
        ((2, 1, 2, 2), (2, 4, 2, 3)),
        ((1, 4, 5, 5), (2, 4, 5)),
        ((2, 0, 2, 2), (2, 0, 2)),
    ],
)
def test_the_matrix_scan_equals_its_reference(dtype, reverse, factors, shape):
    torch.manual_seed(0)
    inputs = [random(*s, dtype=dtype) / 2 for s in (factors, shape, (shape[0], *shape[2:]))]
    agree(matrix_scan, inputs, reverse)


def test_second_derivatives_and_tangents():
    torch.manual_seed(0)
    inputs = [random(1, 2, 1).requires_grad_(), random(1, 2, 1).requires_grad_(), random(1, 1).requires_grad_()]

    def f(*xs):
        return linear_scan(*xs, backend="gpu")

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, inputs)


def test_forward_and_backward_compile():
    torch.manual_seed(0)
    one, two = ([random(*s).requires_grad_() for s in ((2, 5, 3), (2, 5, 3))] for _ in range(2))
    with torch.no_grad():
        for x, y in zip(two, one, strict=True):
            x.copy_(y)

    def f(a, b):
        return linear_scan(a, b, backend="gpu")[0].pow(2).sum()

    torch.compile(f, fullgraph=True, backend="aot_eager")(*one).backward()
    f(*two).backward()
    for x, y in zip(one, two, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=0)


def test_matrices_beyond_the_registers_are_refused_by_name():
    with pytest.raises(ValueError, match='backend="gpu" holds up to 64 states'):
        matrix_scan(random(65, 65), random(1, 2, 65), backend="gpu")
