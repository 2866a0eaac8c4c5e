"""Whole models that take any mixer."""

from .generation import stream as stream
from .sequence import PoolState as PoolState
from .sequence import PositionState as PositionState
from .sequence import SequenceModel as SequenceModel
