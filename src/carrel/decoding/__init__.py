"""How a trained model is asked: ways of choosing the next token."""

from .nbce import NBCE as NBCE
from .nbce import PromptTooLong as PromptTooLong
from .nbce import Result as Result
from .nbce import Step as Step
from .pooling import PoolInfo as PoolInfo
from .pooling import pool as pool
from .processor import NBCELogitsProcessor as NBCELogitsProcessor
from .protocol import Recomputed as Recomputed
