"""Mixers that look back at all earlier tokens."""

from .latent import MLA as MLA
from .multihead import MHA as MHA
from .scale import SCALE_RULES as SCALE_RULES
from .scale import attention_scale as attention_scale
from .scale import gradient_size as gradient_size
