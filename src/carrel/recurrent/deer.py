"""Non-linear recurrences for all tokens at once, by Newton's method."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from carrel.ops._damped_solve import damped_solve

from .newton import Recurrence, relative

_log = logging.getLogger(__name__)
_FULL = 32  # states up to which "auto" takes the full Jacobian: see the table in docs/deer.md
_DAMPINGS = (1e-2, 1.0, 10.0)  # tried in turn when an attempt fails
_GROWTHS = 5  # updates in a row that grow before an attempt is given up
_TOL = {torch.float32: 1e-5, torch.float64: 1e-10}


class DeerDivergenceError(RuntimeError):
    """Newton's method did not find the trajectory.   Attributes: ``iterations``, ``residual``."""

    def __init__(self, iterations: int, residual: float, reason: str = "") -> None:
        super().__init__(f"deer: {reason or 'no trajectory'} after {iterations} iterations (residual {residual:.1e})")
        self.iterations, self.residual = iterations, residual


@dataclass(frozen=True)
class DeerInfo:
    """How a trajectory was found.

    iterations: Newton steps in sum, the one that finds nothing left to do included; residual: the largest
    |y_t - f(y_{t-1}, x_t)|, over 1 + the largest |y|; method: "full" or "diag", the Jacobian that was used;
    converged: whether Newton's method found it; fell_back: whether the sequential loop did instead; damping: of the
    last attempt; updates: the relative update of every step; reason: why an attempt failed, or "".
    """

    iterations: int
    residual: float
    method: str
    converged: bool
    fell_back: bool
    damping: float
    updates: tuple[float, ...]
    reason: str = ""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def deer(
    cell: Any,
    x: Tensor,
    y0: Tensor,
    params: Any = None,
    *,
    jac: str = "auto",
    tol: float | None = None,
    max_iter: int = 100,
    damping: float = 0.0,
    smoother: bool = True,
    init: Tensor | None = None,
    on_fail: str = "sequential",
) -> tuple[Tensor, DeerInfo]:
    r"""Every state of a recurrent cell, by Newton's method on the whole trajectory instead of token by token.

    .. math:: y_t = f(y_{t-1}, x_t): \qquad
              y^{(k+1)}_t = f(y^{(k)}_{t-1}, x_t) + J_t\,(y^{(k+1)}_{t-1} - y^{(k)}_{t-1}), \qquad
              J_t = \frac{\partial f}{\partial y}(y^{(k)}_{t-1}, x_t)

    Each iteration evaluates the cell on all tokens at once and solves a linear recurrence. After k of them the first k
    states are exact; a contracting cell needs a handful, whatever the length.

    Args:
        cell: ``cell(y, x)``, from states (M, D) and inputs (M, input) to states (M, D), row by row: a
            :class:`~carrel.recurrent.GRU`, :class:`~carrel.recurrent.LSTM`, :class:`~carrel.recurrent.TanhRNN`, or any
            module or function. ``cell.forward_with_jacobian(y, x)``, if there is one, returns the states and
            ∂f/∂y (M, D, D); otherwise forward-mode derivatives are taken.
        x: (batch, length, input). y0: (batch, D), the state before the first token; float32 or float64.
        params: handed to a function as third argument, or a mapping of names to tensors that replaces a module's
            parameters. Not needed for gradients: they reach whatever the cell uses.
        jac: "full"; "diag", which keeps the diagonal of J alone, needs more iterations and less work for each, and is
            confirmed by a step with the full one; "auto" takes "full" up to a state of 32, and where kernels
            keep no Jacobian (the GRU on the CPU).
        tol: bound on the last update, relative to 1 + the largest state; 1e-5 in float32, 1e-10 in float64.
        max_iter: iterations of one attempt.
        damping: λ >= 0 of a penalty (λ / 2) |update|², which trades speed for safety (ELK).
        smoother: with damping, whether a token's update heeds later tokens too, as the penalised problem has it.
        init: (batch, length, D), a guess, such as the trajectory of the training step before; zeros if None.
        on_fail: "sequential" computes token by token and says so in the log; "raise".

    An attempt fails if it meets a number that is not finite, if its updates grow five times in a row, or at
    ``max_iter``; the next starts from what is finite of it with damping 0.01, then 1, then 10.

    Returns:
        y: (batch, length, D), every state, equal to the sequential ones to ``tol``; and a :class:`DeerInfo`.
        Gradients are those of backpropagation through time, from one linear recurrence with the full Jacobian, whatever
        ``jac``: nothing of the iterations is kept. They can be taken once, not differentiated again.

    Raises:
        ValueError: shapes, types or options are wrong, states are complex, the cell draws random numbers or mixes rows.
        DeerDivergenceError: no attempt succeeded and ``on_fail`` is "raise".

    Cost: per iteration one evaluation of the cell and O(batch * length * D^2) ("diag": D) for the linear recurrence.
    A cell that amplifies differences (a chaotic one) has no trajectory that rounding leaves alone; it ends in the
    fallback, later than a plain loop would have.

    Source: arXiv:2309.12252 (full), arXiv:2407.19115 (diagonal, damping).
    """
    _check(x, y0, jac, tol, max_iter, damping, init, on_fail)
    tol = _TOL[y0.dtype] if tol is None else tol
    of = Recurrence(cell, x, y0.detach(), params)
    if of.u.shape[1] == 0 or of.y0.numel() == 0:
        return y0.new_zeros(*x.shape[:2], y0.shape[1]), DeerInfo(0, 0.0, "full", True, False, damping, ())
    method = jac if jac != "auto" else "full" if of.size <= _FULL or of.kernels is not None else "diag"
    search = _Search(of, method == "diag", tol, max_iter, smoother)
    start = torch.zeros(*x.shape[:2], of.size, dtype=y0.dtype, device=y0.device) if init is None else init.detach()
    with torch.no_grad():
        y = search.run(start, damping)
    if y is not None:
        found, residual = of.attach(y, y0)
        if residual < 10 * tol:
            info = DeerInfo(len(search.updates), residual, method, True, False, search.damping, tuple(search.updates))
            return found, info
        search.reason = f"a residual of {residual:.1e} was left, although the last update was below {tol:.0e}"
    reason = search.reason + _amplification(of, tol)
    if on_fail == "raise":
        raise DeerDivergenceError(len(search.updates), of.residual(search.y), reason)
    _log.warning("deer: %s after %d iterations; the sequential loop takes over", reason, len(search.updates))
    found, residual = of.attach(of.sequential(), y0)
    info = DeerInfo(len(search.updates), residual, method, False, True, search.damping, tuple(search.updates), reason)
    return found, info


