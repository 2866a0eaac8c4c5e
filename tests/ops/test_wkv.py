"""wkv: y_t = (Σ_{i<t} e^{k_i - (t-1-i) w} v_i + e^{u+k_t} v_t) / (Σ_{i<t} e^{k_i - (t-1-i) w} + e^{u+k_t})."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from carrel.ops import WKVState, linear_scan, wkv

BACKENDS = ["reference", "cpu"]
REAL = torch.float64


def problem(batch=2, length=7, channels=5, dtype=REAL, seed=0):
    torch.manual_seed(seed)
    w, u = torch.rand(channels, dtype=REAL), torch.randn(channels, dtype=REAL)
    k, v = 3 * torch.randn(batch, length, channels, dtype=REAL), torch.randn(batch, length, channels, dtype=REAL)
    return [t.to(dtype) for t in (w, u, k, v)]


def some_state(batch=2, channels=5, dtype=REAL):
    torch.manual_seed(1)
    a, b, p = torch.randn(3, batch, channels, dtype=REAL)
    return WKVState(*(t.to(dtype) for t in (a, b.exp(), p)))


def double_sum(w, u, k, v):
    """Every average from the definition alone, in numpy and with the largest exponent taken out."""
    w, u, k, v = (t.double().numpy() for t in (w, u, k, v))
    y = np.zeros_like(v)
    for t in range(k.shape[1]):
        exponents = [k[:, i] - (t - 1 - i) * w for i in range(t)] + [u + k[:, t]]
        weights = np.exp(np.stack(exponents) - np.max(exponents, 0))
        y[:, t] = (weights * v[:, : t + 1].swapaxes(0, 1)).sum(0) / weights.sum(0)
    return torch.from_numpy(y)


def close(got, wanted, atol=1e-10):
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


def flat(result):
    return (result[0], *result[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 7, 5), (1, 90, 300)])
def test_every_average_is_that_of_the_double_sum(backend, shape):
    p = problem(*shape)
    torch.testing.assert_close(wkv(*p, backend=backend)[0], double_sum(*p), atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_state_holds_the_two_sums_as_multiples_of_the_largest_exponential(backend):
    w, u, k, v = problem()
    state = wkv(w, u, k, v, backend=backend)[1]
    exponents = k - torch.arange(6, -1, -1)[:, None] * w
    torch.testing.assert_close(state.p, exponents.max(1).values, atol=1e-12, rtol=0)
    torch.testing.assert_close(state.b * state.p.exp(), exponents.exp().sum(1), atol=0, rtol=1e-12)
    torch.testing.assert_close(state.a * state.p.exp(), (exponents.exp() * v).sum(1), atol=1e-10, rtol=1e-12)


@pytest.mark.parametrize("shape", [(2, 130, 5), (1, 70, 700)])
@pytest.mark.parametrize("dtype", [torch.float32, REAL])
@pytest.mark.parametrize("given", [True, False])
def test_the_kernel_equals_the_reference_over_many_blocks(shape, dtype, given):
    p = problem(*shape, dtype=dtype)
    state = some_state(shape[0], shape[2], dtype) if given else None
    pairs = zip(*(flat(wkv(*p, state, backend=b)) for b in ("cpu", "reference")), strict=True)
    for x, y in pairs:
        bound = 1e-12 if dtype == REAL else 4e-6 * float(y.abs().max())
        torch.testing.assert_close(x, y, atol=bound, rtol=0)


def test_it_is_two_linear_scans_and_a_quotient_where_no_exponential_overflows():
    w, u, k, v = problem(2, 40, 5)
    sums = [linear_scan(torch.exp(-w), torch.exp(k) * x)[0] for x in (v, torch.ones_like(v))]
    before = [torch.cat([torch.zeros_like(s[:, :1]), s[:, :-1]], 1) for s in sums]
    own = torch.exp(u + k)
    wanted = (before[0] + own * v) / (before[1] + own)
    torch.testing.assert_close(wkv(w, u, k, v)[0], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_adding_the_same_to_every_key_changes_nothing_but_the_exponent(backend):
    w, u, k, v = problem()
    y, state = wkv(w, u, k, v, backend=backend)
    shifted, moved = wkv(w, u, k + 1000, v, backend=backend)
    torch.testing.assert_close(shifted, y, atol=1e-11, rtol=0)
    torch.testing.assert_close(moved.p, state.p + 1000, atol=1e-11, rtol=0)
    close(moved[:2], state[:2], atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
def test_keys_of_80_either_way_give_finite_float32_near_the_double_sum(backend):
    w, u, k, v = problem(2, 60, 5, torch.float32)
    k = 80 * torch.sign(k)
    inputs = [t.requires_grad_() for t in (w, u, k, v)]
    y, state = wkv(*inputs, backend=backend)
    assert (y.double() - double_sum(*(t.detach() for t in (w, u, k, v)))).abs().max() < 1e-5
    gradients = torch.autograd.grad(y.square().sum() + state.a.sum() + state.p.sum(), inputs)
    assert all(torch.isfinite(t).all() for t in (*state, *gradients))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_endless_rate_forgets_all_but_the_bonus_and_the_last_token(backend):
    """y_t is then σ(u + k_t - k_{t-1}) v_t + σ(k_{t-1} - u - k_t) v_{t-1}; at the start it is v_1."""
    _, u, k, v = problem(2, 9, 5)
    for rate in (1e6, torch.inf):
        inputs = [t.clone().requires_grad_() for t in (u, k, v)]
        y, state = wkv(torch.full_like(u, rate), *inputs, backend=backend)
        own = torch.sigmoid(u + k[:, 1:] - k[:, :-1])
        torch.testing.assert_close(y[:, 1:], own * v[:, 1:] + (1 - own) * v[:, :-1], atol=1e-12, rtol=0)
        torch.testing.assert_close(y[:, 0], v[:, 0], atol=1e-15, rtol=0)
        close(state, (v[:, -1], torch.ones_like(u).expand(2, 5), k[:, -1]), atol=1e-15)
        assert all(torch.isfinite(t).all() for t in torch.autograd.grad(y.sum(), inputs))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rate_and_no_bonus_is_softmax_attention_over_keys_that_no_query_changes(backend):
    _, _, k, v = problem(2, 9, 5)
    zero = torch.zeros(5, dtype=REAL)
    weights = [torch.softmax(k[:, : t + 1], 1) for t in range(9)]
    wanted = torch.stack([(weights[t] * v[:, : t + 1]).sum(1) for t in range(9)], 1)
    torch.testing.assert_close(wkv(zero, zero, k, v, backend=backend)[0], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_average_lies_between_its_values(backend):
    w, u, k, v = problem(2, 50, 5, torch.float32)
    y = wkv(w, u, 10 * k, v, backend=backend)[0]
    low, high = v.cummin(1).values, v.cummax(1).values
    assert ((y >= low - 1e-5) & (y <= high + 1e-5)).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cuts", [[0], [1], [33], [31, 32, 64], [70], [5, 5]])
def test_pieces_are_the_whole_bit_for_bit_in_the_kernel(backend, cuts):
    """torch's own exponential, in the reference, differs in the last bit with a number's place in memory."""
    w, u, k, v = problem(2, 70, 5)
    whole = wkv(w, u, k, v, backend=backend)
    outputs, state = [], None
    for a, b in zip([0, *cuts], [*cuts, 70], strict=True):
        y, state = wkv(w, u, k[:, a:b], v[:, a:b], state, backend=backend)
        outputs.append(y)
    close((torch.cat(outputs, 1), *state), flat(whole), atol=0 if backend == "cpu" else 1e-13)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 4, 5), (2, 4, 0)])
@pytest.mark.parametrize("given", [True, False])
def test_empty_axes_give_empty_outputs_and_the_state_that_came(backend, shape, given):
    batch, length, channels = shape
    state = some_state(batch, channels) if given else None
    inputs = [t.requires_grad_() for t in problem(*shape)]
    y, after = wkv(*inputs, state, backend=backend)
    assert y.shape == shape
    if length == 0 and given:
        close(after, state, atol=0)
    if length == 0 and not given:
        assert (after.p == -torch.inf).all()
        assert (after.a == 0).all()
    gradients = torch.autograd.grad(y.sum() + sum(t.sum() for t in after[:2]), inputs, allow_unused=True)
    assert all(t is None or not t.numel() or (t == 0).all() for t in gradients)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_computed_in_float32_and_rounded_once(backend, dtype):
    w, u, k, v = problem(2, 40, 5, torch.float32)
    k, v = k.to(dtype), v.to(dtype)
    exact, state = wkv(w, u, k.float(), v.float(), backend=backend)
    y, after = wkv(w, u, k, v, backend=backend)
    assert y.dtype == dtype
    close((y, *after), (exact.to(dtype), *state), atol=0)


def test_rates_of_float64_widen_the_result():
    w, u, k, v = problem()
    y, state = wkv(w, u, k.float(), v.float())
    assert {y.dtype, *(t.dtype for t in state)} == {REAL}
    y, state = wkv(w.float(), u.float(), k.float(), v.half())
    assert {y.dtype, *(t.dtype for t in state)} == {torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_do_not_matter(backend):
    w, u, k, v = problem(2, 9, 6)
    odd = (w.flip(0).expand(2, 6).T[:, 0], torch.cat([u, u])[::2])
    odd = (*odd, k.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([v, v], -1)[..., ::2])
    even = [t.contiguous() for t in odd]
    close(flat(wkv(*odd, backend=backend)), flat(wkv(*even, backend=backend)), atol=0)


def test_results_are_fresh_tensors_and_arguments_are_left_alone():
    p, state = problem(), some_state()
    before = [t.clone() for t in (*p, *state)]
    y, after = wkv(*p, state)
    for t in (y, *after):
        t.fill_(7)
    close([*p, *state], before, atol=0)


def test_threads_do_not_change_a_bit():
    script = """
