"""Mamba: a state space whose step, input and output weights are chosen by each token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers.fft_conv import fft_conv
from carrel.layers.mixer import Mixer
from carrel.layers.short_convolution import ShortConvolution, ShortConvolutionState
from carrel.ops import selective_scan

_SHORTEST_STEP = 1e-4  # at the start


class MambaState(NamedTuple):
    """conv: (batch, channels, conv - 1), the last inputs of the convolution; h: (batch, channels, state_dim)."""

    conv: Tensor
    h: Tensor


class Mamba(Mixer):
    r"""A gated block around a selective state space.

    .. math::
        x, z = W_{in} u, \qquad x \leftarrow \mathrm{silu}(\mathrm{conv}(x)), \qquad (\delta_t, B_t, C_t) = W_x x_t,
        \qquad \Delta_t = \mathrm{softplus}(W_\Delta \delta_t + b_\Delta)

        h_t = e^{\Delta_t A} \odot h_{t-1} + (\Delta_t x_t) B_t^\top, \qquad
        y_t = W_{out} \big( (h_t C_t + D \odot x_t) \odot \mathrm{silu}(z_t) \big)

    Each of the expand · dim channels has state_dim states. A token with a long step Δ is written into them and pushes
    out what was there; one with a short step passes by. So the block can keep some tokens and ignore others, which no
    fixed convolution can.

    Args:
        dim: width of u and y.
        state_dim: states of each channel, N.
        expand: channels as a multiple of dim.
        conv: tokens that the short convolution sees, the present one included.
        dt_rank: size r of δ; "auto" is dim / 16, rounded up.
        dt_min, dt_max: at the start the steps of an empty token are spread evenly in the logarithm between these: a
            state of rate A forgets after 1 / (Δ |A|) tokens.
        selective: False makes Δ, B and C the same for every token: Δ = softplus(b_Δ), and weights B and C of their own
            for every channel and state. All else stays. It is the control that shows what selection is worth.
    u, y: (batch, length, dim).   state: MambaState(conv, h), constant size; h in float32 at least.
    Raises ValueError: sizes below 1, 0 < dt_min <= dt_max broken, u or the state of a wrong shape.
    Cost: per token 2 channels (3 dim + 2 dt_rank + 2 state_dim) operations in matrix products, and channels · state_dim
    exponentials. Nothing of size (batch, length, channels, state_dim) is ever made.
    ``A_log`` and ``D`` are kept from weight decay; A is computed in float32 at least.
    Source: arXiv:2312.00752, section 3; figure 3 and algorithm 2, their E is our channels / dim.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"A_log", "D"})

    def __init__(
        self,
        dim: int,
        state_dim: int = 16,
        expand: int = 2,
        conv: int = 4,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 1e-3,
        dt_max: float = 0.1,
        selective: bool = True,
    ) -> None:
        super().__init__()
        rank = -(-dim // 16) if dt_rank == "auto" else dt_rank
        sizes = {"dim": dim, "state_dim": state_dim, "expand": expand, "conv": conv, "dt_rank": rank}
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"Mamba wants {name} to be a whole number of at least 1, not {size!r}")
        if not 0 < dt_min <= dt_max:
            raise ValueError(f"Mamba wants 0 < dt_min <= dt_max, not dt_min={dt_min} and dt_max={dt_max}")
        channels = expand * dim
        self.dim, self.state_dim, self.channels, self.dt_rank, self.selective = (
            dim,
            state_dim,
            channels,
            rank,
            selective,
        )
        self.in_proj = nn.Linear(dim, 2 * channels, bias=False)
        self.conv = ShortConvolution(channels, conv)
        if selective:
            self.x_proj = nn.Linear(channels, rank + 2 * state_dim, bias=False)
            self.dt_proj = nn.Linear(rank, channels, bias=False)
            nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        else:
            self.B = nn.Parameter(torch.ones(channels, state_dim))
            self.C = nn.Parameter(torch.randn(channels, state_dim))
        self.dt_bias = nn.Parameter(_inverse_softplus(_spread(channels, dt_min, dt_max)))
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, state_dim + 1)).repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = nn.Linear(channels, dim, bias=False)

    def forward(self, x: Tensor, state: MambaState | None = None) -> tuple[Tensor, MambaState]:
        self._check_input(x)
        self._check_state(x, state)
        # two products instead of one that is cut in half: the halves of one would have to be copied to be contiguous
        into, gate = self.in_proj.weight.chunk(2)
        z = functional.linear(x, gate)
        x = functional.linear(x, into)
        x, conv = self.conv(x, None if state is None else ShortConvolutionState(state.conv))
        x = functional.silu(x)
        wide = torch.promote_types(self.A_log.dtype, torch.float32)
        A = -torch.exp(self.A_log.to(wide))
        h0 = None if state is None else state.h
        if self.selective:
            delta, B, C = torch.split(self.x_proj(x), [self.dt_rank, self.state_dim, self.state_dim], -1)
            y, h = selective_scan(x, self.dt_proj(delta), A, B, C, self.D, z, h0, self.dt_bias)
        else:
            y, h = self._unselective(x, A, z, h0)
        return self.out_proj(y), MambaState(conv.x, h)

    def _unselective(self, x: Tensor, A: Tensor, z: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor]:
        """The same with one Δ, B and C for all tokens: a convolution, whose kernel is a sum of the states' decays."""
        wide, length = torch.promote_types(x.dtype, A.dtype), x.shape[1]
        with torch.autocast(x.device.type, enabled=False):
            u, gate, C = x.to(wide), functional.silu(z.to(wide)), self.C.to(wide)
            step = functional.softplus(self.dt_bias.to(wide)).unsqueeze(-1)
            rate, into = step * A, step * self.B.to(wide)
            decays = torch.exp(torch.arange(length, device=x.device, dtype=wide)[:, None, None] * rate)
            kernel = (decays * (into * C)).sum(-1)
            y = fft_conv(u.transpose(1, 2), kernel.T).transpose(1, 2) + self.D * u
            last = torch.einsum("blc,lcn->bcn", u, decays.flip(0)) * into
            if h0 is not None:
                y = y + torch.einsum("lcn,bcn->blc", decays, torch.exp(rate) * C * h0)
                last = last + torch.exp(length * rate) * h0
        return (y * gate).to(x.dtype), last

    @classmethod
    def from_transformers(cls, state_dict: Mapping[str, Tensor], prefix: str = "") -> Mamba:
        """A block with the weights of a ``MambaMixer`` of Hugging Face's transformers.

        Args:
            state_dict: what ``mixer.state_dict()`` returns, or that of a whole model. Sizes are read off the shapes.
            prefix: in front of the mixer's names in a whole model, such as "backbone.layers.0.mixer.".
        Returns a block in the weights' type, sharing no memory with them. Raises ValueError: a weight is missing or of
        a shape that does not fit, or one is there that this block has no place for.
        """
        found = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
        theirs = _TRANSFORMERS
        found.setdefault("conv1d.bias", torch.zeros_like(found["D"]) if "D" in found else torch.zeros(0))
        missing, extra = sorted(set(theirs.values()) - set(found)), sorted(set(found) - set(theirs.values()))
        if missing or extra:
            what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}, which has no place here"
            raise ValueError(f"Mamba wants the state dict of a transformers MambaMixer, this one {what}")
        channels, dim = found["out_proj.weight"].shape[::-1]
        if channels % dim:
            raise ValueError(f"Mamba wants channels that are a multiple of dim, not {channels} and {dim}")
        rank, state_dim = found["dt_proj.weight"].shape[1], found["A_log"].shape[1]
        block = cls(dim, state_dim, channels // dim, found["conv1d.weight"].shape[-1], rank)
        weights = {ours: found[name].detach().clone() for ours, name in theirs.items()}
        weights["conv.weight"] = weights["conv.weight"].squeeze(1)
        for ours, wanted in block.state_dict().items():
            if weights[ours].shape != wanted.shape:
                raise ValueError(f"Mamba wants {theirs[ours]} of shape {_shape(wanted)}, not {_shape(weights[ours])}")
        block.load_state_dict(weights, assign=True)
        return block.requires_grad_()

    def _check_state(self, x: Tensor, state: MambaState | None) -> None:
        if state is None:
            return
        if not isinstance(state, MambaState):
            raise ValueError(f"Mamba wants a MambaState or None as its state, not {type(state).__name__}")
        shapes = {"conv": (self.channels, self.conv.width - 1), "h": (self.channels, self.state_dim)}
        for name, shape in shapes.items():
            got = tuple(getattr(state, name).shape)
            if got != (x.shape[0], *shape):
                raise ValueError(f"Mamba wants a state with {name} of shape {(x.shape[0], *shape)}, not {got}")

    def extra_repr(self) -> str:
        return f"{self.dim}, state_dim={self.state_dim}, dt_rank={self.dt_rank}, selective={self.selective}"


_TRANSFORMERS = {
    "in_proj.weight": "in_proj.weight",
    "conv.weight": "conv1d.weight",
    "conv.bias": "conv1d.bias",
    "x_proj.weight": "x_proj.weight",
    "dt_proj.weight": "dt_proj.weight",
    "dt_bias": "dt_proj.bias",
    "A_log": "A_log",
    "D": "D",
    "out_proj.weight": "out_proj.weight",
}


def _shape(t: Tensor) -> tuple[int, ...]:
    return tuple(t.shape)


def _spread(channels: int, low: float, high: float) -> Tensor:
    drawn = torch.exp(torch.rand(channels) * (math.log(high) - math.log(low)) + math.log(low))
    return drawn.clamp(min=_SHORTEST_STEP)


def _inverse_softplus(step: Tensor) -> Tensor:
    return step + torch.log(-torch.expm1(-step))
