"""What every family is built from: the mixer contract, norms, a gated MLP, parameter groups for optimisers."""

from .mixer import Mixer as Mixer
from .norms import RMSNorm as RMSNorm
from .parameter_groups import parameter_groups as parameter_groups
from .swiglu import SwiGLU as SwiGLU