import torch
from carrel.ops import wkv
torch.manual_seed(0)
inputs = [t.requires_grad_() for t in (torch.rand(600), torch.randn(600), *torch.randn(2, 3, 300, 600))]
found = []
for threads in (1, 2, 5):
    torch.set_num_threads(threads)
    y, state = wkv(*inputs)
    found.append([y, *state, *torch.autograd.grad(y.square().sum(), inputs)])
assert all(torch.equal(x, y) for other in found[1:] for x, y in zip(found[0], other))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


W, K = torch.zeros(3), torch.zeros(2, 4, 3)
STATE = WKVState(*torch.zeros(3, 2, 3))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((W, W, torch.zeros(4, 3), K), "k must be (batch, length, channels), got shape (4, 3)"),
        ((torch.zeros(2), W, K, K), "w must have shape (3,), got (2,)"),
        ((W, torch.zeros(1, 3), K, K), "u must have shape (3,), got (1, 3)"),
        ((W, W, K, torch.zeros(2, 5, 3)), "v must have shape (2, 4, 3), got (2, 5, 3)"),
        ((W, W, K, K, STATE._replace(b=torch.zeros(2, 1))), "b must have shape (2, 3), got (2, 1)"),
        ((W, W, K, K, STATE.a), "state must be a WKVState of three tensors or None, got Tensor"),
        ((W, W, K, K, STATE[:2]), "state must be a WKVState of three tensors or None, got tuple"),
        ((W, W, K.int(), K), "k must be real floating point, got torch.int32"),
        ((W, W, K, K.to(torch.complex64)), "v must be real floating point, got torch.complex64"),
        ((1.0, W, K, K), "w must be a tensor, got float"),
        ((W.to("meta"), W, K, K), "w is on meta but k is on cpu; they must be on one device"),
    ],
)
def test_bad_input_is_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(f"wkv: {sentence}")):
        wkv(*arguments)


def test_a_backend_that_cannot_run_is_refused_by_name():
    with pytest.raises(ValueError, match="wkv: backend must be one of"):
        wkv(W, W, K, K, backend="numba")
