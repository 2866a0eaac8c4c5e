"""Derivatives of both scans: the fused backward, and all that torch can ask for beyond it."""

from __future__ import annotations

import pytest
import torch
from torch import func
from torch.utils import _pytree as pytree

from carrel.ops import linear_scan, matrix_scan

REAL, COMPLEX = torch.float64, torch.complex128

# name, scan, shape of the factor, shape of b, shape of h0
CASES = {
    "per token": (linear_scan, (2, 4, 2), (2, 4, 2), (2, 2)),
    "per channel": (linear_scan, (2,), (2, 4, 2), (2, 2)),
    "per row and channel": (linear_scan, (2, 1, 2), (2, 4, 2), (2, 2)),
    "shared by the batch": (linear_scan, (1, 4, 2), (2, 4, 2), (2, 2)),
    "one for many channels": (linear_scan, (1, 2, 1), (1, 2, 64), (1, 64)),
    "one for many channels, shared by the batch": (linear_scan, (1, 3, 2, 1), (2, 3, 2, 64), (2, 2, 64)),
    "one for many channels and all tokens": (linear_scan, (2, 1), (2, 3, 2, 64), (2, 2, 64)),
    "matrix per token": (matrix_scan, (2, 4, 2, 2), (2, 4, 2), (2, 2)),
    "one matrix": (matrix_scan, (2, 2), (2, 4, 2), (2, 2)),
    "matrix, two states": (matrix_scan, (2, 3, 2, 2), (2, 3, 2, 2), (2, 2, 2)),
    "one matrix, two states": (matrix_scan, (1, 1, 2, 2), (2, 3, 2, 2), (2, 2, 2)),
    "wide matrix": (matrix_scan, (1, 2, 9, 9), (1, 2, 9), (1, 9)),
}
FEW = ["per token", "per channel", "matrix per token", "one matrix"]


def problem(case, dtype=REAL, seed=0):
    scan, *shapes = CASES[case]
    torch.manual_seed(seed)
    return scan, [0.5 * torch.randn(shape, dtype=dtype) for shape in shapes]


def close(got, wanted, atol=1e-10):
    pairs = list(zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True))
    assert pairs
    for x, y in pairs:
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_fused_backward_is_the_gradient_of_the_reference(case, dtype, reverse):
    scan, inputs = problem(case, dtype)
    torch.manual_seed(1)
    inputs = [x.requires_grad_() for x in inputs]
    outputs = {name: scan(*inputs, reverse=reverse, backend=name) for name in ("reference", "cpu")}
    arrived = [torch.randn_like(x) for x in outputs["cpu"]]
    wanted = torch.autograd.grad(outputs["reference"], inputs, arrived)
    close(outputs["cpu"], outputs["reference"])
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, retain_graph=True), wanted)
    # with create_graph the gradient is composed of scans, which is another piece of code
    close(torch.autograd.grad(outputs["cpu"], inputs, arrived, create_graph=True), wanted)


@pytest.mark.parametrize("case", [*FEW, "one for many channels", "one matrix, two states"])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_gradients_and_tangents_match_finite_differences(case, dtype):
    scan, inputs = problem(case, dtype)
    inputs = [x.requires_grad_() for x in inputs]

    def f(*xs):
        return scan(*xs, backend="cpu")

    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True)


@pytest.mark.parametrize("case", FEW)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
def test_second_derivatives_match_finite_differences(case, dtype, reverse):
    scan, (a, b, h0) = problem(case, dtype)
    inputs = [a[:1, :3] if a.ndim > 2 else a, b[:1, :3], h0[:1]]
    inputs = [x.detach().requires_grad_() for x in inputs]
    assert torch.autograd.gradgradcheck(lambda *xs: scan(*xs, reverse=reverse, backend="cpu"), inputs)


def test_only_what_arrives_is_needed():
    """A loss on the last state alone, or on h alone, has the gradient of the reference."""
    scan, inputs = problem("per token")
    inputs = [x.requires_grad_() for x in inputs]
    for which in (0, 1):
        got, wanted = (scan(*inputs, backend=name)[which].pow(2).sum() for name in ("cpu", "reference"))
        close(torch.autograd.grad(got, inputs), torch.autograd.grad(wanted, inputs, materialize_grads=True))