class _Search:
    """Attempts with growing damping, and what came of them."""

    def __init__(self, of: Recurrence, diagonal: bool, tol: float, max_iter: int, smoother: bool) -> None:
        self.of, self.diagonal, self.tol, self.max_iter, self.smoother = of, diagonal, tol, max_iter, smoother
        self.updates: list[float] = []
        self.reason, self.damping, self.y = "", 0.0, torch.empty(0)

    def run(self, y: Tensor, damping: float) -> Tensor | None:
        """The trajectory, or None."""
        for strength in (damping, *(more for more in _DAMPINGS if more > damping)):
            self.damping = strength
            sweeps = self.of.newton(y)
            self.reason = self._attempt(sweeps)
            y = self.y = torch.where(sweeps.y.isfinite(), sweeps.y, 0)
            if not self.reason:
                return y
        return None

    def _attempt(self, sweeps: Any) -> str:
        """Iterate; why it failed, or nothing."""
        exact = not self.diagonal and self.damping == 0  # Newton's own step: its update bounds the error
        before, grown = float("inf"), 0
        for _ in range(self.max_iter):
            update = self._step(sweeps) if self.damping else self._noted(sweeps.sweep(self.diagonal))
            if not update < float("inf"):
                return "numbers overflowed"
            if update < self.tol and (exact or _tail(update, before) < self.tol / 10):
                return "" if exact else self._confirm(sweeps)
            grown = grown + 1 if update > before else 0
            if grown == _GROWTHS:
                return f"updates grew {_GROWTHS} times in a row"
            before = update
        return f"updates were still {before:.1e}"

    def _confirm(self, sweeps: Any) -> str:
        """Steps with the full Jacobian, which should find hardly anything: their update bounds the error."""
        update = float("inf")
        for _ in range(3):
            update = self._noted(sweeps.sweep(False))
            if update < self.tol:
                return ""
        return f"a step with the full Jacobian still moved by {update:.1e}"

    def _step(self, sweeps: Any) -> float:
        of, y = self.of, sweeps.y
        F, J = of.linearize(of.before(y), 0, self.diagonal)
        change = damped_solve(J, y - F, self.damping, smoother=self.smoother)
        sweeps.y = y + change
        return self._noted(relative(change, sweeps.y))

    def _noted(self, updates: Tensor) -> float:
        self.updates.append(float(updates.max()))
        return self.updates[-1]


