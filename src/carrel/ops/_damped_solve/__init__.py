"""`damped_solve`: the step of a Newton iteration along a sequence that a penalty keeps short. Private to `deer`."""

from __future__ import annotations

from torch import Tensor

from . import reference


def damped_solve(J: Tensor, r: Tensor, damping: float, *, smoother: bool = True, backend: str = "auto") -> Tensor:
    r"""The change δ of a trajectory that best removes its residuals without going far.

    .. math:: \min_\delta\ \tfrac12 \sum_t \|r_t + \delta_t - J_t \delta_{t-1}\|^2
              + \tfrac\lambda2 \sum_t \|\delta_t\|^2, \qquad \delta_0 = 0

    It is the mean of a Kalman smoother: the state δ_t = J_t δ_{t-1} - r_t + noise of unit variance is seen as 0 with
    variance 1 / λ. With ``smoother=False``, the mean of the filter, which uses what came before only.

    Args:
        J: (batch, length, D, D), or (batch, length, D) for diagonal matrices; r: (batch, length, D); λ = damping >= 0.
        backend: "auto", "reference" (torch) or "cpu" (numba).
    Returns δ: (batch, length, D).
    Cost: O(batch * length * D^3), or O(batch * length * D) for diagonal matrices, token by token; the smoother keeps
    one matrix like J. Source: arXiv:2407.19115, section 4.
    """
    if backend == "auto":
        backend = "cpu" if r.device.type == "cpu" else "reference"
    if backend == "reference":
        return reference.solve(J, r, damping, smoother)
    from . import cpu

    return cpu.solve(J, r, damping, smoother)