@pytest.mark.parametrize("reduce", [torch.sum, torch.mean, lambda h: h.mean(1).pow(2).sum()])
def test_gradients_that_repeat_themselves_are_read_where_they_stand(reduce):
    """The gradient of a sum is one number seen everywhere (stride 0)."""
    scan, inputs = problem("per token")
    inputs = [x.requires_grad_() for x in inputs]
    got, wanted = (reduce(scan(*inputs, backend=name)[0]) for name in ("cpu", "reference"))
    close(torch.autograd.grad(got, inputs), torch.autograd.grad(wanted, inputs))


@pytest.mark.parametrize("case", FEW)
def test_no_tokens_pass_the_state_gradient_through(case):
    scan, (a, b, h0) = problem(case)
    a = (a[:, :0] if a.ndim > 2 else a).requires_grad_()
    b, h0 = b[:, :0].detach().requires_grad_(), h0.requires_grad_()
    _, last = scan(a, b, h0, backend="cpu")
    da, db, dh0 = torch.autograd.grad((3 * last).sum(), (a, b, h0))
    assert torch.equal(da, torch.zeros_like(a))
    assert db.shape == b.shape
    assert torch.equal(dh0, torch.full_like(h0, 3))


@pytest.mark.parametrize("case", FEW)
def test_the_gradient_of_a_factor_all_tokens_share_has_its_size(case):
    scan, inputs = problem(case)
    inputs = [x.requires_grad_() for x in inputs]
    (gradient,) = torch.autograd.grad(scan(*inputs)[0].sum(), inputs[:1])
    assert gradient.shape == inputs[0].shape


