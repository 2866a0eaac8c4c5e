"""Mixers that look back at all earlier tokens."""

from .latent import MLA as MLA
from .linear import LINEAR_FEATURES as LINEAR_FEATURES
from .linear import LinearAttention as LinearAttention
from .linear import LinearAttentionState as LinearAttentionState
from .linear import linear_attention as linear_attention
from .multihead import MHA as MHA
from .performer import Performer as Performer
from .performer import PerformerState as PerformerState
from .performer import gaussian_directions as gaussian_directions
from .performer import random_features as random_features
from .retention import GatedLinearAttention as GatedLinearAttention
from .retention import GLAState as GLAState
from .retention import Retention as Retention
from .retention import RetentionState as RetentionState
from .scale import SCALE_RULES as SCALE_RULES
from .scale import attention_scale as attention_scale
from .scale import gradient_size as gradient_size
from .transnormer import DiagAttention as DiagAttention
from .transnormer import DiagAttentionState as DiagAttentionState
from .transnormer import NormAttention as NormAttention
from .transnormer import NormAttentionState as NormAttentionState
from .transnormer import TransNormerLayers as TransNormerLayers
