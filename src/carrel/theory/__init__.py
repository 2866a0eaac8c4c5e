"""Bounds and measures that can be computed: what a position code, a scale or a rank can and cannot do."""

from .rope_base import RopeBaseBound as RopeBaseBound
from .rope_base import rope_base_bound as rope_base_bound
from .rope_base import rope_context as rope_context
from .rope_base import rope_margin as rope_margin