def test_a_million_products_are_summed_in_a_wider_type():
    """da = sum over t of lambda_t h_{t-1}: summed in float32 alone, 10^6 equal products lose three digits."""
    length = 1 << 20
    a = torch.zeros(1, requires_grad=True)
    h, _ = linear_scan(a, torch.full((1, length, 1), 0.1), backend="cpu")
    (da,) = torch.autograd.grad(h.sum(), a)
    torch.testing.assert_close(da.double(), torch.tensor([0.1 * (length - 1)], dtype=REAL), rtol=2e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factors", [(2, 700, 300), (300,), (1, 700, 300)])
@pytest.mark.parametrize("reverse", [False, True])
def test_half_gradients_are_those_of_float32_rounded(dtype, factors, reverse):
    """Long enough that several pieces are widened in turn. da uses the saved states, which are rounded."""
    torch.manual_seed(0)
    a = (torch.rand(factors) * 0.9).to(dtype).requires_grad_()
    b, h0 = torch.randn(2, 700, 300).to(dtype).requires_grad_(), torch.randn(2, 300, requires_grad=True)
    wide = [x.detach().float().requires_grad_() for x in (a, b, h0)]
    got, wanted = (linear_scan(*xs, reverse=reverse, backend="cpu") for xs in ((a, b, h0), wide))
    g, g_last = torch.randn_like(wanted[0]).to(dtype), torch.randn_like(h0)
    gradients = torch.autograd.grad(got, (a, b, h0), (g, g_last))
    exact = torch.autograd.grad(wanted, wide, (g.float(), g_last))
    assert torch.equal(gradients[1], exact[1].to(dtype))
    assert torch.equal(gradients[2], exact[2])
    assert gradients[0].dtype == dtype
    scale = exact[0].abs().max().item()
    torch.testing.assert_close(gradients[0].float(), exact[0], atol=torch.finfo(dtype).eps * scale, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_half_matrices_keep_their_types(dtype):
    scan, inputs = problem("matrix per token", torch.float32)
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    h, last = scan(*inputs, backend="cpu")
    assert (h.dtype, last.dtype) == (dtype, torch.float32)
    assert [x.dtype for x in torch.autograd.grad(h.float().sum() + last.sum(), inputs)] == [dtype] * 3


def test_real_factors_of_complex_states_get_real_gradients():
    for scan, (a, b, h0) in (problem("per channel"), problem("per token"), problem("matrix per token")):
        inputs = [x.requires_grad_() for x in (a, b + 1j * b.flip(1), h0 - 2j * h0)]
        got, wanted = (scan(*inputs, backend=name) for name in ("cpu", "reference"))
        arrived = [torch.randn_like(x) for x in got]
        gradients = torch.autograd.grad(got, inputs, arrived)
        assert gradients[0].dtype == REAL
        close(gradients, torch.autograd.grad(wanted, inputs, arrived))


# ------------------------------------------------------------------------------------------------- torch.func


def loss(scan, backend):
    def f(*inputs):
        return sum((x.abs() ** 3).sum() for x in scan(*inputs, backend=backend))

    return f


def both(case, make, dtype=REAL):
    """The same transform of the kernels and of the reference."""
    scan, inputs = problem(case, dtype)
    close(make(loss(scan, "cpu"), inputs), make(loss(scan, "reference"), inputs))


@pytest.mark.parametrize("case", FEW)
def test_func_grad(case):
    both(case, lambda f, xs: func.grad(f, argnums=(0, 1, 2))(*xs))


@pytest.mark.parametrize("case", FEW)
def test_func_grad_of_complex_inputs(case):
    both(case, lambda f, xs: func.grad(f, argnums=(0, 1, 2))(*xs), COMPLEX)


@pytest.mark.parametrize("case", FEW)
def test_jacobians_in_both_modes(case):
    scan, (a, b, h0) = problem(case)
    for mode in (func.jacfwd, func.jacrev):
        close(
            mode(lambda a, b: scan(a, b, h0, backend="cpu")[0], argnums=(0, 1))(a, b),
            func.jacrev(lambda a, b: scan(a, b, h0, backend="reference")[0], argnums=(0, 1))(a, b),
        )


@pytest.mark.parametrize("case", FEW)
def test_hessians_by_every_order_of_modes(case):
    both(case, lambda f, xs: func.hessian(f)(*xs))
    both(case, lambda f, xs: func.jacrev(func.jacrev(f))(*xs))
    both(case, lambda f, xs: func.jacrev(func.jacfwd(f))(*xs))


def test_forward_mode_inside_forward_mode_is_right_or_refused():
    """Torch gives zeros there for any autograd.Function: "auto" takes the reference, a named kernel is refused."""
    scan, (a, b, h0) = problem("per token")
    twice = func.jacfwd(func.jacfwd(lambda a: scan(a, b, h0)[0].pow(3).sum()))(a)
    close(twice, func.hessian(lambda a: scan(a, b, h0, backend="reference")[0].pow(3).sum())(a))
    with pytest.raises(ValueError, match="torch cannot carry this transform through a kernel"):
        func.jacfwd(func.jacfwd(lambda a: scan(a, b, h0, backend="cpu")[0].sum()))(a)


@pytest.mark.parametrize("case", FEW)
def test_forward_mode_without_torch_func(case):
    from torch.autograd import forward_ad

    scan, inputs = problem(case)
    tangents = [torch.randn_like(x) for x in inputs]
    found = {}
    for name in ("cpu", "reference"):
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(x, t) for x, t in zip(inputs, tangents, strict=True)]
            found[name] = [forward_ad.unpack_dual(x).tangent for x in scan(*duals, backend=name)]
    close(found["cpu"], found["reference"])


@pytest.mark.parametrize("case", FEW)
@pytest.mark.parametrize("dims", [(0, 0, 0), (None, 0, None), (0, None, None), (None, None, 0), (None, 1, 0)])
def test_vmap_over_any_of_the_inputs(case, dims):
    scan, inputs = problem(case)
    many = [x if d is None else torch.stack([x, 2 * x, -x]).movedim(0, d) for x, d in zip(inputs, dims, strict=True)]
    close(
        func.vmap(lambda *xs: scan(*xs, backend="cpu"), in_dims=dims)(*many),
        func.vmap(lambda *xs: scan(*xs, backend="reference"), in_dims=dims)(*many),
    )


def test_gradients_per_example():
    scan, (a, b, h0) = problem("per channel")
    many = torch.stack([b, 2 * b, -b])

    def per_example(name):
        return func.vmap(func.grad(loss(scan, name), argnums=(0, 2)), in_dims=(None, 0, None))(a, many, h0)

    close(per_example("cpu"), per_example("reference"))
