"""Operations that have kernels. Each works on any machine; see docs/ops.md for how a call finds its backend."""

from ._decay_attention import decay_attention as decay_attention
from ._dplr_kernel import cauchy as cauchy
from ._dplr_kernel import dplr_kernel as dplr_kernel
from ._entmax import entmax as entmax
from ._entmax import entmax15 as entmax15
from ._entmax import sparsemax as sparsemax
from ._legs_scan import legs_scan as legs_scan
from ._linear_scan import linear_scan as linear_scan
from ._margin_softmax import margin_softmax_loss as margin_softmax_loss
from ._matrix_scan import matrix_scan as matrix_scan
from ._relu2_attention import relu2_attention as relu2_attention
from ._s4d_kernel import discretize_diagonal as discretize_diagonal
from ._s4d_kernel import power_sums as power_sums
from ._s4d_kernel import s4d_kernel as s4d_kernel
from ._s4d_kernel import vandermonde as vandermonde
from ._selective_scan import selective_scan as selective_scan
from ._sparse_softmax import sparse_softmax as sparse_softmax
from ._ssd import ssd as ssd
from ._wkv import WKVState as WKVState
from ._wkv import wkv as wkv

__all__ = [
    "WKVState",
    "cauchy",
    "decay_attention",
    "discretize_diagonal",
    "dplr_kernel",
    "entmax",
    "entmax15",
    "legs_scan",
    "linear_scan",
    "margin_softmax_loss",
    "matrix_scan",
    "power_sums",
    "relu2_attention",
    "s4d_kernel",
    "selective_scan",
    "sparse_softmax",
    "sparsemax",
    "ssd",
    "vandermonde",
    "wkv",
]
