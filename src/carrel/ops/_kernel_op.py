"""What every operation with a kernel needs: its backend's name, the checks all share, and the three routes of a call.

A call takes one of three routes, because each alone is wrong somewhere:

- while compiling, a `torch.library` custom op, which the tracer keeps whole;
- where no gradient can be wanted, the kernel itself, which costs a fifth of an autograd call;
- else a `torch.autograd.Function`, which also knows double backward, forward mode, `torch.func` and `vmap`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

BACKENDS = ("auto", "reference", "cpu", "gpu")
_HALVES = (torch.float16, torch.bfloat16)
_NUMBERS = frozenset({*_HALVES, torch.float32, torch.float64, torch.complex64, torch.complex128})
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def resolve(op: str, backend: str, device: torch.device) -> str:
    """The backend that runs, from its name and the device alone; a named one that cannot is refused, never replaced."""
    if torch._C._are_functorch_transforms_active() and (torch.compiler.is_compiling() or _forward_mode_twice()):
        # Here torch loses the derivative of a kernel, mostly without a word: the tracer sees a custom op, which has no
        # forward mode, and forward mode inside forward mode gives zeros for any autograd.Function.
        if backend in ("cpu", "gpu"):
            raise ValueError(f'{op}: torch cannot carry this transform through a kernel; use backend="reference"')
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
    return torch.float32 if dtype in _HALVES else dtype


def _forward_mode_twice() -> bool:
    levels = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in levels) > 1


def kernels(package: str | None, backend: str) -> Any:
    """The module of an operation's folder that holds a backend's kernels, loaded when first used: numba takes 0.7 s."""
    return importlib.import_module(f"{package}.{backend}")


def check_tensors(op: str, **given: Tensor | None) -> None:
    """Refuse what is not a tensor of numbers, or not on the device of ``b``, in one sentence."""
    home = given["b"]
    for name, x in given.items():
        if x is None and name != "b":
            continue
        if not isinstance(x, Tensor):
            raise ValueError(f"{op}: {name} must be a tensor, got {type(x).__name__}")
        if x.dtype not in _NUMBERS:
            raise ValueError(f"{op}: {name} must be floating point or complex, got {x.dtype}")
        if isinstance(home, Tensor) and x.device != home.device:
            raise ValueError(f"{op}: {name} is on {x.device} but b is on {home.device}; they must be on one device")


def joint_dtype(a: Tensor, b: Tensor, state: Tensor | None) -> torch.dtype:
    """The type of a recurrence's result. A state of float32 leaves half types alone; one of float64 does not."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    wide = wide_dtype(dtype)
    with_state = wide if state is None else torch.promote_types(wide, state.dtype)
    return dtype if with_state == wide else with_state


# ------------------------------------------------------------------------------------------------------------- routes


def _transformed() -> bool:
    """Whether a functorch transform or a forward-mode level is active: tensors may be wrappers without memory."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


_Dims = tuple[int | None, ...]


class KernelOp:
    """One operation whose forward and backward are kernels.

    The author gives plain functions over tensors and constants, tensors first; the first four are annotated, since the
    custom ops' schemas are read off them:

    - ``forward(*tensors, *constants) -> outputs`` and ``backward(*kept, *gradients, *constants) -> gradients of
      tensors``: the kernels, which return fresh tensors, never an argument or a view of one;
    - ``forward_like``, ``backward_like``: the same, but only empty tensors of the right shape and type;
    - ``keep(*tensors, *outputs) -> kept``: what backward and tangent need;
    - ``formula``: like ``backward``, in operations that torch can differentiate again;
    - ``tangent(*kept, *tangents, *constants) -> tangents of outputs``: likewise; a tangent that is zero comes as None;
    - ``fold(size, dims, *tensors, *constants) -> outputs``: a batch of problems at once (`vmap`), on axis 0 of outputs.
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
        forward_op.register_vmap(lambda info, dims, *args: self.batched(info, dims, *args))
        self._function = _function_of(self)

    def __call__(self, *args: Any) -> tuple[Tensor, ...]:
        """The outputs, by whichever route this call must take."""
        if torch.compiler.is_compiling():
            return self._traced[""](*args)
        if _transformed() or (torch.is_grad_enabled() and any(x.requires_grad for x in args[: self.tensors])):
            return self._function.apply(*args)
        return self.run("", *args)

    def run(self, which: str, *args: Any) -> tuple[Tensor, ...]:
        """The kernel or, under a dispatch mode such as fake tensors or a tracer, the custom op, which the mode sees."""
        table = self._traced if torch._C._len_torch_dispatch_stack() else self._kernels
        return table[which](*args)

    def batched(self, info: Any, dims: _Dims, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """What `vmap` asks for: the outputs, and which of their axes is the mapped one."""
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
        def vmap(info: Any, dims: _Dims, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
            return op.batched(info, dims, *args)

    Function.__name__ = Function.__qualname__ = op.name
    return Function


def lead(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The tensor with the axis that `vmap` maps over in front; one that is not mapped is seen ``size`` times."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
