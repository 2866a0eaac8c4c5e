"""Softmax attention whose keys and values are rebuilt from one small vector per token."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention

from carrel.layers.mixer import Mixer
from carrel.layers.norms import RMSNorm
from carrel.layers.rotary import RoPE, RotaryScaling, rotate
from carrel.layers.state import LatentCache, visible
from carrel.layers.transformers_weights import fill, renamed


class MLA(Mixer):
    r"""Heads that share one latent vector per token, from which each rebuilds its own keys and values.

    .. math:: c_t = \mathrm{norm}(W_c x_t), \qquad k_t^{(s)} = \big[W_k^{(s)} c_t;\ R_t W_r x_t\big], \qquad
              v_t^{(s)} = W_v^{(s)} c_t, \qquad q_t^{(s)} = \big[q_t^{C};\ R_t q_t^{R}\big]

        y_t = W_o\,[o_t^{(1)}; \dots; o_t^{(H)}], \qquad
        o_t^{(s)} = \sum_{j \le t} \mathrm{softmax}_{j \le t}\frac{q_t \cdot k_j}{\sqrt{d_h + d_r}}\, v_j

    Only c and the turned key R W_r x, one for all heads, are kept. A few new tokens after many others never rebuild
    what the others' keys and values were: :math:`q^C \cdot W_k c = (W_k^\top q^C) \cdot c`, and the mean of the values
    is W_v times the mean of c, so all heads look at the latent vectors themselves. Which way is cheaper follows from
    the numbers of new and of kept tokens alone, and both give the same.

    Args:
        dim: width of x and y.
        heads: H.
        q_rank: width of a latent vector for the queries, with a norm of its own; None makes them from x.
        kv_rank: d_c, width of c.
        nope_dim: d_h, channels of a head's keys that come from c and are not turned.
        rope_dim: d_r, channels of the turned key; even. 0: the past is then a set without order.
        v_dim: channels of a head's values.
        rotary_base, rotary_scaling: of the rotation, see :func:`carrel.layers.rotary_frequencies`.
        norm: whether latent vectors are divided by their root mean square.
        scale: of the scores; (d_h + d_r)^{-1/2} if None.
    x, y: (batch, length, dim).   state: LatentCache(c, k_rope, pos), d_c + d_r numbers per token and row, whatever H.
    Raises ValueError: sizes below 1, rope_dim odd or below 0; x or the state of a wrong shape or type.
    Cost: one token after T others takes 2 T H (2 d_c + d_r) operations in the heads and reads T (d_c + d_r) numbers;
    rebuilding would take 2 T H d_c (d_h + v_dim) more.
    Source: arXiv:2405.04434, section 2.1.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        q_rank: int | None = None,
        kv_rank: int = 512,
        nope_dim: int = 128,
        rope_dim: int = 64,
        v_dim: int = 128,
        rotary_base: float = 10000.0,
        rotary_scaling: RotaryScaling | None = None,
        norm: bool = True,
        scale: float | None = None,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "heads": heads, "kv_rank": kv_rank, "nope_dim": nope_dim, "v_dim": v_dim}
        if q_rank is not None:
            sizes["q_rank"] = q_rank
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"MLA wants {name} of at least 1, not {size}")
        if rope_dim < 0 or rope_dim % 2:
            raise ValueError(f"MLA wants an even rope_dim of at least 0, not {rope_dim}")
        self.dim, self.heads, self.q_rank, self.kv_rank = dim, heads, q_rank, kv_rank
        self.nope_dim, self.rope_dim, self.v_dim = nope_dim, rope_dim, v_dim
        self.rope = RoPE(rope_dim, rotary_base, rotary_scaling) if rope_dim else None
        self.scale = (nope_dim + rope_dim) ** -0.5 if scale is None else scale
        wide = heads * (nope_dim + rope_dim)
        if q_rank is None:
            self.q = nn.Linear(dim, wide, bias=False)
        else:
            self.q_down = nn.Linear(dim, q_rank, bias=False)
            self.q_norm = RMSNorm(q_rank) if norm else nn.Identity()
            self.q_up = nn.Linear(q_rank, wide, bias=False)
        self.kv_down = nn.Linear(dim, kv_rank + rope_dim, bias=False)
        self.kv_norm = RMSNorm(kv_rank) if norm else nn.Identity()
        self.kv_up = nn.Linear(kv_rank, heads * (nope_dim + v_dim), bias=False)
        self.out = nn.Linear(heads * v_dim, dim, bias=False)

    def forward(self, x: Tensor, state: LatentCache | None = None) -> tuple[Tensor, LatentCache]:
        self._check_input(x)
        batch, length, _ = x.shape
        q = self.q(x) if self.q_rank is None else self.q_up(self.q_norm(self.q_down(x)))
        q_nope, q_rope = q.unflatten(-1, (self.heads, -1)).transpose(1, 2).split([self.nope_dim, self.rope_dim], -1)
        c, k_rope = self.kv_down(x).unsqueeze(1).split([self.kv_rank, self.rope_dim], -1)
        c = self.kv_norm(c)
        self._check_state(c, k_rope, state)
        if self.rope is not None:
            steps = torch.arange(length, device=x.device)
            turns = self.rope.turns(steps if state is None else state.pos[:, None] + steps, x.dtype)
            q_rope, k_rope = rotate(q_rope, turns), rotate(k_rope, turns)
        seen = None  # causal, as many keys as queries
        if state is None:
            state = LatentCache(c, k_rope, torch.full((batch,), length, dtype=torch.int64, device=x.device))
        else:
            state = state.append(c, k_rope)
            seen = visible(state.pos, state.c.shape[2], length)
        if seen is not None and self._absorbs(length, state.c.shape[2]):
            o = self._absorbed(q_nope, q_rope, state, seen)
        else:
            o = self._rebuilt(q_nope, q_rope, state, seen)
        return self.out(o.transpose(1, 2).flatten(2)), state

    def _absorbs(self, length: int, tokens: int) -> bool:
        """Whether fewer operations pass the queries through W_k than the kept tokens through W_k and W_v.

        Without rebuilding, H (nope_dim + v_dim) kv_rank operations are saved for every token before the new ones, and
        2 kv_rank - nope_dim - v_dim more are spent on each pair of a new token with any.
        """
        rebuilding = (tokens - length) * self.kv_rank * (self.nope_dim + self.v_dim)
        return rebuilding > length * tokens * (2 * self.kv_rank - self.nope_dim - self.v_dim)

    def _rebuilt(self, q_nope: Tensor, q_rope: Tensor, state: LatentCache, seen: Tensor | None) -> Tensor:
        """Every head's own keys and values, then the usual attention."""
        heads = self.kv_up(state.c[:, 0]).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k_nope, v = heads.split([self.nope_dim, self.v_dim], -1)
        q = torch.cat((q_nope, q_rope), -1)
        k = torch.cat((k_nope, state.k_rope.expand(-1, self.heads, -1, -1)), -1)
        short = k.shape[-1] - self.v_dim
        if short > 0:  # torch's fused path takes one width for all
            v = pad(v, (0, short))
        o = scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None, scale=self.scale)
        return o[..., : self.v_dim]

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, state: LatentCache, seen: Tensor) -> Tensor:
        """All heads' queries against the latent vectors; the factors one after another, never their product."""
        w_k, w_v = self.kv_up.weight.unflatten(0, (self.heads, -1)).split([self.nope_dim, self.v_dim], 1)
        c, k_rope = state.c[:, 0], state.k_rope[:, 0]
        asked = (q_nope @ w_k).flatten(1, 2)  # (batch, heads · length, kv_rank)
        scores = asked @ c.mT
        if self.rope_dim:
            scores = scores + q_rope.flatten(1, 2) @ k_rope.mT
        scores = scores.unflatten(1, (self.heads, -1)) * self.scale
        wide = torch.promote_types(scores.dtype, torch.float32)
        p = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1, dtype=wide).to(c.dtype)
        u = (p.flatten(1, 2) @ c).unflatten(1, (self.heads, -1))
        return u @ w_v.mT

    def _check_state(self, c: Tensor, k_rope: Tensor, state: LatentCache | None) -> None:
        if state is None:
            return
        if not isinstance(state, LatentCache):
            raise ValueError(f"MLA wants a LatentCache or None as its state, not {type(state).__name__}")
        batch = len(c)
        tokens = state.c.shape[2] if state.c.dim() == 4 else 0
        for name, part, like in (("c", state.c, c), ("k_rope", state.k_rope, k_rope)):
            wanted = (batch, 1, tokens, like.shape[-1])
            if tuple(part.shape) != wanted or part.dtype != like.dtype:
                raise ValueError(
                    f"MLA wants a state with {name} of shape ({batch}, 1, tokens, {like.shape[-1]}) and type "
                    f"{like.dtype}, not {tuple(part.shape)} and {part.dtype}"
                )
        if tuple(state.pos.shape) != (batch,):
            raise ValueError(f"MLA wants a state with pos of shape ({batch},), not {tuple(state.pos.shape)}")

    @classmethod
    def from_transformers(
        cls,
        state_dict: Mapping[str, Tensor],
        prefix: str = "",
        *,
        heads: int,
        rotary_base: float = 10000.0,
        rotary_scaling: RotaryScaling | None = None,
        scale: float | None = None,
    ) -> MLA:
        """A mixer with the weights of a ``DeepseekV2Attention`` of Hugging Face's transformers.

        That one turns neighbouring channels, this one channels half a head apart: the rows that make them are put in
        that order, which changes no product.

        Args:
            state_dict: what ``self_attn.state_dict()`` returns, or that of a whole model. Sizes are read off shapes.
            prefix: in front of the attention's names in a whole model, such as "model.layers.0.self_attn.".
            heads, rotary_base: ``num_attention_heads`` and ``rope_theta`` of its configuration, which no shape tells.
            rotary_scaling, scale: where it stretches the context. With ``rope_type`` "yarn" that is
                ``YaRNScaling(factor, original_max_position_embeddings, ramp="index", temperature=m(mscale) /
                m(mscale_all_dim))`` and ``(d_h + d_r)**-0.5 * m(mscale_all_dim)**2``, m(a) = 0.1 a ln(factor) + 1.
        Returns a mixer in the weights' type, sharing no memory with them. Raises ValueError: a weight is missing or of
        a shape that does not fit, or one is there that this mixer has no place for, such as a bias.
        """
        ranked = f"{prefix}q_a_proj.weight" in state_dict
        names = _COMMON | (_RANKED if ranked else {"q.weight": "q_proj.weight"})
        weights = renamed("DeepseekV2Attention", state_dict, prefix, names)
        dim, values = weights["out.weight"].shape
        rebuilt, kv_rank = weights["kv_up.weight"].shape
        rope_dim = len(weights["kv_down.weight"]) - kv_rank
        if values % heads or rebuilt % heads:
            raise ValueError(f"MLA wants heads that divide {values} and {rebuilt}, not {heads}")
        mixer = cls(
            dim,
            heads,
            q_rank=len(weights["q_down.weight"]) if ranked else None,
            kv_rank=kv_rank,
            nope_dim=(rebuilt - values) // heads,
            rope_dim=rope_dim,
            v_dim=values // heads,
            rotary_base=rotary_base,
            rotary_scaling=rotary_scaling,
            scale=scale,
        )
        order = torch.arange(rope_dim).view(-1, 2).T.flatten()
        q = weights["q_up.weight" if ranked else "q.weight"].unflatten(0, (heads, -1))
        for turned in (q, weights["kv_down.weight"].unsqueeze(0)):
            rows = turned[:, turned.shape[1] - rope_dim :]
            rows.copy_(rows[:, order])
        fill(mixer, weights, names)
        return mixer

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, heads={self.heads}, q_rank={self.q_rank}, kv_rank={self.kv_rank}, "
            f"nope_dim={self.nope_dim}, rope_dim={self.rope_dim}, v_dim={self.v_dim}"
        )


_COMMON = {
    "kv_down.weight": "kv_a_proj_with_mqa.weight",
    "kv_norm.weight": "kv_a_layernorm.weight",
    "kv_up.weight": "kv_b_proj.weight",
    "out.weight": "o_proj.weight",
}
_RANKED = {
    "q_down.weight": "q_a_proj.weight",
    "q_norm.weight": "q_a_layernorm.weight",
    "q_up.weight": "q_b_proj.weight",
}