def _tail(update: float, before: float) -> float:
    """All updates to come, if they go on shrinking as the last one did."""
    rate = min(update / before, 0.99)
    return update * rate / (1 - rate)


def _amplification(of: Recurrence, tol: float) -> str:
    """What to add to a failure if the cell amplifies differences beyond what rounding allows."""
    growth = of.growth()
    if growth < 6:
        return ""
    return (
        f"; the product of the Jacobians |J| grows by 10^{growth:.0f} within {min(256, of.u.shape[1])} tokens, so "
        f"differences as small as rounding become larger than {tol:.0e}: the cell is chaotic or unstable here"
    )


def _check(
    x: Tensor, y0: Tensor, jac: str, tol: float | None, max_iter: int, damping: float, init: Tensor | None, on_fail: str
) -> None:
    for name, tensor in {"x": x, "y0": y0}.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"deer: {name} must be a tensor, got {type(tensor).__name__}")
    if x.ndim != 3 or y0.ndim != 2 or y0.shape[0] != x.shape[0]:
        raise ValueError(
            f"deer: x must be (batch, length, input) and y0 (batch, state), got {tuple(x.shape)} and {tuple(y0.shape)}"
        )
    if y0.is_complex() or x.is_complex():
        raise ValueError(f"deer: complex states have no Jacobian of the kind it needs; got {x.dtype} and {y0.dtype}")
    if y0.dtype not in _TOL or x.dtype != y0.dtype:
        raise ValueError(f"deer: x and y0 must both be float32 or both float64, got {x.dtype} and {y0.dtype}")
    if x.device != y0.device:
        raise ValueError(f"deer: x is on {x.device} but y0 is on {y0.device}; they must be on one device")
    if jac not in ("auto", "full", "diag"):
        raise ValueError(f"deer: jac must be auto, full or diag, got {jac!r}")
    if on_fail not in ("sequential", "raise"):
        raise ValueError(f"deer: on_fail must be sequential or raise, got {on_fail!r}")
    if tol is not None and not tol > 0:
        raise ValueError(f"deer: tol must be above 0, got {tol}")
    if max_iter < 1 or not 0 <= damping < float("inf"):
        raise ValueError(
            f"deer: max_iter must be at least 1 and damping finite and not negative, got {max_iter} and {damping}"
        )
    if init is not None and (init.shape != (*x.shape[:2], y0.shape[1]) or init.dtype != y0.dtype):
        raise ValueError(
            f"deer: init must be {y0.dtype} of shape {(*x.shape[:2], y0.shape[1])}, "
            f"got {init.dtype} of shape {tuple(init.shape)}"
        )
