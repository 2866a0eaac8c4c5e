"""Both scans under `torch.compile`, dispatch modes and `torch.library.opcheck`."""

from __future__ import annotations

import pytest
import torch
from torch import func

from carrel.ops import linear_scan, matrix_scan

REAL, COMPLEX = torch.float64, torch.complex128
SHAPES = {
    "per token": (linear_scan, (2, 5, 3), (2, 5, 3), (2, 3)),
    "per channel": (linear_scan, (3,), (2, 5, 3), (2, 3)),
    "one token": (linear_scan, (2, 1, 3), (2, 1, 3), (2, 3)),
    "matrix": (matrix_scan, (2, 5, 3, 3), (2, 5, 3), (2, 3)),
}


def problem(case, dtype=REAL, grad=True):
    scan, *shapes = SHAPES[case]
    torch.manual_seed(0)
    return scan, [(0.5 * torch.randn(shape, dtype=dtype)).requires_grad_(grad) for shape in shapes]


def loss_of(scan):
    def f(a, b, h0):
        h, last = scan(a * 0.9, b, h0)
        return (h.abs() ** 2).sum() + last.abs().sum()

    return f


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_forward_and_backward_compile_into_one_graph(case, dtype):
    scan, inputs = problem(case, dtype)
    _, again = problem(case, dtype)
    f = loss_of(scan)
    torch.compile(f, fullgraph=True, backend="aot_eager")(*inputs).backward()
    f(*again).backward()
    for x, y in zip(inputs, again, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-12, rtol=0)


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward():
    scan, inputs = problem("per token", torch.float32)
    _, again = problem("per token", torch.float32)
    f = loss_of(scan)
    torch.compile(f, fullgraph=True)(*inputs).backward()
    f(*again).backward()
    for x, y in zip(inputs, again, strict=True):
        torch.testing.assert_close(x.grad, y.grad, atol=1e-5, rtol=0)


def test_one_graph_serves_several_lengths():
    torch.manual_seed(0)
    compiled = torch.compile(lambda a, b: linear_scan(a, b)[0], fullgraph=True, backend="aot_eager", dynamic=True)
    for length in (3, 5, 8):
        a, b = torch.rand(2, length, 3), torch.randn(2, length, 3)
        torch.testing.assert_close(compiled(a, b), linear_scan(a, b)[0], atol=0, rtol=0)


@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_without_gradient_the_compiled_scan_is_the_same(backend):
    scan, inputs = problem("per token", grad=False)
    compiled = torch.compile(lambda *xs: scan(*xs, backend=backend), fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for x, y in zip(compiled(*inputs), scan(*inputs, backend="cpu"), strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("transform", ["jvp", "grad", "vmap", "jacfwd"])
def test_compiled_transforms_are_right(transform):
    """The tracer keeps no tangent of a custom op, and says nothing: there "auto" takes the reference."""
    _, (a, b, h0) = problem("per token", grad=False)

    def f(a):
        return linear_scan(a, b, h0)[0]

    run = {
        "jvp": lambda a: func.jvp(f, (a,), (b,)),
        "grad": lambda a: func.grad(lambda a: f(a).pow(2).sum())(a),
        "vmap": lambda a: func.vmap(f)(torch.stack([a, 2 * a])),
        "jacfwd": lambda a: func.jacfwd(f)(a),
    }[transform]
    wanted, got = run(a), torch.compile(run, fullgraph=True, backend="aot_eager")(a)
    for x, y in zip(*((z if isinstance(z, tuple) else (z,)) for z in (got, wanted)), strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [REAL, COMPLEX, torch.bfloat16])
@pytest.mark.parametrize("name", ["linear_scan", "matrix_scan"])
@pytest.mark.parametrize("length", [0, 5])
def test_the_custom_ops_keep_torchs_rules(name, dtype, length):
    """Schema, fake kernel, autograd registration, and tracing with dynamic shapes."""
    torch.manual_seed(0)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    column = () if name == "linear_scan" else (1,)
    square = () if name == "linear_scan" else (3,)
    for factors in ((2, length), (1, 1)):
        a = torch.randn(*factors, 3, *square, dtype=dtype).requires_grad_()
        b = torch.randn(2, length, 3, *column, dtype=dtype).requires_grad_()
        h0 = torch.randn(2, 3, *column, dtype=wide).requires_grad_()
        op = getattr(torch.ops.carrel, name).default
        torch.library.opcheck(op, (a, b, h0, False, "cpu"))
        h, last = (x.detach() for x in op(a, b, h0, False, "cpu"))
        arguments = (a.detach(), h0.detach(), h, torch.randn_like(h), torch.randn_like(last), False, "cpu")
        torch.library.opcheck(getattr(torch.ops.carrel, f"{name}_backward").default, arguments)


@pytest.mark.parametrize("case", ["per token", "matrix"])
def test_fake_tensors_have_the_shapes_of_real_ones(case):
    from torch._subclasses import FakeTensorMode

    scan, inputs = problem(case, torch.bfloat16)
    real = scan(*inputs)
    with FakeTensorMode() as mode:
        fake = scan(*(mode.from_tensor(x) for x in inputs))
    assert [(x.shape, x.dtype) for x in fake] == [(x.shape, x.dtype) for x in real]


def test_export_keeps_the_scan_as_one_operation():
    class Sum(torch.nn.Module):
        def forward(self, a, b):
            return linear_scan(a, b)[0]

    a, b = torch.rand(2, 5, 3), torch.randn(2, 5, 3)
    program = torch.export.export(Sum(), (a, b))
    assert "carrel.linear_scan" in program.graph_module.code
    torch.testing.assert_close(program.module()(a, b), linear_scan(a, b)[0], atol=0, rtol=0)
