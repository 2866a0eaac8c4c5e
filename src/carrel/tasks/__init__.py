"""Exact generators of small problems: pure functions of their arguments and a generator's seed."""

from .copying import selective_copying as selective_copying
from .recall import copy_first_symbol as copy_first_symbol
