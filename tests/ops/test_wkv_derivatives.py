"""Derivatives of wkv: the fused backward, and all that torch can ask for beyond it."""

from __future__ import annotations

import pytest
import torch
from torch import func

from carrel.ops import WKVState, wkv

REAL = torch.float64
NAMES = ("w", "u", "k", "v", "a", "b", "p")


def problem(batch=1, length=4, channels=2, dtype=REAL, seed=0):
    torch.manual_seed(seed)
    w, u = torch.rand(channels, dtype=REAL), torch.randn(channels, dtype=REAL)
    k, v = 2 * torch.randn(batch, length, channels, dtype=REAL), torch.randn(batch, length, channels, dtype=REAL)
    a, b, p = torch.randn(3, batch, channels, dtype=REAL)
    return [t.to(dtype) for t in (w, u, k, v, a, b.exp(), p)]


def run(w, u, k, v, a=None, b=None, p=None, **options):
    y, state = wkv(w, u, k, v, None if a is None else WKVState(a, b, p), **options)
    return y, *state


def close(got, wanted, atol=1e-10):
    got, wanted = (torch.utils._pytree.tree_leaves(t) for t in (got, wanted))
    assert got
    for name, (x, y) in enumerate(zip(got, wanted, strict=True)):
        torch.testing.assert_close(x, y, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", [(2, 7, 5), (1, 100, 300), (2, 64, 3), (2, 1, 4)])
def test_the_fused_backward_is_the_gradient_of_the_reference(shape, given):
    inputs = [t.requires_grad_() for t in problem(*shape)][: 7 if given else 4]
    outputs = {b: run(*inputs, backend=b) for b in ("reference", "cpu")}
    arrived = [torch.randn_like(t) for t in outputs["cpu"]]
    wanted = torch.autograd.grad(outputs["reference"], inputs, arrived)
    scale = max(float(t.abs().max()) for t in wanted)
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, retain_graph=True), wanted, atol=1e-12 * scale)
    # with create_graph the gradient is composed of linear scans, which is another piece of code
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, create_graph=True), wanted, atol=1e-12 * scale)


def test_in_float32_outputs_and_gradients_are_as_near_to_float64_as_the_equations_are():
    """Exponents are carried from token to token and rounded at each, which a slow rate sees for long."""
    tensors = problem(2, 300, 300)

    def evaluated(dtype, backend):
        inputs = [t.to(dtype).requires_grad_() for t in tensors]
        outputs = run(*inputs, backend=backend)
        torch.manual_seed(1)
        arrived = [torch.randn(t.shape, dtype=REAL).to(dtype) for t in outputs]
        return (*(t.detach() for t in outputs), *torch.autograd.grad(outputs, inputs, arrived))

    exact = evaluated(REAL, "cpu")
    found = [evaluated(torch.float32, backend) for backend in ("cpu", "reference")]
    for name, right, *both in zip(("y", "last a", "last b", "last p", *NAMES), exact, *found, strict=True):
        ours, equations = (float((t - right).abs().max() / right.abs().max()) for t in both)
        assert ours < 1.5 * equations + 5e-7, f"{name}: {ours} against {equations}"


def test_gradients_arrive_from_each_output_alone():
    for which in range(4):
        inputs = [t.requires_grad_() for t in problem(2, 5, 3)]
        pairs = [
            torch.autograd.grad(run(*inputs, backend=b)[which].sum(), inputs, allow_unused=True, materialize_grads=True)
            for b in ("cpu", "reference")
        ]
        close(*pairs)


def test_what_depends_on_the_state_only_through_later_averages_sends_nothing_through_the_maximum():
    """Then dp = a da + b db at the state in between: the sums a e^p and b e^p are all that counts."""
    w, u, k, v, a, b, p = problem(2, 9, 3)
    state = [t.requires_grad_() for t in (a, b, p)]
    y = run(w, u, k, v, *state)[0]
    da, db, dp = torch.autograd.grad(y.square().sum(), state)
    torch.testing.assert_close(dp, a * da + b * db, atol=1e-12, rtol=0)


@pytest.mark.parametrize("given", [True, False])
def test_gradcheck_of_every_input(given):
    inputs = [t.requires_grad_() for t in problem()][: 7 if given else 4]
    assert torch.autograd.gradcheck(run, inputs, check_forward_ad=True)


def test_derivatives_where_the_first_exponent_stays_the_largest():
    w, u, k, v, a, b, p = problem(1, 3, 2)
    inputs = [t.requires_grad_() for t in (w / 4, u, k, v, a, b, p + 20)]
    assert torch.autograd.gradcheck(lambda *t: run(*t)[1:], inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda *t: run(*t)[1:], inputs)
    gradients = (
        torch.autograd.grad(sum(t.sin().sum() for t in run(*inputs, backend=backend)), inputs, create_graph=True)
        for backend in ("cpu", "reference")
    )
    close(*gradients)


