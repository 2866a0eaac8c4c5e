"""What every operation with a kernel needs: the three routes of a call, and tensors as numba sees them.

A call takes one of three routes, because each alone is wrong somewhere:

- while compiling, a `torch.library` custom op, which the tracer keeps whole;
- where no gradient can be wanted, the kernel itself, which costs a fifth of an autograd call;
- else a `torch.autograd.Function`, which also knows double backward, forward mode, `torch.func` and `vmap`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

BACKENDS = ("auto", "reference", "cpu", "gpu")
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The backend that runs, from its name and the device alone; a named one that cannot is refused, never replaced."""
    if torch._C._are_functorch_transforms_active() and (torch.compiler.is_compiling() or _forward_mode_twice()):
        # here torch loses the derivative of a kernel, mostly without a word: the tracer sees a custom op, which has no forward mode, and
        # forward mode inside forward mode gives zeros for any autograd.Function
        if backend in ("cpu", "gpu"):
            raise ValueError(
                f'{op}: torch cannot carry this torch.func transform through a kernel; use backend="reference"'
            )
        return "reference"
    if backend == "auto":
        return {"cpu": "cpu", "cuda": "gpu" if _HAS_TRITON else "reference"}.get(device.type, "reference")
    if backend == "cpu" and device.type != "cpu":
        raise ValueError(f'{op}: backend="cpu" needs tensors on the CPU, these are on {device}')
    if backend == "gpu":
        if not _HAS_TRITON:
            raise ValueError(f'{op}: backend="gpu" needs Triton, which is not installed (pip install "carrel[gpu]")')
        if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            raise ValueError(
                f'{op}: backend="gpu" needs tensors on a CUDA device, these are on {device}; '
                "Triton's interpreter runs them there only if TRITON_INTERPRET=1 was set before Triton was imported"
            )
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    return backend


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are kept in: float32 for the half types, else the type itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _forward_mode_twice() -> bool:
    levels = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1


# ------------------------------------------------------------------------------------------------------------- routes


