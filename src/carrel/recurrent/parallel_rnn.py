"""Any recurrent cell as a mixer, trained and run along the whole sequence at once."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers.mixer import Mixer

from .cells import Cell
from .deer import DeerInfo, deer


class ParallelRNNState(NamedTuple):
    """y: (batch, state_dim), the cell's state; float32 for inputs of half types."""

    y: Tensor


class ParallelRNN(Mixer):
    r"""A non-linear recurrent layer computed by Newton's method over the whole sequence.

    .. math:: y_t = f(y_{t-1}, x_t) \quad\text{for all t at once: see :func:`carrel.recurrent.deer`}

    Args:
        cell: a :class:`~carrel.recurrent.GRU`, :class:`~carrel.recurrent.LSTM` or
            :class:`~carrel.recurrent.TanhRNN` whose hidden_dim is its input_dim, or a module called as ``cell(y, x)``
            on rows.
        dim: width of x and y, if the cell does not tell it by ``input_dim``.
        state_dim: size of the cell's state, if the cell does not tell it by ``state_dim``; dim if neither does. The
            output is the first ``dim`` numbers of the state.
        min_parallel: shorter pieces go token by token, which is faster for them.
        jac, tol, max_iter, damping, on_fail: as in :func:`carrel.recurrent.deer`.
    x, y: (batch, length, dim).   state: ParallelRNNState(y: (batch, state_dim)), constant size; zeros at the start.
    ``info`` holds the :class:`~carrel.recurrent.DeerInfo` of the last piece, or None if that went token by token.
    Raises ValueError: a cell whose output is not as wide as its input, min_parallel below 1; x or the state of a wrong
        shape. DeerDivergenceError: if so asked by ``on_fail``.
    Cost: see :func:`carrel.recurrent.deer`. Half types and autocast compute in float32.
    Source: arXiv:2309.12252.
    """

    def __init__(
        self,
        cell: nn.Module,
        dim: int | None = None,
        state_dim: int | None = None,
        *,
        jac: str = "auto",
        tol: float | None = None,
        max_iter: int = 100,
        damping: float = 0.0,
        on_fail: str = "sequential",
        min_parallel: int = 64,
    ) -> None:
        super().__init__()
        dim = getattr(cell, "input_dim", None) if dim is None else dim
        if dim is None:
            raise ValueError(f"ParallelRNN wants dim for a cell without input_dim, such as {type(cell).__name__}")
        width = getattr(cell, "hidden_dim", dim)
        own = getattr(cell, "state_dim", None)
        self.dim, self.state_dim = dim, state_dim or own or dim
        if width != dim or self.state_dim < dim or (own is not None and own != self.state_dim):
            raise ValueError(
                f"ParallelRNN wants a cell whose output is as wide as its input, within its state; "
                f"got dim {dim}, an output of {width} and a state of {self.state_dim}"
            )
        if min_parallel < 1:
            raise ValueError(f"ParallelRNN wants min_parallel of at least 1, not {min_parallel}")
        self.cell, self.chunk = cell, min_parallel
        self.options: dict[str, Any] = {
            "jac": jac, "tol": tol, "max_iter": max_iter, "damping": damping, "on_fail": on_fail
        }  # fmt: skip
        self.info: DeerInfo | None = None

    def forward(self, x: Tensor, state: ParallelRNNState | None = None) -> tuple[Tensor, ParallelRNNState]:
        self._check_input(x)
        self._check_state(x, state)
        wide = torch.promote_types(x.dtype, torch.float32)
        y0 = x.new_zeros(x.shape[0], self.state_dim, dtype=wide) if state is None else state.y.to(wide)
        with torch.autocast(x.device.type, enabled=False):
            states = self._states(x.to(wide), y0)
        last = states[:, -1].clone() if states.shape[1] else y0
        return states[..., : self.dim].to(x.dtype), ParallelRNNState(last)

    def _states(self, x: Tensor, y0: Tensor) -> Tensor:
        if x.shape[1] >= self.chunk:
            found: tuple[Tensor, DeerInfo] = deer(self.cell, x, y0, **self.options)
            self.info = found[1]
            return found[0]
        self.info = None
        u = self.cell.prepare(x) if isinstance(self.cell, Cell) else x
        step = self.cell.advance if isinstance(self.cell, Cell) else self.cell
        y, rows = y0, []
        for t in range(u.shape[1]):
            y = step(y, u[:, t])
            rows.append(y)
        return torch.stack(rows, 1) if rows else y0.new_zeros(x.shape[0], 0, self.state_dim)

    def _check_state(self, x: Tensor, state: ParallelRNNState | None) -> None:
        if state is None:
            return
        wanted = (x.shape[0], self.state_dim)
        if not isinstance(state, ParallelRNNState):
            raise ValueError(f"ParallelRNN wants a ParallelRNNState or None as its state, not {type(state).__name__}")
        if tuple(state.y.shape) != wanted or not state.y.is_floating_point():
            raise ValueError(
                f"ParallelRNN wants a real state of shape {wanted}, not {state.y.dtype} of shape {tuple(state.y.shape)}"
            )

    def extra_repr(self) -> str:
        return f"{self.dim}, jac={self.options['jac']!r}, min_parallel={self.chunk}"
