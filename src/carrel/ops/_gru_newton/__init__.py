"""Newton's method along a GRU's whole trajectory, without a Jacobian in memory. Private to `deer`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._memory import array, fresh, over_blocks

_LANES = 4  # rows of the batch side by side in a kernel


def refuses(u: Tensor, W: Tensor) -> str | None:
    """Why the kernels cannot take these, or None."""
    if u.device.type != "cpu" or W.device.type != "cpu":
        return "the kernels are for tensors on the CPU"
    if u.dtype not in (torch.float32, torch.float64) or W.dtype != u.dtype:
        return "the kernels are for float32 or float64"
    return "transforms of torch.func see no kernel" if torch._C._are_functorch_transforms_active() else None


class GRUNewton:
    r"""A guess of all states of a GRU, which `sweep` improves.

    .. math:: y_t = F_t + J_t (y_{t-1} - y^{\text{old}}_{t-1}), \qquad
              J = \mathrm{diag}(z) + \mathrm{diag}(a) W_r + \mathrm{diag}(b) W_z + \mathrm{diag}(c) W_n

    with a, b, c the slopes of h' by what enters the gates: J's rows are three products with weights that all tokens
    share, so what a block of tokens needs fits the first-level cache.

    Args:
        u: (batch, length, 3 D), what the inputs add to the gates r, z, n, input biases included.
        W: (3 D, D); bias: (3 D,), the recurrent ones. y0: (batch, D). All float32 or all float64, on the CPU.
    """

    def __init__(self, u: Tensor, W: Tensor, bias: Tensor, y0: Tensor) -> None:
        from . import cpu

        self._cpu = cpu
        self.batch, self.length, gates = u.shape
        self.size = gates // 3
        self.lanes = _LANES if self.batch > 1 else 1
        self.groups = -(-self.batch // self.lanes)
        block = cpu.WIDTH // self.lanes
        self.tokens = -(-self.length // block) * block
        self.W, self.columns, self.bias = (x.detach().contiguous().flatten() for x in (W, W.detach().T, bias))
        self._u = self._laid_out(u.detach(), 0)
        self._y = [self._laid_out(y0.detach().unsqueeze(1), self.tokens) for _ in range(2)]

    # ---- between (batch, length, components) and groups of (component, token, lane)

    def _laid_out(self, x: Tensor, after: int) -> Tensor:
        """(groups, components, tokens, lanes), zeros where there is nothing; ``after`` more tokens behind x."""
        tokens = x.shape[1] + after if after else self.tokens
        out = fresh((self.groups, x.shape[2], tokens, self.lanes), x.dtype)
        if self.groups * self.lanes > self.batch:
            out[-1].zero_()
        out[:, :, x.shape[1] :].zero_()
        self._write(out[:, :, : x.shape[1]], x)
        return out

    def _write(self, out: Tensor, x: Tensor) -> None:
        whole = self.batch // self.lanes
        rows = whole * self.lanes
        out[:whole].copy_(x[:rows].reshape(whole, self.lanes, *x.shape[1:]).permute(0, 3, 2, 1))
        if rows < self.batch:
            out[-1, :, :, : self.batch - rows].copy_(x[rows:].permute(2, 1, 0))

    def _read(self, x: Tensor, length: int) -> Tensor:
        rows = x[:, :, :length].permute(0, 3, 2, 1).flatten(0, 1)
        return rows[: self.batch].contiguous()

    @property
    def y(self) -> Tensor:
        """(batch, length, D)."""
        return self._read(self._y[0][:, :, 1:], self.length)

    @y.setter
    def y(self, value: Tensor) -> None:
        self._write(self._y[0][:, :, 1 : 1 + self.length], value)

    # ---- the kernels

    def _scratch(self, *shape: int) -> Any:
        return array(self._u.new_empty(self.groups, *shape))

    def _flat(self, x: Tensor) -> Any:
        return array(x.view(self.groups, -1))

    def _run(self, kernel: Any, *args: Any) -> None:
        over_blocks(kernel, self.groups, 1, 1, self._u.numel() * self.size, *args)

    def _relative(self, most: Tensor) -> Tensor:
        change, value = (part.flatten()[: self.batch] for part in most.unbind(1))
        return change / (1 + value)

    def sweep(self, diagonal: bool) -> Tensor:
        """One Newton step; the largest change in each row of the batch, over 1 + its largest value, or NaN."""
        cpu = self._cpu
        most = self._u.new_zeros(self.groups, 2, self.lanes)
        small = not diagonal and self.size <= cpu.SMALL
        self._run(
            cpu.sweep(self.lanes),
            self._flat(self._u),
            *map(array, (self.W, self.columns, self.bias)),
            *map(self._flat, self._y),
            diagonal,
            self._scratch(self.size * cpu.ROWS * cpu.STRIDE),
            self._scratch(self.size**2 * cpu.STRIDE if small else 0),
            self._scratch(self.size * (2 * self.lanes + 3)),
            self._scratch(3 * cpu.STRIDE),
            array(most),
            self.length,
        )
        self._y.reverse()
        return self._relative(most)

    def residual(self) -> Tensor:
        """The largest |f(y_{t-1}, x_t) - y_t| of each row of the batch, over 1 + its largest value."""
        cpu = self._cpu
        most = self._u.new_zeros(self.groups, 2, self.lanes)
        self._run(
            cpu.residual,
            self._flat(self._u),
            *map(array, (self.W, self.bias)),
            self._flat(self._y[0]),
            self._scratch(self.size * cpu.ROWS * cpu.STRIDE),
            self._scratch(3 * cpu.STRIDE),
            array(most),
            self.length,
        )
        return self._relative(most)

    def gradients(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of u, W, bias and y0, from that of y (batch, length, D)."""
        cpu, size = self._cpu, self.size
        given = self._laid_out(g, 0)
        out = fresh((self.groups, 4 * size, self.tokens, self.lanes), g.dtype)
        first = g.new_empty(self.groups, size, self.lanes)
        self._run(
            cpu.adjoint,
            self._flat(self._u),
            *map(array, (self.W, self.bias)),
            *map(self._flat, (self._y[0], given, out)),
            array(first),
            self._scratch(size * cpu.ROWS * cpu.STRIDE),
            self._scratch(size * (self.lanes + 3)),
            self.lanes,
        )
        found = self._y[0][:, :, : self.tokens].flatten(2)
        reached = out[:, : 3 * size].flatten(2)  # r, z, v
        dW = torch.bmm(reached, found.mT).sum(0)
        du = torch.cat([out[:, : 2 * size], out[:, 3 * size :]], 1)
        dy0 = first.permute(0, 2, 1).flatten(0, 1)[: self.batch].contiguous()
        return self._read(du, self.length), dW, reached.sum((0, 2)), dy0

    def attach(self, u: Tensor, W: Tensor, bias: Tensor, y0: Tensor) -> Tensor:
        """The states as they are now, with the gradients of backpropagation through time."""
        return _States.apply(u, W, bias, y0, self)  # type: ignore[no-untyped-call]


def once() -> None:
    """Refuse a backward pass whose result is to be differentiated again: the Jacobians in it carry no graph."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "deer: gradients can be taken once, not differentiated again; for second derivatives run the cell "
            "token by token"
        )


class _States(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, W: Tensor, bias: Tensor, y0: Tensor, newton: GRUNewton) -> Tensor:
        ctx.newton = newton
        ctx.save_for_backward(W, bias)  # so that torch sees whether they were written to in the meantime
        return newton.y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        _ = ctx.saved_tensors
        once()
        return (*ctx.newton.gradients(g), None)
