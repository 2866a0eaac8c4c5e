"""`sparse_softmax`: a softmax over the few largest scores."""

from __future__ import annotations

from torch import Tensor

from .._kernel_op import resolve
from .derivatives import op


def sparse_softmax(x: Tensor, k: int, dim: int = -1, *, backend: str = "auto") -> Tensor:
    r"""Softmax over the k largest scores of each row; the others get exactly 0, and no gradient.

    .. math:: p_i = \frac{e^{x_i}}{\sum_{j \in \Omega_k} e^{x_j}} \;\text{ for } i \in \Omega_k, \qquad p_i = 0
              \;\text{ else}

    Args:
        x: real, of any shape; -inf entries get 0, and rows of nothing else are 0 throughout.
        k: entries kept, from 1 to the size of the axis. Of equal scores the first are kept.
        dim: the axis that sums to 1.
        backend: "auto", "reference" (torch) or "cpu" (numba); there is no kernel for the GPU, where "auto" takes the
            reference.
    Returns p: like x.
    Raises ValueError: k out of range, x not floating point, an axis that is not there or is empty, backend="gpu".
    Cost: two passes over x, and a heap of k scores that few entries get into. Keeps p alone.
    Source: arXiv:2112.12433.
    """
    if not x.is_floating_point():
        raise ValueError(f"sparse_softmax wants x to be floating point, not {x.dtype}")
    if not -x.dim() <= dim < x.dim():
        raise ValueError(f"sparse_softmax wants dim to be an axis of x of shape {tuple(x.shape)}, not {dim}")
    if x.shape[dim] == 0:
        raise ValueError(f"sparse_softmax wants at least one entry along axis {dim}, x has shape {tuple(x.shape)}")
    if not isinstance(k, int) or not 1 <= k <= x.shape[dim]:
        raise ValueError(f"sparse_softmax wants k from 1 to {x.shape[dim]}, the entries of a row, not {k}")
    if backend == "gpu":
        raise ValueError('sparse_softmax: there is no kernel for the GPU; use backend="auto" or "reference"')
    name = resolve("sparse_softmax", backend, x.device)
    rows = x.movedim(dim, -1)
    (p,) = op(rows.reshape(-1, rows.shape[-1]), k, "cpu" if name == "cpu" else "reference")
    return p.reshape(rows.shape).movedim(-1, dim)
