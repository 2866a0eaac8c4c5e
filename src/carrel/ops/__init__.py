"""Operations that have kernels. Each works on any machine; see docs/ops.md for how a call finds its backend."""

from ._linear_scan import linear_scan as linear_scan
from ._matrix_scan import matrix_scan as matrix_scan

__all__ = ["linear_scan", "matrix_scan"]