@pytest.mark.parametrize("given", [True, False])
def test_second_derivatives_of_every_input(given):
    inputs = [t.requires_grad_() for t in problem(1, 3, 2)][: 7 if given else 4]
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("which", range(7), ids=NAMES)
def test_forward_mode_equals_the_references(which):
    tensors = problem(2, 5, 4)
    tangent = torch.randn_like(tensors[which])

    def f(backend):
        def along(t):
            return run(*tensors[:which], t, *tensors[which + 1 :], backend=backend)

        return func.jvp(along, (tensors[which],), (tangent,))

    close(f("cpu"), f("reference"))


def loss(*tensors, backend="cpu"):
    y, a, b, p = run(*tensors, backend=backend)
    return y.pow(2).sum() + a.sin().sum() + (b * p).sum()


@pytest.mark.parametrize("transform", [func.grad, func.jacfwd, func.jacrev, func.hessian])
def test_functional_transforms_equal_the_references(transform):
    tensors = problem(1, 3, 2)
    argnums = tuple(range(7))
    got = transform(lambda *t: loss(*t), argnums=argnums)(*tensors)
    close(got, transform(lambda *t: loss(*t, backend="reference"), argnums=argnums)(*tensors))


def test_second_derivatives_are_finite_at_the_start_and_for_any_bonus():
    """Where there is no past, its exponent is minus infinity."""
    for bonus in (-200.0, 0.0, 200.0):
        w, u, k, v = (t.float() for t in problem(1, 3, 2)[:4])
        inputs = [t.requires_grad_() for t in (w, u.fill_(bonus), k, v)]
        first = torch.autograd.grad(run(*inputs)[0].square().sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum(t.sum() for t in first), inputs)
        assert all(torch.isfinite(t).all() for t in (*first, *second))


@pytest.mark.parametrize("which", [[2, 3, 4, 5, 6], [0], [1], [2], [0, 2, 5], list(range(7)), [6]])
def test_vmap_is_a_loop_over_the_mapped_axis(which):
    many = [problem(2, 5, 4, seed=s) for s in range(3)]
    dims = tuple(0 if i in which else None for i in range(7))
    mapped = [torch.stack([m[i] for m in many]) if i in which else many[0][i] for i in range(7)]
    rows = [[m[i] if i in which else many[0][i] for i in range(7)] for m in many]
    got = func.vmap(run, in_dims=dims)(*mapped)
    close(got, [torch.stack(parts) for parts in zip(*(run(*r) for r in rows), strict=True)], atol=1e-12)
    per_sample = func.vmap(func.grad(loss, argnums=tuple(range(7))), in_dims=dims)(*mapped)
    wanted = [func.grad(loss, argnums=tuple(range(7)))(*r) for r in rows]
    close(per_sample, [torch.stack(parts) for parts in zip(*wanted, strict=True)])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("length", [1, 5])
def test_forward_and_backward_compile_into_one_graph(length, given):
    inputs, again = ([t.requires_grad_() for t in problem(2, length, 4)][: 7 if given else 4] for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs).backward()
    loss(*again).backward()
    close([t.grad for t in inputs], [t.grad for t in again], atol=1e-12)


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward():
    inputs, again = ([t.requires_grad_() for t in problem(2, 5, 4, dtype=torch.float32)] for _ in range(2))
    torch.compile(loss, fullgraph=True)(*inputs).backward()
    loss(*again).backward()
    close([t.grad for t in inputs], [t.grad for t in again], atol=1e-4)


@pytest.mark.parametrize("dtype", [REAL, torch.bfloat16])
@pytest.mark.parametrize("length", [0, 5])
def test_the_custom_ops_keep_torchs_rules(dtype, length):
    """Schema, fake kernel, autograd registration, and tracing with dynamic shapes."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    tensors = [t.to(dtype if i in (2, 3) else wide) for i, t in enumerate(problem(2, length, 4))]
    arguments = [t.requires_grad_() for t in tensors]
    op = torch.ops.carrel.wkv.default
    torch.library.opcheck(op, (*arguments, 4, "cpu"))
    y, *last, states = (t.detach() for t in op(*arguments, 4, "cpu"))
    arrived = [torch.randn_like(t) for t in (y, *last)]
    kept = (*(t.detach() for t in arguments), *last[:2], states)
    given = (*kept, *arrived, torch.zeros_like(states), 4, "cpu")
    torch.library.opcheck(torch.ops.carrel.wkv_backward.default, given)


def test_fake_tensors_have_the_shapes_of_real_ones():
    from torch._subclasses import FakeTensorMode

    tensors = problem(2, 5, 4, dtype=torch.bfloat16)
    real = run(*tensors)
    with FakeTensorMode() as mode:
        fake = run(*(mode.from_tensor(t) for t in tensors))
    assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]
