"""RWKV-6's time mixing: a matrix per head whose rows every token forgets at rates of its own choice."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers.mixer import Mixer
from carrel.ops import decay_attention

from .state_shapes import check_state
from .token_shift import token_before

_SHIFT_RANK, _DECAY_RANK = 32, 64  # inner sizes of the small networks, unless dim is less
_EPS = 64e-5  # of the norm over a head
_FORGOTTEN = 9.0  # exp(-exp(9)) is 0 in every type; beyond it only the exponential itself could overflow


class RWKV6State(NamedTuple):
    """shift: (batch, dim), the last token; S: (batch, heads, head_dim, head_dim), keys by values."""

    shift: Tensor
    S: Tensor


class RWKV6(Mixer):
    r"""A linear memory per head, with a decay per channel that each token chooses.

    .. math::
        S_t = \mathrm{diag}(w_t)\, S_{t-1} + k_t v_t^\top, \qquad
        o_t = \big(S_{t-1} + (u \odot k_t) v_t^\top\big)^\top r_t, \qquad
        y_t = W_o\big(\mathrm{silu}(g_t) \odot \mathrm{norm}(o_t)\big)

        x^\square_t = x_t + (x_{t-1} - x_t) \odot \big(\lambda_\square + \tanh(z_t A_\square) B_\square\big), \qquad
        z_t = x_t + (x_{t-1} - x_t) \odot \mu

        r, k, v, g = W_\square x^\square, \qquad w_t = \exp\big(-\exp(\lambda_d + \tanh(x^d_t A_d) B_d)\big)

    What a head reads is the sum of all values weighted by :math:`r_t \cdot (w_{t-1} \cdots w_{i+1} k_i)`, its own token
    by :math:`r_t \cdot (u \odot k_t)`; the norm is over the channels of each head.

    Args:
        dim: width of x and y.
        heads: number of heads; dim / head_dim if None.
        head_dim: channels of a head; heads · head_dim must be dim.
    x, y: (batch, length, dim).   state: RWKV6State(shift, S), constant size: dim · head_dim numbers; S in float32 at
        least. Sequences are worked on in chunks of 64 tokens.
    Raises ValueError: sizes below 1, heads · head_dim is not dim, x or the state of a wrong shape.
    Cost: per token 10 dim² operations in matrix products, 18 · 32 · dim in the small networks, 5 dim · head_dim in the
    memory.
    At the start no blend and no decay depends on the token (A is 0) and rates run from e^-6 to e^-1. λ, μ, u, A and B
    are kept from weight decay.
    Source: arXiv:2404.05892 (Finch); ``bonus`` is their u, ``decay`` their λ_d. Inner sizes as theirs, 32 for the
    blends and 64 for the decay, or dim if that is less.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset(
        {"mix", "mix_down", "mix_up", "decay_down", "decay_up", "bonus"}
    )

    def __init__(self, dim: int, heads: int | None = None, head_dim: int = 64) -> None:
        super().__init__()
        sizes = {"dim": dim, "head_dim": head_dim} | ({} if heads is None else {"heads": heads})
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"RWKV6 wants {name} to be a whole number of at least 1, not {size!r}")
        heads = dim // head_dim if heads is None else heads
        if heads * head_dim != dim:
            raise ValueError(f"RWKV6 wants heads * head_dim to be dim, not {heads} * {head_dim} for dim={dim}")
        self.dim, self.heads, self.head_dim, self.chunk = dim, heads, head_dim, 64
        place = torch.arange(dim)
        blends, rank = min(_SHIFT_RANK, dim), min(_DECAY_RANK, dim)
        early, late = 1 - place / dim, 1 - (place / dim) ** 0.5
        self.mix_first = nn.Parameter(early.clone())
        self.mix = nn.Parameter(torch.stack([early, early, early, late, late]))  # of the decay, k, v, r, g
        self.mix_down = nn.Parameter(torch.zeros(dim, 5 * blends))
        self.mix_up = nn.Parameter(torch.empty(5, blends, dim).uniform_(-0.01, 0.01))
        self.decay = nn.Parameter(-6 + 5 * (place / max(dim - 1, 1)) ** 0.7)
        self.decay_down = nn.Parameter(torch.zeros(dim, rank))
        self.decay_up = nn.Parameter(torch.empty(rank, dim).uniform_(-0.01, 0.01))
        self.bonus = nn.Parameter((((place + 1) % 3 - 1) / 10).view(heads, head_dim))
        self.receptance, self.key, self.value, self.gate, self.output = (
            nn.Linear(dim, dim, bias=False) for _ in range(5)
        )
        self.norm_weight = nn.Parameter(torch.ones(dim))
        self.norm_bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, state: RWKV6State | None = None) -> tuple[Tensor, RWKV6State]:
        self._check_input(x)
        batch, _, dim = x.shape
        memory = (batch, self.heads, self.head_dim, self.head_dim)
        check_state(self, state, RWKV6State, {"shift": (batch, dim), "S": memory})
        before, shift = token_before(x, None if state is None else state.shift)
        for_d, for_k, for_v, for_r, for_g = self._blends(x, before)
        r, k, v, log_decay = (
            t.reshape(*t.shape[:2], self.heads, self.head_dim).transpose(1, 2)
            for t in (self.receptance(for_r), self.key(for_k), self.value(for_v), self._log_decay(for_d))
        )
        o, S = decay_attention(r, k, v, log_decay, None if state is None else state.S, exclusive=True, chunk=self.chunk)
        own = (r * k * self.bonus.unsqueeze(1)).sum(-1, keepdim=True)
        o = torch.addcmul(o, own.to(o.dtype), v.to(o.dtype)).transpose(1, 2)
        normed = functional.layer_norm(o, (self.head_dim,), eps=_EPS).flatten(2)
        normed = torch.addcmul(self.norm_bias, normed, self.norm_weight)
        return self.output(functional.silu(self.gate(for_g)) * normed), RWKV6State(shift, S)

    def _blends(self, x: Tensor, before: Tensor) -> tuple[Tensor, ...]:
        """Five blends of every token with the one before, each (batch, length, dim)."""
        gap = before - x
        small = torch.tanh(torch.addcmul(x, gap, self.mix_first) @ self.mix_down).chunk(5, -1)
        shares = (mix + part @ up for mix, part, up in zip(self.mix, small, self.mix_up, strict=True))
        return tuple(torch.addcmul(x, gap, share) for share in shares)

    def _log_decay(self, blend: Tensor) -> Tensor:
        wide = torch.promote_types(self.decay.dtype, torch.float32)
        chosen = torch.tanh(blend @ self.decay_down) @ self.decay_up
        return -torch.exp((self.decay.to(wide) + chosen.to(wide)).clamp(max=_FORGOTTEN))

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, head_dim={self.head_dim}"
