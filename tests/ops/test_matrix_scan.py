"""What `matrix_scan` promises of its values: h_t = A_t h_{t-1} + b_t with a full matrix per token."""

from __future__ import annotations

import itertools

import pytest
import torch

from carrel.ops import linear_scan, matrix_scan

BACKENDS = ["reference", "cpu"]
REAL, COMPLEX = torch.float64, torch.complex128


def problem(n=3, m=None, length=7, batch=2, dtype=REAL, factors=None):
    torch.manual_seed(0)
    columns = () if m is None else (m,)
    A = torch.randn(factors or (batch, length, n, n), dtype=dtype) * 0.6 / n**0.5
    return A, torch.randn(batch, length, n, *columns, dtype=dtype), torch.randn(batch, n, *columns, dtype=dtype)


def loop(A, b, h0, reverse=False):
    """The definition, written out with sums."""
    column = b.ndim == 3
    b, h = (b.unsqueeze(-1), h0.unsqueeze(-1)) if column else (b, h0)
    A = A.expand(*b.shape[:2], b.shape[2], b.shape[2])
    states = [None] * b.shape[1]
    for t in reversed(range(b.shape[1])) if reverse else range(b.shape[1]):
        h = states[t] = (A[:, t].unsqueeze(-1) * h.unsqueeze(1)).sum(2) + b[:, t]
    stacked = torch.stack(states, 1)
    return (stacked.squeeze(-1), h.squeeze(-1)) if column else (stacked, h)


def close(got, wanted, atol=1e-12):
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [REAL, COMPLEX])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("n", "m"), [(1, None), (3, None), (8, None), (9, None), (2, 1), (3, 5), (9, 2)])
def test_h_t_is_a_matrix_times_h_before_plus_b_t(backend, dtype, reverse, n, m):
    A, b, h0 = problem(n, m, dtype=dtype)
    close(matrix_scan(A, b, h0, reverse=reverse, backend=backend), loop(A, b, h0, reverse))


@pytest.mark.parametrize("factors", [(3, 3), (7, 3, 3), (1, 3, 3), (1, 7, 3, 3), (2, 1, 3, 3), (1, 1, 3, 3)])
@pytest.mark.parametrize("m", [None, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_matrix_may_serve_batch_or_time(factors, m, backend):
    A, b, h0 = problem(3, m, factors=factors)
    close(matrix_scan(A, b, h0, backend=backend), loop(A, b, h0))


def test_diagonal_matrices_are_the_linear_scan():
    A, b, h0 = problem(4, length=50)
    a = A.diagonal(dim1=-2, dim2=-1)
    close(matrix_scan(torch.diag_embed(a), b, h0), linear_scan(a, b, h0))


def test_rotation_blocks_are_the_complex_linear_scan():
    torch.manual_seed(0)
    z, w = torch.randn(2, 30, 1, dtype=COMPLEX) * 0.5, torch.randn(2, 30, 1, dtype=COMPLEX)
    real, imaginary = z.real, z.imag
    A = torch.stack([torch.cat([real, -imaginary], -1), torch.cat([imaginary, real], -1)], -2)
    h, _ = matrix_scan(A, torch.view_as_real(w).squeeze(2))
    close([h], [torch.view_as_real(linear_scan(z, w)[0]).squeeze(2)])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("m", [None, 3])
def test_any_cut_gives_the_same_bits(reverse, m):
    A, b, h0 = problem(5, m, length=40)
    whole, last = matrix_scan(A, b, h0, reverse=reverse, backend="cpu")
    cuts = [0, 1, 1, 2, 17, 40]
    pieces = list(itertools.pairwise(cuts))
    state, parts = h0, []
    for start, stop in reversed(pieces) if reverse else pieces:
        part, state = matrix_scan(A[:, start:stop], b[:, start:stop], state, reverse=reverse, backend="cpu")
        parts.append(part)
    assert torch.equal(torch.cat(parts[::-1] if reverse else parts, 1), whole)
    assert torch.equal(state, last)


def test_real_matrices_of_complex_states_and_the_reverse():
    for m in (None, 2):
        A, b, h0 = problem(3, m)
        Z, w, z0 = problem(3, m, dtype=COMPLEX)
        close(matrix_scan(A, w, z0), loop(A.to(COMPLEX), w, z0))
        close(matrix_scan(A, w.conj(), z0), loop(A.to(COMPLEX), w.conj(), z0))
        close(matrix_scan(Z, b, h0), loop(Z, b.to(COMPLEX), h0.to(COMPLEX)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_types_are_float32_sums_rounded_once_even_under_autocast(dtype, backend):
    A, b, h0 = (x.to(dtype) for x in problem(4, length=60, dtype=torch.float32))
    wanted, last = matrix_scan(A.float(), b.float(), h0.float(), backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        h, state = matrix_scan(A, b, h0, backend=backend)
    assert (h.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(h, wanted.to(dtype))
    assert torch.equal(state, last)


def test_no_tokens_return_the_state_that_came():
    A, b, h0 = problem(length=0)
    for backend in BACKENDS:
        h, last = matrix_scan(A, b, h0, backend=backend)
        assert h.shape == b.shape
        assert torch.equal(last, h0)


def test_threads_change_no_bit():
    before = torch.get_num_threads()
    A, b, h0 = problem(4, length=3000, batch=8, dtype=torch.float32)
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(matrix_scan(A, b, h0, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    close(results[1], results[0], atol=0)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"A": torch.ones(2, 7, 3, 4)}, r"A must broadcast to \(2, 7, 3, 3\), got shape \(2, 7, 3, 4\)"),
        ({"A": torch.ones(2, 6, 3, 3)}, r"A must broadcast to \(2, 7, 3, 3\)"),
        ({"A": torch.ones(3)}, r"A must broadcast to \(2, 7, 3, 3\)"),
        ({"A": torch.ones(3, 3, dtype=torch.int32)}, r"A must be floating point or complex, got torch.int32"),
        ({"b": torch.ones(2, 7)}, r"b must be \(batch, length, N\) or \(batch, length, N, M\), got shape \(2, 7\)"),
        ({"h0": torch.ones(2, 4)}, r"h0 must be \(2, 3\), got shape \(2, 4\)"),
        ({"backend": "tree"}, r"backend must be one of auto, reference, cpu, gpu, got 'tree'"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, sentence):
    arguments = {"A": torch.ones(2, 7, 3, 3), "b": torch.ones(2, 7, 3), "h0": torch.ones(2, 3)} | change
    with pytest.raises(ValueError, match=f"^matrix_scan: {sentence}"):
        matrix_scan(**arguments)
