"""Tensors as kernels see them: memory on huge pages, arrays for numba, pairs of reals for Triton, work for threads."""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

_HUGE = 4 << 20  # bytes from which an output is worth a system call
_PAGE = 2 << 20  # bytes of a huge page
_libc: Any = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE") else None


def fresh(shape: Sequence[int], dtype: torch.dtype, steps: Sequence[int] | None = None) -> Tensor:
    """An uninitialised CPU tensor, on huge pages where it is large; dense, with these strides if not in order.

    A fresh 32 MiB output in 4 KiB pages costs 8192 page faults, 20 ms where the scan itself takes 8; in 2 MiB pages it
    costs 2 ms. It is advice, which a kernel without huge pages ignores. The tensor begins where a huge page does, or
    its first and last megabyte would lie in small ones; what is left over is never touched.
    """
    size = math.prod(shape) * dtype.itemsize
    if _libc is None or size < _HUGE:
        return torch.empty(shape, dtype=dtype) if steps is None else torch.empty_strided(shape, steps, dtype=dtype)
    room = torch.empty(math.prod(shape) + _PAGE // dtype.itemsize, dtype=dtype)
    start = -(-room.data_ptr() // _PAGE) * _PAGE
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), mmap.MADV_HUGEPAGE)
    # set_, because a slice would be a view, which autograd forbids to change in place
    skipped = (start - room.data_ptr()) // dtype.itemsize
    x = torch.empty(0, dtype=dtype)
    layout = (tuple(shape),) if steps is None else (tuple(shape), tuple(steps))
    return x.set_(room.untyped_storage(), skipped, *layout)


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as a contiguous array, without a copy if it can be; bfloat16 as its bits, in uint16."""
    if x.requires_grad:
        x = x.detach()
    if x.is_complex():
        x = x.resolve_conj()
    if not x.is_contiguous():
        x = x.contiguous()
    if x.is_neg():
        x = x.resolve_neg()
    return (x.view(torch.uint16) if x.dtype == torch.bfloat16 else x).numpy()


def repeated_as_one(x: Tensor) -> Tensor:
    """The tensor, its first two axes cut to length 1 where it only repeats itself, as the gradient of a sum does."""
    for dim in (0, 1):
        if x.shape[dim] > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    return x


def triton_memory(x: Tensor) -> Tensor:
    """What Triton is given: contiguous, with complex numbers as pairs of reals."""
    x = x.detach().resolve_conj().resolve_neg().contiguous()
    return torch.view_as_real(x) if x.is_complex() else x


def launch_on(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


_PARALLEL = 1 << 19  # elements: handing work to a thread costs 65 µs, a sixth of what the scan of so many takes
_NARROW = 256  # channels: rows under 1 KiB waste the memory's bandwidth
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a forked child has the object but not its threads


def over_blocks(kernel: Callable[..., None], batch: int, columns: int, unit: int, work: int, *args: Any) -> None:
    """Call ``kernel(*args, i0, i1, c0, c1)`` on blocks of rows and columns, cut at multiples of ``unit``.

    Our own threads and kernels that release the lock, instead of numba's parallel loops: those die after a fork or
    abort when two threads enter them, and compile several times longer. As many threads as torch was told to use.
    """
    global _pool
    workers = torch.get_num_threads() if work >= _PARALLEL else 1
    rows = min(batch, workers)
    sides = min(workers // rows, max(1, columns // max(_NARROW, unit))) if rows else 1
    if rows * sides <= 1:
        kernel(*args, 0, batch, 0, columns)
        return
    i = [batch * k // rows for k in range(rows + 1)]
    c = [columns // unit * k // sides * unit for k in range(sides + 1)]
    blocks = [(i[j], i[j + 1], c[k], c[k + 1]) for j in range(rows) for k in range(sides)]
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="carrel-op")
    pending = [_pool.submit(kernel, *args, *block) for block in blocks[1:]]
    kernel(*args, *blocks[0])
    for task in pending:
        task.result()