def _transformed() -> bool:
    """Whether a functorch transform or a forward-mode level is active: tensors may be wrappers without memory."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class KernelOp:
    """One operation whose forward and backward are kernels.

    The author gives plain functions over tensors and constants (tensors first), annotated, since the custom op's schema is read off them:

    - ``forward(*tensors, *constants) -> outputs`` and ``backward(*kept, *gradients, *constants) -> gradients of tensors``: the kernels;
    - ``forward_like``, ``backward_like``: the same, but only empty tensors of the right shape and type;
    - ``keep(*tensors, *outputs) -> kept``: what backward and tangent need;
    - ``formula``: like ``backward``, in operations that torch can differentiate again;
    - ``tangent(*kept, *tangents, *constants) -> tangents of outputs``: likewise; a tangent that is zero comes as None;
    - ``fold(size, dims, *tensors, *constants) -> outputs``: the operation over a batch of problems, which becomes axis 0 of each output.
    """

    def __init__(
        self,
        name: str,
        tensors: int,
        *,
        forward: Callable[..., tuple[Tensor, ...]],
        backward: Callable[..., tuple[Tensor, ...]],
        forward_like: Callable[..., tuple[Tensor, ...]],
        backward_like: Callable[..., tuple[Tensor, ...]],
        keep: Callable[..., tuple[Tensor, ...]],
        formula: Callable[..., tuple[Tensor, ...]],
        tangent: Callable[..., tuple[Tensor, ...]],
        fold: Callable[..., tuple[Tensor, ...]],
    ) -> None:
        self.name, self.tensors, self.keep = name, tensors, keep
        self.formula, self.tangent, self.fold = formula, tangent, fold
        self._kernels = {"": forward, "_backward": backward}
        forward_op = torch.library.custom_op(f"carrel::{name}", forward, mutates_args=())
        backward_op = torch.library.custom_op(f"carrel::{name}_backward", backward, mutates_args=())
        forward_op.register_fake(forward_like)
        backward_op.register_fake(backward_like)
        self._traced = {"": getattr(torch.ops.carrel, name).default}
        self._traced["_backward"] = getattr(torch.ops.carrel, f"{name}_backward").default

        def remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            ctx.save_for_backward(*keep(*inputs[:tensors], *output))
            ctx.constants = inputs[tensors:]

        def differentiate(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
            found = self._traced["_backward"](*ctx.saved_tensors, *gradients, *ctx.constants)
            return (*found, *(None for _ in ctx.constants))

        forward_op.register_autograd(differentiate, setup_context=remember)
        forward_op.register_vmap(lambda info, dims, *args: self._batched(info, dims, *args))
        self._function = _function_of(self)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The outputs, by whichever route this call must take."""
        if torch.compiler.is_compiling():
            return self._traced[""](*args)
        if _transformed() or (torch.is_grad_enabled() and any(x.requires_grad for x in args[: self.tensors])):
            return self._function.apply(*args)  # type: ignore[no-any-return]
        return self.run("", *args)

    def run(self, which: str, *args: Any) -> tuple[Tensor, ...]:
        """The kernel; or, under a dispatch mode (fake tensors, counters, tracers), the custom op that the mode can see."""
        table = self._traced if torch._C._len_torch_dispatch_stack() else self._kernels
        return table[which](*args)

    def _batched(
        self, info: Any, dims: tuple[int | None, ...], *args: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        outputs = self.fold(info.batch_size, dims[: self.tensors], *args)
        return outputs, (0,) * len(outputs)


def _function_of(op: KernelOp) -> type[torch.autograd.Function]:
    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> tuple[Tensor, ...]:
            return op.run("", *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            kept = op.keep(*inputs[: op.tensors], *output)
            ctx.save_for_backward(*kept)
            ctx.save_for_forward(*kept)
            ctx.set_materialize_grads(False)
            ctx.constants = inputs[op.tensors :]
            ctx.outputs = [(x.shape, x.dtype, x.device) for x in output]

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
            # a missing gradient is one zero seen everywhere, not a tensor of zeros
            arrived = [
                torch.zeros((), dtype=dtype, device=device).expand(shape) if x is None else x
                for x, (shape, dtype, device) in zip(gradients, ctx.outputs, strict=True)
            ]
            again = torch.is_grad_enabled()  # create_graph=True, or a functorch transform
            args = (*ctx.saved_tensors, *arrived, *ctx.constants)
            found = op.formula(*args) if again else op.run("_backward", *args)
            return (*found, *(None for _ in ctx.constants))

        @staticmethod
        def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
            return op.tangent(*ctx.saved_tensors, *tangents[: op.tensors], *ctx.constants)

        @staticmethod
        def vmap(info: Any, dims: tuple[int | None, ...], *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            return op._batched(info, dims, *args)

    Function.__name__ = Function.__qualname__ = op.name
    return Function


def lead(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the axis that `vmap` maps over in front; one that is not mapped is seen ``size`` times."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


# ------------------------------------------------------------------------------------------------- tensors for kernels

_HUGE = 4 << 20  # bytes from which an output is worth a system call
_libc: Any = ctypes.CDLL(None) if sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE") else None


def fresh(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialised CPU tensor, on huge pages where it is large.

    A fresh 32 MiB output in 4 KiB pages costs 8192 page faults, 20 ms where the scan itself takes 8; in 2 MiB pages it costs 2 ms.
    """
    x = torch.empty(shape, dtype=dtype)
    size = x.numel() * x.element_size()
    if _libc is not None and size >= _HUGE:
        start = x.data_ptr()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        _libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(start + size - first), mmap.MADV_HUGEPAGE)
    return x


def array(x: Tensor) -> np.ndarray[Any, Any]:
    """The tensor's memory as a contiguous array without a copy if it can be; bfloat16 as uint16, which is all numba can read."""
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
    """The tensor with each of its first two axes kept at length 1 where it only repeats itself (stride 0, as from a sum)."""
    for dim in (0, 1):
        if x.shape[dim] > 1 and x.stride(dim) == 0:
            x = x.narrow(dim, 0, 1)
    return x


_PARALLEL = (
    1 << 18
)  # elements: one more thread costs about 50 µs to hand out, a quarter of this kernel's time at this size
_NARROW = 256  # channels: rows under 1 KiB waste the memory's bandwidth
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a forked child has the object but not its threads


def over_blocks(kernel: Callable[..., None], batch: int, columns: int, unit: int, work: int, *args: Any) -> None:
    """Call ``kernel(*args, i0, i1, c0, c1)`` on blocks of rows and columns (cut at multiples of ``unit``) that cover everything.

    Our own threads and kernels that release the lock, instead of numba's parallel loops: those die after a fork or abort when two
    threads enter them, and compile several times longer. As many threads as torch was told to use.
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
