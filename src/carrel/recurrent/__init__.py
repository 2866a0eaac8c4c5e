"""Mixers whose state has a fixed size."""

from .cells import GRU as GRU
from .cells import LSTM as LSTM
from .cells import TanhRNN as TanhRNN
from .deer import DeerDivergenceError as DeerDivergenceError
from .deer import DeerInfo as DeerInfo
from .deer import deer as deer
from .hippo import HiPPO as HiPPO
from .hippo import HiPPOState as HiPPOState
from .hippo_matrices import discretize as discretize
from .hippo_matrices import hippo_matrices as hippo_matrices
from .hippo_matrices import legs_normal_part as legs_normal_part
from .lru import LRU as LRU
from .lru import LRUState as LRUState
from .mamba import Mamba as Mamba
from .mamba import MambaState as MambaState
from .parallel_rnn import ParallelRNN as ParallelRNN
from .parallel_rnn import ParallelRNNState as ParallelRNNState
from .s4 import S4 as S4
from .s4 import S4State as S4State
from .s4d import S4D as S4D
from .s4d import S4DState as S4DState
from .s5 import S5 as S5
from .s5 import S5State as S5State
