"""Mixers whose state has a fixed size."""

from .lru import LRU as LRU
from .lru import LRUState as LRUState
