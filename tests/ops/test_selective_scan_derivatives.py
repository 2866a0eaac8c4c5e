"""Derivatives of selective_scan: the fused backward, and all that torch can ask for beyond it."""

from __future__ import annotations

import pytest
import torch
from torch import func

from carrel.ops import selective_scan

REAL = torch.float64
NAMES = ("x", "delta", "A", "B", "C", "D", "z", "h0", "delta_bias")


def problem(batch=1, length=3, channels=2, state=2, groups=None, dtype=REAL, seed=0):
    torch.manual_seed(seed)
    shared = (batch, length, state) if groups is None else (batch, length, groups, state)
    per_token, per_channel = (batch, length, channels), (channels,)
    shapes = (per_token, per_token, (channels, state), shared, shared, per_channel, per_token)
    shapes = (*shapes, (batch, channels, state), per_channel)
    tensors = [torch.randn(shape, dtype=REAL) for shape in shapes]
    tensors[2] = -tensors[2].exp()
    return [t.to(dtype) for t in tensors]


def run(*tensors, **options):
    return selective_scan(*tensors, **options)


def close(got, wanted, atol=1e-10):
    got, wanted = (torch.utils._pytree.tree_leaves(t) for t in (got, wanted))
    assert got
    for name, (x, y) in enumerate(zip(got, wanted, strict=True)):
        torch.testing.assert_close(x, y, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 6, 3, None), (1, 40, 130, 16, None), (2, 70, 6, 5, 3), (2, 9, 140, 2, 2)])
def test_the_fused_backward_is_the_gradient_of_the_reference(shape, softplus, gated):
    tensors = problem(*shape)
    if not softplus:
        tensors[1], tensors[8] = tensors[1].abs(), tensors[8].abs()
    inputs = [t.requires_grad_() for t in tensors]
    given = dict(zip(NAMES, inputs, strict=True))
    if not gated:
        given["z"] = None
        inputs = inputs[:6] + inputs[7:]
    outputs = {b: selective_scan(**given, delta_softplus=softplus, backend=b) for b in ("reference", "cpu")}
    arrived = [torch.randn_like(t) for t in outputs["cpu"]]
    wanted = torch.autograd.grad(outputs["reference"], inputs, arrived)
    scale = max(float(t.abs().max()) for t in wanted)
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, retain_graph=True), wanted, atol=1e-12 * scale)
    # with create_graph the gradient is composed of linear scans, which is another piece of code
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, create_graph=True), wanted, atol=1e-12 * scale)


def test_the_fused_backward_in_float32_is_near_that_in_float64():
    tensors = problem(2, 300, 70, 16)
    seen = []
    for dtype in (torch.float32, REAL):
        inputs = [t.to(dtype).requires_grad_() for t in tensors]
        y, last = run(*inputs, backend="cpu")
        torch.manual_seed(1)
        arrived = [torch.randn(t.shape, dtype=REAL).to(dtype) for t in (y, last)]
        seen.append(torch.autograd.grad((y, last), inputs, arrived))
    for name, got, wanted in zip(NAMES, *seen, strict=True):
        error = float((got - wanted).abs().max() / wanted.abs().max())
        assert error < 2e-6, f"{name}: {error}"


def test_gradients_arrive_from_either_output_alone():
    for which in (0, 1):
        inputs = [t.requires_grad_() for t in problem(2, 5, 3, 2)]
        pairs = [
            torch.autograd.grad(run(*inputs, backend=b)[which].sum(), inputs, allow_unused=True, materialize_grads=True)
            for b in ("cpu", "reference")
        ]
        close(*pairs)


def test_gradcheck_of_every_input():
    inputs = [t.requires_grad_() for t in problem()]
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)


def test_second_derivatives_of_every_input():
    inputs = [t.requires_grad_() for t in problem(1, 2, 2, 1)]
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("which", range(9), ids=NAMES)
def test_forward_mode_equals_the_references(which):
    tensors = problem(2, 5, 4, 3, 2)
    tangent = torch.randn_like(tensors[which])

    def f(backend):
        def along(t):
            return run(*tensors[:which], t, *tensors[which + 1 :], backend=backend)

        return func.jvp(along, (tensors[which],), (tangent,))

    close(f("cpu"), f("reference"))


