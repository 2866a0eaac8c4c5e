"""What `linear_scan` promises of its values: h_t = a_t h_{t-1} + b_t, in every shape, type and cut."""

from __future__ import annotations

import itertools

import pytest
import torch

from carrel.ops import linear_scan

BACKENDS = ["reference", "cpu"]
REAL, COMPLEX = torch.float64, torch.complex128


def problem(length=7, batch=2, channels=(3,), dtype=REAL, factors=None, seed=0):
    """Random a (inside the unit circle), b and h0."""
    torch.manual_seed(seed)
    shape = (batch, length, *channels)
    a = torch.randn(shape if factors is None else factors, dtype=dtype)
    a = a / (1 + a.abs())
    return a, torch.randn(shape, dtype=dtype), torch.randn(batch, *channels, dtype=dtype)


def loop(a, b, h0, reverse=False):
    """The definition, written out."""
    a = a.expand(b.shape)
    h, states = h0, [None] * b.shape[1]
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = states[t] = a[:, t] * h + b[:, t]
    return (torch.stack(states, 1) if states else b), h


def close(got, wanted, atol=1e-12):
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 7, 130])
def test_h_t_is_a_t_times_h_before_plus_b_t(backend, dtype, reverse, length):
    a, b, h0 = problem(length, dtype=dtype)
    close(linear_scan(a, b, h0, reverse=reverse, backend=backend), loop(a, b, h0, reverse))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("channels", "factors"),
    [
        ((3,), (3,)),  # one factor per channel, the same for every token
        ((3,), (1, 1, 3)),
        ((3,), (2, 1, 3)),
        ((3,), (1, 7, 3)),  # shared by the batch
        ((3,), (7, 3)),
        ((3,), (2, 7, 1)),
        ((3,), ()),
        ((4, 20), (2, 7, 4, 1)),  # one factor per short head, which is copied
        ((4, 64), (2, 7, 4, 1)),  # one factor per long head, which is not
        ((4, 64), (4, 1)),
        ((4, 20), (2, 7, 1, 1)),
        ((4, 20), (2, 7, 1, 20)),
        ((4, 20), (1, 7, 4, 20)),
        ((2, 3, 4), (2, 7, 2, 1, 4)),
        ((), ()),
        ((), (2, 7)),
        ((), (7,)),
    ],
)
def test_a_broadcasts_as_in_torch(channels, factors, reverse):
    a, b, h0 = problem(channels=channels, factors=factors)
    close(linear_scan(a, b, h0, reverse=reverse, backend="cpu"), loop(a, b, h0, reverse))


def test_without_h0_the_state_before_is_zero():
    a, b, h0 = problem()
    close(linear_scan(a, b, backend="cpu"), loop(a, b, torch.zeros_like(h0)))


def test_a_scan_of_reversed_time_is_reverse_true_reversed():
    a, b, h0 = problem(40)
    h, last = linear_scan(a.flip(1), b.flip(1), h0, backend="cpu")
    close(linear_scan(a, b, h0, reverse=True, backend="cpu"), (h.flip(1), last), atol=0)


def test_factor_0_gives_b_and_factor_1_gives_the_running_sum():
    _, b, h0 = problem(20)
    close(linear_scan(torch.zeros_like(b), b, h0), (b, b[:, -1]), atol=0)
    sums = b.cumsum(1)
    close(linear_scan(torch.ones_like(b), b), (sums, sums[:, -1]))


def test_the_scan_is_linear_in_b_and_h0():
    a, b, h0 = problem(30)
    _, b2, h02 = problem(30, seed=1)
    one, two = linear_scan(a, b, h0), linear_scan(a, b2, h02)
    sums = [2 * x - 3 * y for x, y in zip(one, two, strict=True)]
    close(linear_scan(a, 2 * b - 3 * b2, 2 * h0 - 3 * h02), sums)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, REAL, torch.complex64])
