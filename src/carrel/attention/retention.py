"""Linear attention that forgets: at a fixed rate per head, or per channel as every token chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from carrel.layers.mixer import Mixer
from carrel.layers.norms import RMSNorm
from carrel.layers.rotary import rotary_frequencies, rotary_turns, rotate
from carrel.layers.state_shapes import check_state
from carrel.ops import decay_attention

from .heads import head_width, join_heads, split_heads


class RetentionState(NamedTuple):
    """S: (batch, heads, head_dim, head_dim), keys by values, float32 at least; pos: (batch,) int64, tokens so far."""

    S: Tensor
    pos: Tensor


class Retention(Mixer):
    r"""A linear memory that forgets at a fixed rate per head, read with rotary positions.

    .. math::
        S_t = \gamma_h S_{t-1} + (R_t k_t) v_t^\top, \qquad o_t = S_t^\top R_t q_t / \sqrt{d}, \qquad
        y_t = W_o\big(\mathrm{silu}(W_g x_t) \odot \mathrm{norm}(o_t)\big)

    Written out, the value of token j weighs :math:`\gamma^{t-j} (R_{t-j} q_t \cdot k_j) / \sqrt d`. The norm subtracts
    the mean and divides by the standard deviation of each head, without weights, and stands in for a denominator.

    Args:
        dim: width of x and y.
        heads: H.
        decay: γ, the factor kept per token, in (0, 1]: one for all heads or one for each. None is the paper's
            1 - 2^-5, 1 - 2^-6, … : half of a token is left after 22, 44, … tokens. 1 forgets nothing.
        head_dim: d; dim / heads if None. Even, if positions are rotated.
        rotary_base: of the rotation, see :func:`carrel.layers.rotary_frequencies`. None leaves it out.
        eps: in the norm.
    x, y: (batch, length, dim).   state: RetentionState(S, pos), constant size: dim · head_dim numbers.
    Raises ValueError: sizes below 1 or that do not divide, a decay outside (0, 1] or not one per head; x or the state
        of a wrong shape.
    Cost: per token 10 dim² operations in projections and 4 dim · head_dim in the memory, whatever came before.
    Source: arXiv:2307.08621, equations 6 to 8. Its parallel form also divides by sums of decays, which the norm cancels
    but for eps; they are left out. The rotation is plain, without xPos's growth, which γ would swallow.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        decay: float | Sequence[float] | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10000.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("Retention", dim, heads, head_dim)
        if rotary_base is not None:
            rotary_frequencies(self.head_dim, rotary_base)  # says what is wrong with them
        if decay is None:
            decay = [1 - 2.0 ** (-5 - h) for h in range(heads)]
        rates = [float(decay)] * heads if isinstance(decay, (int, float)) else [float(g) for g in decay]
        if len(rates) != heads or not all(0 < g <= 1 for g in rates):
            raise ValueError(f"Retention wants decay in (0, 1], one or one for each of {heads} heads, not {decay!r}")
        self.dim, self.heads, self.rotary_base, self.eps, self.chunk = dim, heads, rotary_base, eps, 64
        width = heads * self.head_dim
        self.qkvg = nn.Linear(dim, 4 * width, bias=False)
        self.out = nn.Linear(width, dim, bias=False)
        self.decay = tuple(rates)  # not a buffer, which a change of type would round

    def forward(self, x: Tensor, state: RetentionState | None = None) -> tuple[Tensor, RetentionState]:
        self._check_input(x)
        batch, length, _ = x.shape
        memory = (batch, self.heads, self.head_dim, self.head_dim)
        check_state(self, state, RetentionState, {"S": memory, "pos": (batch,)})
        q, k, v, gate = split_heads(self.qkvg(x), 4, self.heads)
        steps = torch.arange(length, device=x.device)
        if self.rotary_base is not None:
            at = steps if state is None else state.pos[:, None] + steps
            frequencies = rotary_frequencies(self.head_dim, self.rotary_base, device=x.device)
            turns = rotary_turns(at, frequencies, torch.promote_types(x.dtype, torch.float32))
            q, k = rotate(q, turns), rotate(k, turns)
        wide = torch.promote_types(x.dtype, torch.float32)
        log_decay = torch.tensor([math.log(g) for g in self.decay], dtype=wide, device=x.device)
        log_decay = log_decay.view(1, -1, 1).expand(batch, -1, length)
        S = None if state is None else state.S
        o, S = decay_attention(q * self.head_dim**-0.5, k, v, log_decay, S, chunk=self.chunk)
        o = functional.layer_norm(o, (self.head_dim,), eps=self.eps)
        pos = torch.full((batch,), length, dtype=torch.int64, device=x.device)
        state = RetentionState(S, pos if state is None else state.pos + length)
        return self.out(join_heads(functional.silu(gate) * o)), state

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, decay={[round(g, 6) for g in self.decay]}"