def loss(*tensors, backend="cpu"):
    y, last = run(*tensors, backend=backend)
    return y.pow(2).sum() + last.sin().sum()


@pytest.mark.parametrize("transform", [func.grad, func.jacfwd, func.jacrev, func.hessian])
def test_functional_transforms_equal_the_references(transform):
    tensors = problem(1, 3, 2, 2)
    argnums = (0, 1, 2, 3)
    got = transform(lambda *t: loss(*t), argnums=argnums)(*tensors)
    close(got, transform(lambda *t: loss(*t, backend="reference"), argnums=argnums)(*tensors))


@pytest.mark.parametrize("which", [[0, 1, 3, 4, 6, 7], [2], [8], [0, 2, 5], list(range(9)), [6], [7]])
@pytest.mark.parametrize("groups", [None, 2])
def test_vmap_is_a_loop_over_the_mapped_axis(which, groups):
    many = [problem(2, 5, 4, 3, groups, seed=s) for s in range(3)]
    dims = tuple(1 if i in which else None for i in range(9))
    mapped = [torch.stack([m[i] for m in many], 1) if i in which else many[0][i] for i in range(9)]
    rows = [[m[i] if i in which else many[0][i] for i in range(9)] for m in many]
    got = func.vmap(run, in_dims=dims)(*mapped)
    close(got, [torch.stack(parts) for parts in zip(*(run(*r) for r in rows), strict=True)], atol=1e-12)
    per_sample = func.vmap(func.grad(loss, argnums=tuple(range(9))), in_dims=dims)(*mapped)
    wanted = [func.grad(loss, argnums=tuple(range(9)))(*r) for r in rows]
    close(per_sample, [torch.stack(parts) for parts in zip(*wanted, strict=True)])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("length", [1, 5])
def test_forward_and_backward_compile_into_one_graph(length):
    inputs, again = ([t.requires_grad_() for t in problem(2, length, 4, 3)] for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs).backward()
    loss(*again).backward()
    close([t.grad for t in inputs], [t.grad for t in again], atol=1e-12)


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward():
    inputs, again = ([t.requires_grad_() for t in problem(2, 5, 4, 3, dtype=torch.float32)] for _ in range(2))
    torch.compile(loss, fullgraph=True)(*inputs).backward()
    loss(*again).backward()
    close([t.grad for t in inputs], [t.grad for t in again], atol=1e-4)


def test_without_gradient_the_compiled_scan_is_the_same():
    tensors = problem(2, 40, 4, 3)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        close(compiled(*tensors), run(*tensors), atol=0)


def test_values_are_refused_in_compiled_code_too():
    tensors = problem(2, 4, 4, 3)
    tensors[2][1, 1] = 0.5
    with pytest.raises(ValueError, match="A must be negative everywhere"):
        torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)


@pytest.mark.parametrize("dtype", [REAL, torch.bfloat16])
@pytest.mark.parametrize("length", [0, 5])
def test_the_custom_ops_keep_torchs_rules(dtype, length):
    """Schema, fake kernel, autograd registration, and tracing with dynamic shapes."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    tensors = [t.to(wide if i in (2, 5, 7, 8) else dtype) for i, t in enumerate(problem(2, length, 4, 3, 2))]
    arguments = [t.requires_grad_() for t in tensors]
    op = torch.ops.carrel.selective_scan.default
    torch.library.opcheck(op, (*arguments, True, 4, "cpu"))
    y, last, states = (t.detach() for t in op(*arguments, True, 4, "cpu"))
    arrived = (torch.randn_like(y), torch.randn_like(last), torch.zeros_like(states))
    given = (*(t.detach() for t in arguments), states, *arrived, True, 4, "cpu")
    torch.library.opcheck(torch.ops.carrel.selective_scan_backward.default, given)


def test_fake_tensors_have_the_shapes_of_real_ones():
    from torch._subclasses import FakeTensorMode

    tensors = problem(2, 5, 4, 3, dtype=torch.bfloat16)
    real = run(*tensors)
    with FakeTensorMode() as mode:
        fake = run(*(mode.from_tensor(t) for t in tensors))
    assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]
