"""Exact generators of small problems: pure functions of their arguments and a generator's seed."""

from .catalogue import TASKS as TASKS
from .catalogue import Batch as Batch
from .catalogue import Task as Task
from .catalogue import make_task as make_task
from .copying import copying as copying
from .copying import selective_copying as selective_copying
from .digits import digit_images as digit_images
from .digits import sequential_digits as sequential_digits
from .induction import induction_heads as induction_heads
from .listops import evaluate as evaluate
from .listops import listops as listops
from .mqar import mqar as mqar
from .recall import copy_first_symbol as copy_first_symbol
