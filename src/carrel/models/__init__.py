"""Whole models that take any mixer."""

from .sequence import PoolState as PoolState
from .sequence import SequenceModel as SequenceModel
