"""Derivatives of decay_attention: the fused backward, and all that torch can ask for beyond it."""

from __future__ import annotations

import pytest
import torch
from torch import func

from carrel.ops import decay_attention

REAL = torch.float64
NAMES = ("q", "k", "v", "log_decay", "state")


def problem(batch=1, heads=2, length=6, size=3, value=2, per_channel=True, dtype=REAL, seed=0):
    torch.manual_seed(seed)
    row = (batch, heads, length)
    shapes = ((*row, size), (*row, size), (*row, value), (*row, size) if per_channel else row)
    tensors = [torch.randn(shape, dtype=REAL) for shape in (*shapes, (batch, heads, size, value))]
    tensors[3] = -torch.nn.functional.softplus(tensors[3] - 1)
    return [x.to(dtype) for x in tensors]


def run(*tensors, **options):
    return decay_attention(*tensors, **options)


def close(got, wanted, atol=1e-10):
    got, wanted = (torch.utils._pytree.tree_leaves(t) for t in (got, wanted))
    assert got
    for name, (x, y) in enumerate(zip(got, wanted, strict=True)):
        torch.testing.assert_close(x, y, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


SHAPES = [(2, 2, 7, 5, 3), (1, 1, 150, 17, 70), (1, 2, 1, 4, 4), (1, 1, 0, 3, 2)]


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_backward_is_the_gradient_of_the_reference(shape, per_channel, exclusive):
    inputs = [x.requires_grad_() for x in problem(*shape, per_channel)]
    outputs = {b: run(*inputs, exclusive=exclusive, chunk=10, backend=b) for b in ("reference", "cpu")}
    arrived = [torch.randn_like(x) for x in outputs["cpu"]]
    wanted = torch.autograd.grad(outputs["reference"], inputs, arrived, allow_unused=True, materialize_grads=True)
    scale = max(float(x.abs().max()) for x in wanted if x.numel())
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, retain_graph=True), wanted, atol=1e-12 * scale)
    # with create_graph the gradient is composed of linear scans, which is another piece of code
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, create_graph=True), wanted, atol=1e-12 * scale)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("slow", [False, True])
def test_the_fused_backward_in_float32_is_near_that_in_float64(per_channel, exclusive, slow):
    """Where nothing is forgotten for a thousand tokens, and where all is forgotten within two."""
    tensors = problem(1, 2, 1000, 32, 16, per_channel)
    tensors[3] = tensors[3] * (1e-3 if slow else 20)
    seen = []
    for dtype in (torch.float32, REAL):
        inputs = [x.to(dtype).requires_grad_() for x in tensors]
        outputs = run(*inputs, exclusive=exclusive, backend="cpu")
        torch.manual_seed(1)
        arrived = [torch.randn(x.shape, dtype=REAL).to(dtype) for x in outputs]
        seen.append(torch.autograd.grad(outputs, inputs, arrived))
    for name, got, wanted in zip(NAMES, *seen, strict=True):
        error = float((got - wanted).abs().max() / wanted.abs().max())
        assert error < 5e-6, f"{name}: {error}"


def test_a_channel_that_forgets_all_has_no_gradient_for_it_and_leaves_its_neighbours_theirs():
    tensors = problem(1, 1, 30, 4, 3)
    tensors[3][..., ::7, 1] = -1e4
    got, wanted = (
        torch.autograd.grad(run(*inputs, backend=name)[0].sin().sum(), inputs)
        for name, inputs in ((n, [x.clone().requires_grad_() for x in tensors]) for n in ("cpu", "reference"))
    )
    close(got, wanted)
    assert not got[3][..., ::7, 1].any()
    assert got[3][..., 1:7, 1].all()


def test_gradients_arrive_from_either_output_alone():
    for which in (0, 1):
        inputs = [x.requires_grad_() for x in problem()]
        pairs = [
            torch.autograd.grad(run(*inputs, backend=b)[which].sum(), inputs, allow_unused=True, materialize_grads=True)
            for b in ("cpu", "reference")
        ]
        close(*pairs)


def test_heads_before_or_after_tokens_in_memory_and_shared_heads_are_the_same():
    """Views of (batch, length, heads, N), and one key for all heads: nothing is copied, no number changes."""
    q, k, v, log_decay, state = (x.requires_grad_() for x in problem(2, 3, 9, 5, 4))
    k = k[:, :1].detach().requires_grad_()
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, v, log_decay)]
    views = run(turned[0], k.expand_as(q), *turned[1:], state, backend="cpu")
    plain = run(q, k.repeat(1, 3, 1, 1), v, log_decay, state, backend="cpu")
    close(views, plain, atol=0)
    assert views[0].transpose(1, 2).is_contiguous()
    leaves = (q, k, v, log_decay, state)
    close(*(torch.autograd.grad(o.sin().sum() + last.sum(), leaves) for o, last in (views, plain)), atol=1e-14)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_gradcheck_of_every_input(per_channel, exclusive):
    inputs = [x.requires_grad_() for x in problem(1, 1, 6, 2, 2, per_channel)]
    assert torch.autograd.gradcheck(lambda *x: run(*x, exclusive=exclusive), inputs, check_forward_ad=True)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_second_derivatives_of_every_input(per_channel, exclusive):
    inputs = [x.requires_grad_() for x in problem(1, 1, 3, 2, 1, per_channel)]
    assert torch.autograd.gradgradcheck(lambda *x: run(*x, exclusive=exclusive), inputs)