class GLAState(NamedTuple):
    """S: (batch, heads, key_dim, head_dim), keys by values, float32 at least."""

    S: Tensor


class GatedLinearAttention(Mixer):
    r"""A linear memory in which every token chooses, channel by channel, what to forget.

    .. math::
        S_t = \mathrm{diag}(a_t)\, S_{t-1} + k_t v_t^\top, \qquad o_t = S_t^\top q_t / \sqrt{d_k}, \qquad
        y_t = W_o\big(\mathrm{silu}(W_g x_t) \odot \mathrm{norm}(o_t)\big)

        a_t = \sigma(W_2 W_1 x_t + b)^{1/\tau}

    The root τ keeps the factors near 1. The norm divides each head by its root mean square and scales it by weights.

    Args:
        dim: width of x and y.
        heads: H.
        temperature: τ, above 0. Infinity switches forgetting off: the control that shows what it is worth.
        rank: inner width of the small network that chooses a.
        head_dim: channels of a head; dim / heads if None.
        key_dim: d_k, channels of a head's queries and keys; head_dim if None. The authors take half of it.
        eps: in the norm.
    x, y: (batch, length, dim).   state: GLAState(S), constant size: dim · key_dim numbers.
    Raises ValueError: sizes below 1 or that do not divide, a temperature not above 0; x or the state of a wrong shape.
    Cost: per token 10 dim² operations in projections and 4 dim · key_dim in the memory, whatever came before.
    ``forget_bias`` is kept from weight decay; at the start it is 0, so half of a token is left after about τ tokens.
    Source: arXiv:2312.06635, section 4.4 (equations 3 and 4.4's parametrisation, τ = 16 and rank 16 as there).
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"forget_bias"})

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        temperature: float = 16.0,
        rank: int = 16,
        head_dim: int | None = None,
        key_dim: int | None = None,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.head_dim = head_width("GatedLinearAttention", dim, heads, head_dim)
        self.key_dim = self.head_dim if key_dim is None else key_dim
        for name, size in {"key_dim": self.key_dim, "rank": rank}.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"GatedLinearAttention wants {name} to be a whole number of at least 1, not {size!r}")
        if not temperature > 0:
            raise ValueError(f"GatedLinearAttention wants a temperature above 0, not {temperature}")
        self.dim, self.heads, self.temperature, self.chunk = dim, heads, float(temperature), 64
        keys, values = heads * self.key_dim, heads * self.head_dim
        self.qk = nn.Linear(dim, 2 * keys, bias=False)
        self.vg = nn.Linear(dim, 2 * values, bias=False)
        self.forget_down = nn.Linear(dim, rank, bias=False)
        self.forget_up = nn.Linear(rank, keys, bias=False)
        self.forget_bias = nn.Parameter(torch.zeros(keys))
        self.norm = RMSNorm(self.head_dim, eps)
        self.out = nn.Linear(values, dim, bias=False)

    def forward(self, x: Tensor, state: GLAState | None = None) -> tuple[Tensor, GLAState]:
        self._check_input(x)
        check_state(self, state, GLAState, {"S": (len(x), self.heads, self.key_dim, self.head_dim)})
        q, k = split_heads(self.qk(x), 2, self.heads)
        v, gate = split_heads(self.vg(x), 2, self.heads)
        wide = torch.promote_types(x.dtype, torch.float32)
        chosen = self.forget_up(self.forget_down(x)).to(wide) + self.forget_bias.to(wide)
        (log_decay,) = split_heads(functional.logsigmoid(chosen) / self.temperature, 1, self.heads)
        S = None if state is None else state.S
        o, S = decay_attention(q * self.key_dim**-0.5, k, v, log_decay, S, chunk=self.chunk)
        return self.out(join_heads(functional.silu(gate) * self.norm(o))), GLAState(S)

    def extra_repr(self) -> str:
        return f"{self.dim}, heads={self.heads}, key_dim={self.key_dim}, temperature={self.temperature:g}"
