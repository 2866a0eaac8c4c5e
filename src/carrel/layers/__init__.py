"""What every family is built from: the mixer contract, norms, a gated MLP, parameter groups for optimisers."""

from .fft_conv import fft_conv as fft_conv
from .mixer import Mixer as Mixer
from .norms import RMSNorm as RMSNorm
from .parameter_groups import parameter_groups as parameter_groups
from .rotary import LinearScaling as LinearScaling
from .rotary import NTKScaling as NTKScaling
from .rotary import RoPE as RoPE
from .rotary import Turns as Turns
from .rotary import YaRNScaling as YaRNScaling
from .rotary import rotary_frequencies as rotary_frequencies
from .rotary import rotary_turns as rotary_turns
from .rotary import rotate as rotate
from .short_convolution import ShortConvolution as ShortConvolution
from .short_convolution import ShortConvolutionState as ShortConvolutionState
from .state import KVCache as KVCache
from .state import LatentCache as LatentCache
from .swiglu import SwiGLU as SwiGLU
