"""RWKV-4's time mixing: a gated average of values, forgotten at one rate per channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers.mixer import Mixer
from carrel.layers.transformers_weights import fill, renamed
from carrel.ops import WKVState, wkv

from .state_shapes import check_state
from .token_shift import token_before


class RWKV4State(NamedTuple):
    """All (batch, dim). shift: the last token; a, b, p: the sums of weighted values and of weights, as of WKVState."""

    shift: Tensor
    a: Tensor
    b: Tensor
    p: Tensor


class RWKV4(Mixer):
    r"""An average of all values so far in every channel, weighted by keys and gated by the token.

    .. math::
        r_t, k_t, v_t = W_\square\big(\mu_\square \odot x_t + (1 - \mu_\square) \odot x_{t-1}\big), \qquad
        y_t = W_o\big(\sigma(r_t) \odot \mathrm{wkv}_t\big)

        \mathrm{wkv}_t = \frac{\sum_{i<t} e^{k_i - (t-1-i) w} v_i + e^{u + k_t} v_t}
                              {\sum_{i<t} e^{k_i - (t-1-i) w} + e^{u + k_t}}, \qquad w = e^{\texttt{decay}}

    A key says how much its value counts from now on, and no later token can take that back: w is the same for all.

    Args:
        dim: width of x and y, and channels inside.
    x, y: (batch, length, dim).   state: RWKV4State(shift, a, b, p), constant size; a, b, p in float32 at least.
    Raises ValueError: dim below 1, x or the state of a wrong shape.
    Cost: per token 8 dim² operations in matrix products, and 2 dim exponentials.
    At the start the channels' rates run from e^-5 to e^3 per token, as in the authors' first layer; the four matrices
    start as torch's own linear layers do. All vectors are kept from weight decay.
    Source: arXiv:2305.13048, section 3; ``decay`` is the logarithm of their w, ``bonus`` their u.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"RWKV4 wants dim to be a whole number of at least 1, not {dim!r}")
        self.dim = dim
        place = torch.arange(dim)
        self.decay = nn.Parameter(-5 + 8 * (place / max(dim - 1, 1)) ** 0.7)
        self.bonus = nn.Parameter(math.log(0.3) + ((place + 1) % 3 - 1) / 2)
        self.mix_r = nn.Parameter((place / dim) ** 0.5)
        self.mix_k = nn.Parameter(place / dim)
        self.mix_v = nn.Parameter(place / dim)
        self.receptance, self.key, self.value, self.output = (nn.Linear(dim, dim, bias=False) for _ in range(4))

    def forward(self, x: Tensor, state: RWKV4State | None = None) -> tuple[Tensor, RWKV4State]:
        self._check_input(x)
        check_state(self, state, RWKV4State, dict.fromkeys(RWKV4State._fields, (x.shape[0], self.dim)))
        before, shift = token_before(x, None if state is None else state.shift)
        gap = x - before
        r = self.receptance(torch.addcmul(before, gap, self.mix_r))
        k = self.key(torch.addcmul(before, gap, self.mix_k))
        v = self.value(torch.addcmul(before, gap, self.mix_v))
        w = torch.exp(self.decay.to(torch.promote_types(self.decay.dtype, torch.float32)))
        y, after = wkv(w, self.bonus, k, v, None if state is None else WKVState(*state[1:]))
        return self.output(torch.sigmoid(r) * y), RWKV4State(shift, *after)

    @classmethod
    def from_transformers(cls, state_dict: Mapping[str, Tensor], prefix: str = "") -> RWKV4:
        """A mixer with the weights of an ``RwkvSelfAttention`` of Hugging Face's transformers.

        Args:
            state_dict: what ``attention.state_dict()`` returns, or that of a whole model.
            prefix: in front of its names in a whole model, such as "rwkv.blocks.0.attention.".
        Returns a mixer in the weights' type, sharing no memory with them. Raises ValueError: a weight is missing, has
        no place here, or is of a shape that does not fit; here the channels inside are as many as those outside.
        """
        weights = renamed("RwkvSelfAttention", state_dict, prefix, _TRANSFORMERS)
        for name in ("mix_r", "mix_k", "mix_v"):
            weights[name] = weights[name].flatten()
        mixer = cls(weights["mix_r"].numel())
        fill(mixer, weights, _TRANSFORMERS)
        return mixer

    def extra_repr(self) -> str:
        return str(self.dim)


_TRANSFORMERS = {
    "decay": "time_decay",
    "bonus": "time_first",
    "mix_r": "time_mix_receptance",
    "mix_k": "time_mix_key",
    "mix_v": "time_mix_value",
    "receptance.weight": "receptance.weight",
    "key.weight": "key.weight",
    "value.weight": "value.weight",
    "output.weight": "output.weight",
}
