"""SSD, the mixer of Mamba-2: a selective state space with one rate per head, which is attention that decays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers.mixer import Mixer
from carrel.layers.short_convolution import ShortConvolution, ShortConvolutionState
from carrel.layers.transformers_weights import fill, renamed
from carrel.ops import ssd

from .state_shapes import check_state

_SHORTEST_STEP = 1e-4  # at the start


class SSDState(NamedTuple):
    """conv: (batch, channels + 2 groups · N, conv - 1), its last inputs; h: (batch, heads, N, head_dim)."""

    conv: Tensor
    h: Tensor


class SSD(Mixer):
    r"""A gated block around a state space with one decay per head.

    .. math::
        z, x, B, C, \delta = W_{in} u, \qquad x, B, C \leftarrow \mathrm{silu}(\mathrm{conv}(x, B, C)), \qquad
        \Delta_t = \mathrm{softplus}(\delta_t + b_\Delta)

        h_t = e^{\Delta_t A} h_{t-1} + B_t (\Delta_t x_t)^\top, \qquad
        y_t = W_{out}\, \mathrm{norm}\big((h_t^\top C_t + D x_t) \odot \mathrm{silu}(z_t)\big)

    Each head writes head_dim channels into N states that decay together. Written out, its output is that of masked
    attention, :math:`\sum_{s \le t} (C_t \cdot B_s)\, e^{A(\Delta_{s+1} + \dots + \Delta_t)}\, \Delta_s x_s`: the same
    numbers, at a cost that grows with the length instead of its square.

    Args:
        dim: width of u and y.
        state_dim: N, states of each head.
        head_dim: channels of a head; expand · dim must be a multiple of it.
        expand: channels as a multiple of dim.
        groups: how many B and C there are; the heads share them out.
        conv: tokens that the short convolution sees, the present one included.
        dt_min, dt_max: at the start the steps of an empty token are spread evenly in the logarithm between these.
        selective: False makes Δ, B and C the same for every token: b_Δ, and weights of their own for every head. A head
            is then a running mean that fades at one rate. It is the control that shows what selection is worth.
        bias: whether the two projections have one.
        eps: in the norm, which is taken over the channels of each group.
    u, y: (batch, length, dim).   state: SSDState(conv, h), constant size; h in float32 at least.
    Raises ValueError: sizes below 1 or that do not divide, 0 < dt_min <= dt_max broken; u or the state of a wrong
        shape.
    Cost: per token 2 dim (3 channels + 2 groups N + heads) operations in projections, 4 channels · N in the heads.
    ``A_log``, ``D`` and ``dt_bias`` are kept from weight decay; the decay is computed in float32 at least.
    Source: arXiv:2405.21060, section 7 and figure 6, right; A starts uniform in -16 .. -1 as in the authors' code.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"A_log", "D", "dt_bias"})

    def __init__(
        self,
        dim: int,
        state_dim: int = 64,
        head_dim: int = 64,
        expand: int = 2,
        groups: int = 1,
        conv: int = 4,
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        selective: bool = True,
        bias: bool = False,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "state_dim": state_dim, "head_dim": head_dim, "expand": expand, "groups": groups}
        for name, size in (sizes | {"conv": conv}).items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"SSD wants {name} to be a whole number of at least 1, not {size!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"SSD wants 0 < dt_min <= dt_max, not dt_min={dt_min} and dt_max={dt_max}")
        channels = expand * dim
        heads = channels // head_dim
        if channels % head_dim or heads % groups:
            raise ValueError(
                f"SSD wants head_dim to divide the {channels} channels, and groups their heads, "
                f"not head_dim={head_dim} and groups={groups}"
            )
        self.dim, self.state_dim, self.head_dim, self.channels = dim, state_dim, head_dim, channels
        self.heads, self.groups, self.selective, self.eps, self.chunk = heads, groups, selective, eps, 64
        shared = 2 * groups * state_dim if selective else 0
        self.sizes = [channels, channels + shared, heads if selective else 0]
        self.in_proj = nn.Linear(dim, sum(self.sizes), bias=bias)
        self.conv = ShortConvolution(channels + shared, conv)
        if not selective:
            self.B = nn.Parameter(torch.ones(heads, state_dim))
            self.C = nn.Parameter(torch.randn(heads, state_dim) / math.sqrt(state_dim))
        drawn = torch.exp(torch.empty(heads).uniform_(math.log(dt_min), math.log(dt_max))).clamp(min=_SHORTEST_STEP)
        self.dt_bias = nn.Parameter(drawn + torch.log(-torch.expm1(-drawn)))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, dim, bias=bias)

    def forward(self, x: Tensor, state: SSDState | None = None) -> tuple[Tensor, SSDState]:
        self._check_input(x)
        shapes = {"conv": (len(x), len(self.conv.weight), self.conv.width - 1)}
        check_state(self, state, SSDState, shapes | {"h": (len(x), self.heads, self.state_dim, self.head_dim)})
        z, x, delta = torch.split(self.in_proj(x), self.sizes, -1)
        x, conv = self.conv(x, None if state is None else ShortConvolutionState(state.conv))
        x = functional.silu(x)
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        A, bias = -torch.exp(self.A_log.to(wide)), self.dt_bias.to(wide)
        if self.selective:
            shared = self.groups * self.state_dim
            x, B, C = torch.split(x, [self.channels, shared, shared], -1)
            B, C = (_apart(v, self.groups).transpose(1, 2) for v in (B, C))
            dt = functional.softplus(delta.to(wide) + bias).transpose(1, 2)
        else:
            B, C = (v.to(x.dtype).unsqueeze(1).expand(len(x), -1, x.shape[1], -1) for v in (self.B, self.C))
            dt = functional.softplus(bias).unsqueeze(-1).expand(len(x), -1, x.shape[1])
        x = _apart(x, self.heads).transpose(1, 2)
        y, h = ssd(x, dt, A, B, C, None if state is None else state.h, self.chunk)
        y = (y + self.D.to(x.dtype)[:, None, None] * x).transpose(1, 2).flatten(2)
        return self.out_proj(self._normalised(y * functional.silu(z))), SSDState(conv.x, h)

    def _normalised(self, y: Tensor) -> Tensor:
        parts = _apart(y, self.groups)
        parts = functional.rms_norm(parts, parts.shape[-1:], None, self.eps)
        return parts.flatten(-2) * self.norm.to(y.dtype)

    @classmethod
    def from_transformers(
        cls, state_dict: Mapping[str, Tensor], prefix: str = "", *, groups: int = 1, eps: float = 1e-5
    ) -> SSD:
        """A block with the weights of a ``Mamba2Mixer`` of Hugging Face's transformers.

        Args:
            state_dict: what ``mixer.state_dict()`` returns, or that of a whole model. Sizes are read off the shapes.
            prefix: in front of the mixer's names in a whole model, such as "backbone.layers.0.mixer.".
            groups, eps: ``n_groups`` and ``layer_norm_epsilon`` of its configuration, which no shape tells. A
                ``time_step_limit`` other than the default, which limits nothing, has no counterpart here.
        Returns a block in the weights' type, sharing no memory with them. Raises ValueError: a weight is missing or of
        a shape that does not fit, or one is there that this block has no place for.
        """
        given = dict(state_dict)
        biased = f"{prefix}in_proj.bias" in given
        if f"{prefix}conv1d.weight" in given:  # a convolution without a bias is one whose bias is 0
            given.setdefault(f"{prefix}conv1d.bias", torch.zeros_like(given[f"{prefix}conv1d.weight"][:, 0, 0]))
        names = _TRANSFORMERS | (_BIASES if biased else {})
        weights = renamed("Mamba2Mixer", given, prefix, names)
        weights["conv.weight"] = weights["conv.weight"].squeeze(1)
        dim, channels = weights["out_proj.weight"].shape
        heads, (mixed, width) = len(weights["A_log"]), weights["conv.weight"].shape
        if channels % dim or channels % heads or (mixed - channels) % (2 * groups):
            raise ValueError(
                f"SSD wants channels that dim and heads divide, and states that {groups} groups share out, "
                f"not {channels} channels, dim {dim}, {heads} heads and {mixed} channels in the convolution"
            )
        state_dim = (mixed - channels) // (2 * groups)
        block = cls(dim, state_dim, channels // heads, channels // dim, groups, width, bias=biased, eps=eps)
        fill(block, weights, names)
        return block

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, state_dim={self.state_dim}, heads={self.heads}, head_dim={self.head_dim}, "
            f"groups={self.groups}, selective={self.selective}"
        )


def _apart(x: Tensor, parts: int) -> Tensor:
    """(..., parts · n) as (..., parts, n)."""
    return x.reshape(*x.shape[:-1], parts, x.shape[-1] // parts)


_TRANSFORMERS = {
    "in_proj.weight": "in_proj.weight",
    "conv.weight": "conv1d.weight",
    "conv.bias": "conv1d.bias",
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "norm": "norm.weight",
    "out_proj.weight": "out_proj.weight",
}
_BIASES = {"in_proj.bias": "in_proj.bias", "out_proj.bias": "out_proj.bias"}
