"""RWKV's other half: a two-layer network on every token and the one before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from carrel.layers.mixer import Mixer
from carrel.layers.transformers_weights import fill, renamed

from .state_shapes import check_state
from .token_shift import token_before


class RWKVChannelMixState(NamedTuple):
    """shift: (batch, dim), the last token."""

    shift: Tensor


class RWKVChannelMix(Mixer):
    r"""A gated network with squared rectifiers, which looks one token back and no further.

    .. math:: r_t, k_t = W_\square\big(\mu_\square \odot x_t + (1 - \mu_\square) \odot x_{t-1}\big), \qquad
              y_t = \sigma(r_t) \odot W_v\, \mathrm{relu}(k_t)^2

    It stands where a transformer has its feed-forward network. Versions 4, 5 and 6 share it.

    Args:
        dim: width of x and y.
        hidden: width of k; 4 dim if None.
    x, y: (batch, length, dim).   state: RWKVChannelMixState(shift), constant size.
    Raises ValueError: sizes below 1, x or the state of a wrong shape.
    Cost: per token 2 dim² + 4 dim hidden operations.
    Source: arXiv:2305.13048, section 3.
    """

    def __init__(self, dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = 4 * dim if hidden is None else hidden
        for name, size in {"dim": dim, "hidden": hidden}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"RWKVChannelMix wants {name} to be a whole number of at least 1, not {size!r}")
        self.dim, self.hidden = dim, hidden
        self.mix_r = nn.Parameter(torch.arange(dim) / dim)
        self.mix_k = nn.Parameter(torch.arange(dim) / dim)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor, state: RWKVChannelMixState | None = None) -> tuple[Tensor, RWKVChannelMixState]:
        self._check_input(x)
        check_state(self, state, RWKVChannelMixState, {"shift": (x.shape[0], self.dim)})
        before, shift = token_before(x, None if state is None else state.shift)
        gap = x - before
        r = self.receptance(torch.addcmul(before, gap, self.mix_r))
        k = self.key(torch.addcmul(before, gap, self.mix_k))
        return torch.sigmoid(r) * self.value(torch.relu(k).square()), RWKVChannelMixState(shift)

    @classmethod
    def from_transformers(cls, state_dict: Mapping[str, Tensor], prefix: str = "") -> RWKVChannelMix:
        """A mixer with the weights of an ``RwkvFeedForward`` of Hugging Face's transformers.

        Args:
            state_dict: what ``feed_forward.state_dict()`` returns, or that of a whole model.
            prefix: in front of its names in a whole model, such as "rwkv.blocks.0.feed_forward.".
        Returns a mixer in the weights' type, sharing no memory with them. Raises ValueError: a weight is missing, has
        no place here, or is of a shape that does not fit.
        """
        weights = renamed("RwkvFeedForward", state_dict, prefix, _TRANSFORMERS)
        for name in ("mix_r", "mix_k"):
            weights[name] = weights[name].flatten()
        mixer = cls(weights["mix_r"].numel(), len(weights["key.weight"]))
        fill(mixer, weights, _TRANSFORMERS)
        return mixer

    def extra_repr(self) -> str:
        return f"{self.dim}, hidden={self.hidden}"


_TRANSFORMERS = {
    "mix_r": "time_mix_receptance",
    "mix_k": "time_mix_key",
    "receptance.weight": "receptance.weight",
    "key.weight": "key.weight",
    "value.weight": "value.weight",
}