@pytest.mark.parametrize("reverse", [False, True])
def test_any_cut_gives_the_same_bits(dtype, reverse):
    """Also through single tokens and empty pieces, and long enough that bfloat16 is widened in several pieces."""
    length, channels = 1500, (200,)
    a, b, h0 = problem(length, channels=channels, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    a, b = a.to(dtype), b.to(dtype)
    whole, last = linear_scan(a, b, h0, reverse=reverse, backend="cpu")
    cuts = [0, 1, 2, 2, 655, 656, 1300, length]
    pieces = list(itertools.pairwise(cuts))
    state, parts = h0, []
    for start, stop in reversed(pieces) if reverse else pieces:
        cut = slice(start, stop)
        part, state = linear_scan(a[:, cut], b[:, cut], state, reverse=reverse, backend="cpu")
        parts.append(part)
    assert torch.equal(torch.cat(parts[::-1] if reverse else parts, 1), whole)
    assert torch.equal(state, last)


def test_zeros_in_a_separate_packed_sequences_exactly():
    a, b, _ = problem(30)
    a[:, [0, 11, 12]] = 0
    packed, _ = linear_scan(a, b, backend="cpu")
    for start, stop in [(0, 11), (11, 12), (12, 30)]:
        alone, _ = linear_scan(a[:, start:stop], b[:, start:stop], backend="cpu")
        assert torch.equal(packed[:, start:stop], alone)


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("factors", [(2, 0, 3), (3,)])
def test_no_tokens_return_the_state_that_came(backend, factors):
    a, b, h0 = problem(0, factors=factors)
    h, last = linear_scan(a, b, h0, backend=backend)
    assert h.shape == (2, 0, 3)
    assert torch.equal(last, h0)
    assert last is not h0


@pytest.mark.parametrize("shape", [(0, 5, 3), (2, 5, 0)])
def test_empty_batches_and_no_channels_are_empty_results(shape):
    h, last = linear_scan(torch.ones(shape), torch.ones(shape))
    assert h.shape == shape
    assert last.shape == (shape[0], shape[2])


def test_float32_is_within_8_eps_of_a_float64_loop():
    a, b, h0 = problem(4000, channels=(16,))
    wanted, last = loop(a, b, h0)
    got, state = linear_scan(a.float(), b.float(), h0.float(), backend="cpu")
    bound = 8 * torch.finfo(torch.float32).eps * wanted.abs().max().item()
    wanted32 = loop(a.float().double(), b.float().double(), h0.float().double())
    torch.testing.assert_close(got.double(), wanted32[0], atol=bound, rtol=0)
    torch.testing.assert_close(state.double(), wanted32[1], atol=bound, rtol=0)
    assert last.dtype == REAL


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("factors", [None, (1, 1, 300)])
def test_half_types_are_float32_sums_rounded_once(backend, dtype, reverse, factors):
    a, b, h0 = problem(1000, channels=(300,), dtype=torch.float32, factors=factors)
    a, b = a.to(dtype), b.to(dtype)
    h, last = linear_scan(a, b, h0, reverse=reverse, backend=backend)
    wide, wide_last = linear_scan(a.float(), b.float(), h0, reverse=reverse, backend=backend)
    assert h.dtype == dtype
    assert last.dtype == torch.float32
    assert torch.equal(h, wide.to(dtype))
    assert torch.equal(last, wide_last)


def test_types_promote_and_a_wide_state_keeps_half_types():
    a, b, h0 = problem(dtype=torch.float32)
    assert linear_scan(a.bfloat16(), b)[0].dtype == torch.float32
    assert linear_scan(a, b.double())[0].dtype == torch.float64
    h, last = linear_scan(a.half(), b.half(), h0)
    assert (h.dtype, last.dtype) == (torch.float16, torch.float32)
    h, last = linear_scan(a, b, h0.double())
    assert (h.dtype, last.dtype) == (torch.float64, torch.float64)
    assert linear_scan(a, b, h0.cfloat())[0].dtype == torch.complex64


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("factors", [None, (3,)])
def test_real_factors_of_complex_states_and_the_reverse(backend, factors):
    a, b, h0 = problem(factors=factors)
    z, w, z0 = problem(factors=factors, dtype=COMPLEX)
    close(linear_scan(a, w, z0, backend=backend), loop(a.to(COMPLEX), w, z0))
    close(linear_scan(z, b, z0, backend=backend), loop(z, b.to(COMPLEX), z0))
    close(linear_scan(z, b, h0, backend=backend), loop(z, b.to(COMPLEX), h0.to(COMPLEX)))


def test_strided_conjugated_and_negated_tensors_are_read_as_they_are():
    a, b, h0 = problem(6, dtype=COMPLEX)
    wide = torch.randn(2, 3, 12, dtype=COMPLEX)
    strided = wide[:, :, ::2].transpose(1, 2)
    assert not strided.is_contiguous()
    close(linear_scan(a.conj(), strided, h0.conj(), backend="cpu"), loop(a.conj(), strided, h0.conj()))
    close(linear_scan(a.real, b.conj(), h0.conj()), loop(a.real + 0j, b.conj(), h0.conj()))
    negated = b.conj().imag
    assert negated.is_neg()
    close(linear_scan(a.real, negated, h0.real, backend="cpu"), loop(a.real, negated, h0.real))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("factors", [None, (4,)])
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
def test_one_token_by_auto_equals_the_kernel(batch, factors, dtype):
    a, b, h0 = problem(1, batch=batch, channels=(4,), factors=factors, dtype=dtype)
    with torch.no_grad():
        close(linear_scan(a, b, h0), linear_scan(a, b, h0, backend="cpu"), atol=1e-15)
    close(linear_scan(a, b, h0, reverse=True), loop(a, b, h0))


def test_growing_factors_stay_finite_as_long_as_the_states_do():
    """A product of factors would overflow; token by token nothing does."""
    a = torch.full((1, 2000, 1), 2.0, dtype=REAL)
    a[:, ::2] = 1e-300
    h, last = linear_scan(a, torch.ones_like(a))
    assert torch.isfinite(h).all()
    close((h, last), loop(a, torch.ones_like(a), torch.zeros(1, 1, dtype=REAL)))


def test_nan_and_infinity_pass_through_and_end_at_a_reset():
    a = torch.full((1, 6, 1), 0.5)
    b = torch.ones(1, 6, 1)
    b[0, 1], b[0, 4] = float("nan"), float("inf")
    a[0, 3] = 0
    b_reset, _ = linear_scan(a, b, backend="cpu")
    assert b_reset.isnan().flatten().tolist() == [False, True, True, True, True, True]
    assert linear_scan(a[:, 4:], b[:, 4:], backend="cpu")[0].isinf().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_no_bit(threads):
    before = torch.get_num_threads()
    a, b, h0 = problem(700, batch=1, channels=(1000,), dtype=torch.float32)
    try:
        torch.set_num_threads(1)
        wanted = linear_scan(a, b, h0, backend="cpu")
        torch.set_num_threads(threads)
        got = linear_scan(a, b, h0, backend="cpu")
    finally:
        torch.set_num_threads(before)
    close(got, wanted, atol=0)


def test_autocast_changes_nothing():
    a, b, h0 = problem(dtype=torch.float32)
    wanted = linear_scan(a, b, h0, backend="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        close(linear_scan(a, b, h0, backend="cpu"), wanted, atol=0)
        h, last = linear_scan(a.bfloat16(), b.bfloat16(), h0)
    assert (h.dtype, last.dtype) == (torch.bfloat16, torch.float32)


def test_inference_mode_gives_the_same():
    a, b, h0 = problem()
    wanted = linear_scan(a, b, h0, backend="cpu")
    with torch.inference_mode():
        close(linear_scan(a, b, h0, backend="cpu"), wanted, atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"a": torch.ones(2, 6, 3)}, r"a must broadcast to b, of shape \(2, 7, 3\), got shape \(2, 6, 3\)"),
        ({"a": torch.ones(4)}, r"a must broadcast to b, of shape \(2, 7, 3\), got shape \(4,\)"),
        ({"a": torch.ones(1, 2, 7, 3)}, r"a must broadcast to b"),
        ({"a": torch.ones(3, dtype=torch.int64)}, r"a must be floating point or complex, got torch.int64"),
        ({"a": 0.9}, r"a must be a tensor, got float"),
        ({"b": torch.ones(7)}, r"b must be \(batch, length, \*channels\), got shape \(7,\)"),
        ({"b": torch.ones(2, 7, 3, dtype=torch.bool)}, r"b must be floating point or complex, got torch.bool"),
        ({"h0": torch.ones(3)}, r"h0 must be \(batch, \*channels\) = \(2, 3\), got shape \(3,\)"),
        ({"h0": torch.ones(2, 3, device="meta")}, r"h0 is on meta but b is on cpu"),
        ({"backend": "numba"}, r"backend must be one of auto, reference, cpu, gpu, got 'numba'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, sentence):
    arguments = {"a": torch.ones(2, 7, 3), "b": torch.ones(2, 7, 3), "h0": torch.ones(2, 3)} | change
    with pytest.raises(ValueError, match=f"^linear_scan: {sentence}"):
        linear_scan(**arguments)


@pytest.mark.parametrize("h0", [torch.ones(3), torch.ones(2, 3), torch.ones(1, 4), torch.ones(1, 1, 3)])
def test_the_short_way_for_one_token_refuses_the_same(h0):
    with pytest.raises(ValueError, match=r"^linear_scan: h0 must be \(batch, \*channels\) = \(1, 3\)"):
        linear_scan(torch.ones(1, 1, 3), torch.ones(1, 1, 3), h0)


def test_a_named_backend_never_falls_back():
    meta = torch.ones(2, 7, 3, device="meta")
    with pytest.raises(ValueError, match='backend="cpu" needs tensors on the CPU, these are on meta'):
        linear_scan(meta, meta, backend="cpu")
    h, last = linear_scan(meta, meta)  # by itself it takes the reference, which runs on any device
    assert (h.shape, last.shape) == ((2, 7, 3), (2, 3))


def test_the_gpu_backend_is_refused_on_the_cpu(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r'^linear_scan: backend="gpu" needs'):
        linear_scan(torch.ones(1, 2, 3), torch.ones(1, 2, 3), backend="gpu")