@pytest.mark.parametrize("which", range(5), ids=NAMES)
def test_forward_mode_equals_the_references(which):
    tensors = problem(2, 2, 5, 4, 3)
    tangent = torch.randn_like(tensors[which])

    def f(backend):
        def along(x):
            return run(*tensors[:which], x, *tensors[which + 1 :], backend=backend)

        return func.jvp(along, (tensors[which],), (tangent,))

    close(f("cpu"), f("reference"))


def loss(*tensors, backend="cpu"):
    o, last = run(*tensors, backend=backend)
    return o.pow(2).sum() + last.sin().sum()


@pytest.mark.parametrize("transform", [func.grad, func.jacfwd, func.jacrev, func.hessian])
def test_functional_transforms_equal_the_references(transform):
    tensors = problem(1, 1, 3, 2, 2)
    argnums = (0, 1, 3)
    got = transform(lambda *x: loss(*x), argnums=argnums)(*tensors)
    close(got, transform(lambda *x: loss(*x, backend="reference"), argnums=argnums)(*tensors))


@pytest.mark.parametrize("which", [[0, 1, 2, 3, 4], [3], [0, 4], [2]])
def test_vmap_is_a_loop_over_the_mapped_axis(which):
    many = [problem(2, 2, 5, 3, 4, seed=s) for s in range(3)]
    dims = tuple(1 if i in which else None for i in range(5))
    mapped = [torch.stack([m[i] for m in many], 1) if i in which else many[0][i] for i in range(5)]
    rows = [[m[i] if i in which else many[0][i] for i in range(5)] for m in many]
    got = func.vmap(run, in_dims=dims)(*mapped)
    close(got, [torch.stack(parts) for parts in zip(*(run(*r) for r in rows), strict=True)], atol=1e-12)
    per_sample = func.vmap(func.grad(loss, argnums=tuple(range(5))), in_dims=dims)(*mapped)
    wanted = [func.grad(loss, argnums=tuple(range(5)))(*r) for r in rows]
    close(per_sample, [torch.stack(parts) for parts in zip(*wanted, strict=True)])


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("length", [1, 5])
def test_forward_and_backward_compile_into_one_graph(length):
    inputs, again = ([x.requires_grad_() for x in problem(2, 2, length, 4, 3)] for _ in range(2))
    torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs).backward()
    loss(*again).backward()
    close([x.grad for x in inputs], [x.grad for x in again], atol=1e-12)


@pytest.mark.slow
def test_inductor_compiles_forward_and_backward():
    inputs, again = ([x.requires_grad_() for x in problem(2, 2, 5, 4, 3, dtype=torch.float32)] for _ in range(2))
    torch.compile(loss, fullgraph=True)(*inputs).backward()
    loss(*again).backward()
    close([x.grad for x in inputs], [x.grad for x in again], atol=1e-4)


def test_growth_is_refused_in_compiled_code_too():
    tensors = problem()
    tensors[3][0, 1, 2, 1] = 0.5
    with pytest.raises(ValueError, match="log_decay must be at most 0 everywhere"):
        torch.compile(run, fullgraph=True, backend="aot_eager")(*tensors)


@pytest.mark.parametrize("dtype", [REAL, torch.bfloat16])
@pytest.mark.parametrize("length", [0, 5])
def test_the_custom_ops_keep_torchs_rules(dtype, length):
    """Schema, fake kernel, autograd registration, and tracing with dynamic shapes."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    tensors = [x.to(wide if i > 2 else dtype) for i, x in enumerate(problem(2, 2, length, 4, 3))]
    tensors[2] = tensors[2].transpose(1, 2).contiguous().transpose(1, 2)
    arguments = [x.requires_grad_() for x in tensors]
    op = torch.ops.carrel.decay_attention.default
    torch.library.opcheck(op, (*arguments, False, 4, "cpu"))
    arrived = (torch.randn_like(x.detach()) for x in op(*arguments, False, 4, "cpu"))
    given = (*(x.detach() for x in arguments), *arrived, False, 4, "cpu")
    torch.library.opcheck(torch.ops.carrel.decay_attention_backward.default, given)
