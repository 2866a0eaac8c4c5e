"""What the kernels of every operation stand on: tensors as arrays, fresh memory, and work for threads."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from carrel.ops import _memory, decay_attention, linear_scan
from carrel.ops._memory import array, fresh, over_blocks, repeated_as_one


def test_an_array_is_the_tensors_own_memory():
    x = torch.zeros(3, 4)
    array(x)[1, 2] = 5
    assert x[1, 2] == 5
    bits = array(torch.tensor([1.0, -2.0], dtype=torch.bfloat16))
    assert bits.dtype == np.uint16
    assert bits.tolist() == [0x3F80, 0xC000]


def test_an_array_of_a_view_holds_the_values_seen():
    z = torch.randn(4, 3, dtype=torch.complex64)
    assert np.array_equal(array(z.mT.conj()), z.numpy().T.conj())
    assert np.array_equal(array(z.conj().imag), -z.imag.numpy())
    assert np.array_equal(array(z[0, :1].conj().imag), -z[0, :1].imag.numpy())  # a negative view that is contiguous
    assert np.array_equal(array(torch.ones(2, requires_grad=True)), np.ones(2))


@pytest.mark.parametrize("shape", [(3, 5), (2048, 1024)])
def test_fresh_memory_is_an_ordinary_tensor(shape):
    x = fresh(shape, torch.float32)
    assert x.shape == shape
    assert x.is_contiguous()
    assert torch.equal(x.fill_(2), torch.full(shape, 2.0))
    assert not x._is_view()


@pytest.mark.skipif(_memory._libc is None, reason="needs huge pages")
def test_large_memory_begins_where_a_huge_page_does_and_keeps_its_last_number():
    for size in (1 << 20, (1 << 20) + 1, 3_000_001):
        x = fresh((size,), torch.float32)
        assert x.data_ptr() % _memory._PAGE == 0
        assert x.storage_offset() + size <= x.untyped_storage().nbytes() // 4
        x[-1] = 7
        assert x[-1] == 7


def test_a_large_result_may_be_changed_in_place_and_differentiated():
    q, k, v = (torch.rand(1, 8, 2048, 64, requires_grad=True) for _ in range(3))
    o, _ = decay_attention(q, k, v, torch.zeros(1, 8, 2048))
    assert o.storage_offset()  # it is one of the large ones
    o.mul_(2)
    o.sum().backward()
    assert q.grad is not None


def test_what_only_repeats_itself_is_kept_once():
    one = torch.randn(3)
    assert repeated_as_one(one.expand(4, 5, 3)).shape == (1, 1, 3)
    assert repeated_as_one(torch.randn(4, 1, 3).expand(4, 5, 3)).shape == (4, 1, 3)
    assert repeated_as_one(torch.randn(4, 5, 3)).shape == (4, 5, 3)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("batch", "columns", "unit"), [(1, 1000, 1), (5, 1000, 1), (7, 10, 1), (1, 1024, 128), (0, 9, 3)]
)
def test_blocks_cover_everything_once_and_keep_runs_whole(threads, batch, columns, unit):
    seen = np.zeros((batch, columns), dtype=int)
    cuts = []
    lock = threading.Lock()

    def kernel(out, i0, i1, c0, c1):
        with lock:
            out[i0:i1, c0:c1] += 1
            cuts.extend([c0, c1])

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        over_blocks(kernel, batch, columns, unit, 1 << 30, seen)
    finally:
        torch.set_num_threads(before)
    assert (seen == 1).all()
    assert all(c % unit == 0 or c == columns for c in cuts)


def test_a_failure_in_a_thread_is_raised(monkeypatch):
    def kernel(i0, i1, c0, c1):
        if i0:
            raise RuntimeError("in a thread")

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="in a thread"):
            over_blocks(kernel, 2, 1, 1, 1 << 30)
    finally:
        torch.set_num_threads(before)


def test_two_python_threads_may_scan_at_once(monkeypatch):
    """Numba's own parallel loops abort the process here."""
    monkeypatch.setattr(_memory, "_PARALLEL", 0)
    a, b = torch.rand(4, 300, 64), torch.randn(4, 300, 64)
    wanted = linear_scan(a, b)[0]
    found = []

    def work():
        for _ in range(20):
            found.append(torch.equal(linear_scan(a, b)[0], wanted))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [True] * 60


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_child_may_scan_after_its_parent_did():
    """The child inherits the pool but not its threads; numba's OpenMP loops die here."""
    program = """
import os, torch
from carrel.ops import _memory, decay_attention, linear_scan
_memory._PARALLEL = 0
torch.set_num_threads(2)
a, b = torch.rand(4, 50, 64), torch.randn(4, 50, 64)
wanted = linear_scan(a, b)[0]
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(linear_scan(a, b)[0], wanted) else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=120)
