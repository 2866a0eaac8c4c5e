"""A cell over a whole sequence: steps and Jacobians of all tokens at once, Newton sweeps, and the adjoint.

Jacobians are made for some tokens at a time and used at once, so that no more than `_PIECE` of their entries exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from carrel.ops import linear_scan, matrix_scan
from carrel.ops._gru_newton import once

from .cells import GRU, Cell

_PIECE = 1 << 22  # entries of a Jacobian: 16 MiB in float32, which some caches hold
_PROBED = 16  # rows on which a cell must answer twice the same

Step = Callable[[Tensor, Tensor], Tensor]


class Sweeps(Protocol):
    """A trajectory and one way to improve it."""

    y: Tensor

    def sweep(self, diagonal: bool) -> Tensor:
        """Replace ``y`` by its Newton step; the largest change in each row of the batch, over 1 + its largest value."""


class Recurrence:
    """A cell, the inputs it is fed and the state it starts from.

    ``u`` is what the cell takes per token: (batch, length, ...); it carries the inputs' graph; y0 does not.
    """

    def __init__(self, cell: Any, x: Tensor, y0: Tensor, params: Any) -> None:
        self.y0, self.size = y0, y0.shape[1]
        self.kernels: Any = None
        self.cell = cell if isinstance(cell, Cell) and params is None else None
        if self.cell is not None:
            self.u = self.cell.prepare(x)
            self.step: Step = self.cell.advance
            if isinstance(self.cell, GRU) and x.numel():
                self.kernels = self.cell.newton(self.u, y0)
            return
        self.u, self.step = x, _step_of(cell, params)
        given = getattr(cell, "forward_with_jacobian", None) if params is None else None
        self._jacobian = _jacobian_of(self.step) if given is None else given
        self._probe()

    def _probe(self) -> None:
        """Refuse a cell whose shapes are wrong, that draws random numbers, or whose rows meet."""
        rows = min(_PROBED, self.u.shape[0] * self.u.shape[1])
        u = self.u.detach().flatten(0, 1)[:rows]
        if rows == 0:
            return
        with torch.no_grad():
            y = self.y0.repeat(rows, 1)[:rows]
            drawn = torch.get_rng_state()
            first = self.step(y, u)
            if not isinstance(first, Tensor) or first.shape != y.shape or first.dtype != y.dtype:
                came = (
                    f"{first.dtype} of shape {tuple(first.shape)}"
                    if isinstance(first, Tensor)
                    else type(first).__name__
                )
                raise ValueError(
                    f"deer: the cell must return states like those it is given, {y.dtype} of shape {tuple(y.shape)}, "
                    f"not {came}"
                )
            if not torch.equal(drawn, torch.get_rng_state()) or not torch.equal(
                first.nan_to_num(), self.step(y, u).nan_to_num()
            ):
                raise ValueError(
                    "deer: the cell draws random numbers, so two evaluations of it differ; "
                    "put dropout into evaluation mode, or draw the noise beforehand and feed it with x"
                )
            alone = torch.cat([self.step(y[i : i + 1], u[i : i + 1]) for i in range(rows)])
            apart = (alone - first).abs().nan_to_num().max()
            if apart > torch.finfo(y.dtype).eps ** 0.5 * (1 + first.abs().nan_to_num().max()):
                raise ValueError(
                    "deer: the cell must treat every row by itself, but a row fed alone comes out differently "
                    f"(by {float(apart):.1e})"
                )

    # ---- all tokens at once

    def before(self, y: Tensor) -> Tensor:
        """y_0 .. y_{L-1}: the state that each token finds."""
        return torch.cat([self.y0.unsqueeze(1), y], 1)[:, : y.shape[1]]

    def steps(self, before: Tensor) -> Tensor:
        """f(y_{t-1}, x_t) for every token, with its graph."""
        return self.step(before.flatten(0, 1), self.u.flatten(0, 1)).view(before.shape)

    def linearize(self, before: Tensor, start: int, diagonal: bool) -> tuple[Tensor, Tensor]:
        """f and ∂f/∂y for the tokens from ``start`` on that ``before`` (batch, some, D) covers."""
        y = before.flatten(0, 1)
        u = self.u[:, start : start + before.shape[1]].detach().flatten(0, 1)
        if self.cell is not None:
            f, J = (self.cell.linearize_diagonal if diagonal else self.cell.linearize)(y, u)
        else:
            f, J = self._jacobian(y, u)
            if f.shape != y.shape or J.shape != (*y.shape, y.shape[1]):
                raise ValueError(
                    f"deer: forward_with_jacobian must return {tuple(y.shape)} and {(*y.shape, y.shape[1])}, "
                    f"not {tuple(f.shape)} and {tuple(J.shape)}"
                )
            if diagonal:
                J = J.diagonal(dim1=-2, dim2=-1)
        return f.reshape(before.shape), J.reshape(*before.shape[:2], *J.shape[1:])

    def pieces(self, length: int, diagonal: bool) -> Iterator[tuple[int, int]]:
        """Where to cut ``length`` tokens so that no Jacobian is larger than `_PIECE`."""
        own = self.cell is not None and diagonal
        tokens = max(1, _PIECE // (self.y0.shape[0] * self.size ** (1 if own else 2) or 1))
        return ((start, min(start + tokens, length)) for start in range(0, length, tokens))

    # ---- what is built on them

    @torch.no_grad()
    def sequential(self) -> Tensor:
        """Every state, token by token."""
        y, found, u = self.y0, [], self.u.detach()
        for t in range(u.shape[1]):
            y = self.step(y, u[:, t])
            found.append(y)
        return torch.stack(found, 1)

    def newton(self, init: Tensor) -> Sweeps:
        """Newton steps from a guess, by the cell's own kernels if it has some here."""
        if self.kernels is None:
            return _Newton(self, init)
        self.kernels.y = init
        kernels: Sweeps = self.kernels
        return kernels

    def residual(self, y: Tensor) -> float:
        """The largest |f(y_{t-1}, x_t) - y_t|, relative to its row."""
        with torch.no_grad():
            if self.kernels is not None:
                self.kernels.y = y
                return float(self.kernels.residual().max())
            return float(relative(self.steps(self.before(y)) - y, y).max())

    def attach(self, y: Tensor, y0: Tensor) -> tuple[Tensor, float]:
        """The trajectory y with its gradients, and its residual."""
        if self.kernels is not None and isinstance(self.cell, GRU):
            residual, given = self.residual(y), (self.u, *self.cell.shared(self.u.dtype), y0)
            wanted = torch.is_grad_enabled() and any(t.requires_grad for t in given)
            return (self.kernels.attach(*given) if wanted else y), residual
        F = self.steps(torch.cat([y0.unsqueeze(1), y[:, :-1]], 1))
        residual = float(relative(F.detach() - y, y).max())
        return (_Implicit.apply(F, y, self) if F.requires_grad else y), residual  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def adjoint(self, y: Tensor, g: Tensor) -> Tensor:
        r"""λ_t = g_t + J_{t+1}^T λ_{t+1}: what a change of f at token t does to the loss, (batch, length, D)."""
        before, length = self.before(y), y.shape[1]
        lam = torch.empty_like(g)
        lam[:, -1] = carry = g[:, -1]
        for start, end in reversed(list(self.pieces(length - 1, False))):
            _, J = self.linearize(before[:, start + 1 : end + 1], start + 1, False)
            lam[:, start:end], carry = matrix_scan(J.mT, g[:, start:end], carry, reverse=True)
        return lam

    @torch.no_grad()
    def growth(self, tokens: int = 256) -> float:
        """log10 of the most that a small change of one state among the first tokens has grown at a later one."""
        tokens = min(tokens, self.u.shape[1])
        y, total, lowest, most = self.y0, torch.zeros(len(self.y0)), torch.zeros(len(self.y0)), 0.0
        change = torch.ones_like(y)
        for t in range(tokens):
            y, J = (part.squeeze(1) for part in self.linearize(y.unsqueeze(1), t, False))
            change = (J @ change.unsqueeze(-1)).squeeze(-1)
            size = change.norm(dim=1).clamp_min(torch.finfo(y.dtype).tiny)
            change = change / size.unsqueeze(1)
            total = total + size.log10().cpu()
            most = max(most, float((total - lowest).max()))
            lowest = torch.minimum(lowest, total)
        return most


