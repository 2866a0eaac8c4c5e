"""Bounds and measures that can be computed: what a position code, a scale or a rank can and cannot do."""

from .concentration import WEIGHT_KINDS as WEIGHT_KINDS
from .concentration import Concentration as Concentration
from .concentration import attention_concentration as attention_concentration
from .concentration import concentration as concentration
from .concentration import effective_rank as effective_rank
from .rope_base import RopeBaseBound as RopeBaseBound
from .rope_base import rope_base_bound as rope_base_bound
from .rope_base import rope_context as rope_context
from .rope_base import rope_margin as rope_margin
from .sparsity import decay_sparsity as decay_sparsity
from .sparsity import sparsity as sparsity
