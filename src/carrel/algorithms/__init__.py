"""Algorithms on whole numbers and arrays. No torch; numba loads with the first call that needs it.

A function here may bear its file's name: ``carrel.algorithms.min_abc`` is the function.
"""

from carrel.algorithms.min_abc import MinABC as MinABC
from carrel.algorithms.min_abc import MinABCBatch as MinABCBatch
from carrel.algorithms.min_abc import min_abc as min_abc
from carrel.algorithms.min_abc import min_abc_batch as min_abc_batch