class _Newton:
    """The sweeps in torch: y_t = F_t + J_t (y_{t-1} - y_{t-1} before), where F_t is exact once y_{t-1} is."""

    def __init__(self, recurrence: Recurrence, y: Tensor) -> None:
        self.recurrence, self.y = recurrence, y

    def sweep(self, diagonal: bool) -> Tensor:
        of, length = self.recurrence, self.y.shape[1]
        before, y = of.before(self.y), torch.empty_like(self.y)
        change = torch.zeros_like(of.y0)
        for start, end in of.pieces(length, diagonal):
            F, J = of.linearize(before[:, start:end], start, diagonal)
            scan = linear_scan if diagonal else matrix_scan
            changes, last = scan(J, F - self.y[:, start:end], change)
            earlier = torch.cat([change.unsqueeze(1), changes[:, :-1]], 1)
            y[:, start:end] = F + (J * earlier if diagonal else (J @ earlier.unsqueeze(-1)).squeeze(-1))
            change = last
        update = relative(y - self.y, y)
        self.y = y
        return update


class _Implicit(torch.autograd.Function):
    """The trajectory as a function of f at every token, which alone has a graph."""

    @staticmethod
    def forward(ctx: Any, F: Tensor, y: Tensor, of: Recurrence) -> Tensor:
        ctx.of = of
        ctx.save_for_backward(y)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (y,) = ctx.saved_tensors
        once()
        return ctx.of.adjoint(y, g.contiguous()), None, None


def relative(change: Tensor, y: Tensor) -> Tensor:
    """The largest change in each row of the batch, over 1 + the row's largest value."""
    return change.abs().amax((1, 2)) / (1 + y.abs().amax((1, 2)))


def _step_of(cell: Any, params: Any) -> Step:
    if params is None:
        step: Step = cell
        return step
    if isinstance(cell, nn.Module):
        if not isinstance(params, Mapping):
            raise ValueError(
                f"deer: params of a module must map names to tensors, as dict(cell.named_parameters()) does, "
                f"not {type(params).__name__}"
            )
        return lambda y, x: torch.func.functional_call(cell, dict(params), (y, x))
    return lambda y, x: cell(y, x, params)


def _jacobian_of(step: Step) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """One forward-mode pass per coordinate, for all rows at once."""

    def row(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        f = step(y.unsqueeze(0), x.unsqueeze(0)).squeeze(0)
        return f, f

    both = torch.func.vmap(torch.func.jacfwd(row, has_aux=True))

    def jacobian(y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        J, f = both(y, x)
        return f, J

    return jacobian
