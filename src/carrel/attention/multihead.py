"""Softmax attention over all earlier tokens, or the latest of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from carrel.layers.mixer import Mixer
from carrel.layers.norms import RMSNorm
from carrel.layers.rotary import RoPE, RotaryScaling, rotate
from carrel.layers.state import KVCache
from carrel.layers.transformers_weights import fill, renamed

from .attend import attend
from .normalizers import NORMALIZERS
from .scale import attention_scale

_ALPHA = 1.5  # where a learnt one starts


class MHA(Mixer):
    r"""Every token looks back at all tokens so far, in several heads at once.

    .. math:: o_t^{(s)} = \sum_{j \le t} p_{tj}^{(s)} v_j^{(g)}, \qquad
              p_{tj}^{(s)} = \mathrm{softmax}_{j \le t}\, \frac{(R_t q_t^{(s)})^\top R_j k_j^{(g)}}{\sqrt{d}}, \qquad
              y_t = W_o\,[o_t^{(1)}; \dots; o_t^{(H)}]

    q, k and v are linear in x; query head s reads key-value head g = ⌊s G / H⌋. The rotation R_t makes a score depend
    on how far back j lies. The state grows with every token, until a window is full.

    Args:
        dim: width of x and y.
        heads: H, query heads.
        kv_heads: G, key-value heads, a divisor of H. H if None, the usual attention; 1 is multi-query attention, which
            makes the state H times smaller; between them lies grouped-query attention.
        head_dim: d, channels of a head; dim / heads if None.
        rotary_base: of the rotation, see :func:`carrel.layers.rotary_frequencies`. None leaves it out: the past is
            then a set without order.
        rotary_scaling: for contexts longer than the trained one, such as :class:`carrel.layers.YaRNScaling`.
        scale: what scores are multiplied by, a rule of :func:`carrel.attention.attention_scale` for as many keys as a
            token sees; "standard" is the root above. "gradmax-cosine" needs qk_norm.
        scale_base: m of the rule "entropy".
        qk_norm: divide queries and keys by their root mean square and scale each channel, before the rotation.
        window: tokens that a token sees, itself included; all if None.
        normalizer: what makes weights of scores, a name that :func:`carrel.attention.normalize` knows. "sparsemax",
            "entmax15", "entmax", which learns an alpha for each head, and "sparse-softmax" give exact zeros. All but
            "softmax" hold every weight in memory.
        top_k: tokens that a query of "sparse-softmax" looks at, those of the largest scores; all where there are fewer.
    x, y: (batch, length, dim).   state: KVCache(k, v, pos), 2 G d numbers per token and row, keys already rotated; with
        a window the latest window - 1 tokens.
    Raises ValueError: heads does not divide dim, kv_heads does not divide heads, an odd head_dim with rotation, a
        window below 1, an unknown scale or normalizer, top_k missing or without use; x or the state of a wrong shape or
        type.
    Cost: 4 L² H d operations for L tokens, halved where the causal half is skipped, at most 8 L H d window with a
    window; one token after T others costs 4 T H d and reads each of the 2 T G d numbers once. Nothing of the cache is
    copied for it, if gradients are off.
    Source: arXiv:1706.03762, section 3.2; arXiv:1911.02150 and 2305.13245 for kv_heads, arXiv:2104.09864 for the
    rotation.
    """

    no_weight_decay: ClassVar[frozenset[str]] = frozenset({"alpha"})

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        rotary_base: float | None = 10000.0,
        rotary_scaling: RotaryScaling | None = None,
        scale: Literal["standard", "entropy", "gradmax-normal", "gradmax-cosine"] = "standard",
        scale_base: float = 512.0,
        qk_norm: bool = False,
        window: int | None = None,
        normalizer: str = "softmax",
        top_k: int | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if dim < 1 or heads < 1 or kv_heads < 1 or heads % kv_heads:
            raise ValueError(
                "MHA wants dim and heads of at least 1 and kv_heads that divide heads, "
                f"not dim={dim}, heads={heads} and kv_heads={kv_heads}"
            )
        if head_dim is None and dim % heads:
            raise ValueError(f"MHA wants heads that divide dim, or head_dim, not dim={dim} and heads={heads}")
        head_dim = dim // heads if head_dim is None else head_dim
        if head_dim < 1:
            raise ValueError(f"MHA wants head_dim of at least 1, not {head_dim}")
        if rotary_base is None and rotary_scaling is not None:
            raise ValueError("MHA wants a rotary_base where there is a rotary_scaling")
        if window is not None and window < 1:
            raise ValueError(f"MHA wants a window of at least 1, not {window}")
        if normalizer not in NORMALIZERS:
            raise ValueError(f"MHA wants a normalizer among {', '.join(NORMALIZERS)}, not {normalizer!r}")
        if (top_k is None) is (normalizer == "sparse-softmax") or (top_k is not None and top_k < 1):
            raise ValueError(f"MHA wants top_k of at least 1 for sparse-softmax alone, not {top_k} for {normalizer}")
        if scale == "gradmax-cosine" and not qk_norm:
            raise ValueError("MHA wants qk_norm for the scale gradmax-cosine, whose scores are cosines")
        attention_scale(1, head_dim, scale, base=scale_base)  # says what is wrong with them
        self.dim, self.heads, self.kv_heads, self.head_dim = dim, heads, kv_heads, head_dim
        self.rotary_base = rotary_base
        self.rope = None if rotary_base is None else RoPE(head_dim, rotary_base, rotary_scaling)
        self.scale, self.scale_base = scale, scale_base
        self.window, self.normalizer, self.top_k = window, normalizer, top_k
        self.alpha = nn.Parameter(torch.full((heads,), _ALPHA)) if normalizer == "entmax" else None
        self.qkv = nn.Linear(dim, (heads + 2 * kv_heads) * head_dim, bias=False)
        self.q_norm = RMSNorm(head_dim) if qk_norm else None
        self.k_norm = RMSNorm(head_dim) if qk_norm else None
        self.out = nn.Linear(heads * head_dim, dim, bias=False)

    def forward(self, x: Tensor, state: KVCache | None = None) -> tuple[Tensor, KVCache]:
        self._check_input(x)
        batch, length, _ = x.shape
        heads = self.qkv(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        q, k, v = heads.split([self.heads, self.kv_heads, self.kv_heads], 1)
        self._check_state(k, state)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        steps = torch.arange(length, device=x.device)
        at = steps if state is None else state.pos[:, None] + steps
        if self.rope is not None:
            turns = self.rope.turns(at, x.dtype)
            q, k = rotate(q, turns), rotate(k, turns)
        factor = None
        if self.scale != "standard":
            q, factor = self._scaled(q, at + 1), 1.0
        if state is None:
            after = KVCache(k, v, torch.full((batch,), length, dtype=torch.int64, device=x.device))
        else:
            after = state.append(k, v)
        pos = None if state is None else after.pos
        o = attend(
            q,
            after.k,
            after.v,
            pos,
            window=self.window,
            normalizer=self.normalizer,
            alpha=self.alpha,
            top_k=self.top_k,
            scale=factor,
        )
        if self.window is not None:
            after = after.latest(self.window - 1)
        return self.out(o.transpose(1, 2).flatten(2)), after

    def _scaled(self, q: Tensor, counts: Tensor) -> Tensor:
        """Each query times the factor for as many keys as it sees, which costs less than a factor on each score."""
        seen = counts if self.window is None else counts.clamp(max=self.window)
        factor = attention_scale(seen, self.head_dim, self.scale, base=self.scale_base)
        if self.scale == "gradmax-cosine":
            factor = factor / self.head_dim  # a root mean square of 1 is a length of sqrt(head_dim)
        factor = factor.to(torch.promote_types(q.dtype, torch.float32)).unsqueeze(-1)
        return (q * (factor if counts.dim() == 1 else factor.unsqueeze(1))).to(q.dtype)

    def _check_state(self, k: Tensor, state: KVCache | None) -> None:
        if state is None:
            return
        if not isinstance(state, KVCache):
            raise ValueError(f"MHA wants a KVCache or None as its state, not {type(state).__name__}")
        batch, heads, _, dim = k.shape
        tokens = state.k.shape[2] if state.k.dim() == 4 else 0
        wanted = (batch, heads, tokens, dim)
        for name, part in (("k", state.k), ("v", state.v)):
            if tuple(part.shape) != wanted or part.dtype != k.dtype:
                raise ValueError(
                    f"MHA wants a state with {name} of shape ({batch}, {heads}, tokens, {dim}) and type {k.dtype}, "
                    f"not {tuple(part.shape)} and {part.dtype}"
                )
        if tuple(state.pos.shape) != (batch,):
            raise ValueError(f"MHA wants a state with pos of shape ({batch},), not {tuple(state.pos.shape)}")

    @classmethod
    def from_transformers(
        cls,
        state_dict: Mapping[str, Tensor],
        prefix: str = "",
        *,
        heads: int,
        rotary_base: float = 10000.0,
        rotary_scaling: RotaryScaling | None = None,
        window: int | None = None,
    ) -> MHA:
        """A mixer with the weights of a ``LlamaAttention`` or ``MistralAttention`` of Hugging Face's transformers.

        Args:
            state_dict: what ``self_attn.state_dict()`` returns, or that of a whole model. Sizes are read off shapes.
            prefix: in front of the attention's names in a whole model, such as "model.layers.0.self_attn.".
            heads, rotary_base: ``num_attention_heads`` and ``rope_theta`` of its configuration, which no shape tells.
            rotary_scaling: where it stretches the context; "yarn" is ``YaRNScaling(…, ramp="index")``.
            window: Mistral's ``sliding_window``.
        Returns a mixer in the weights' type, sharing no memory with them. Raises ValueError: a weight is missing or of
        a shape that does not fit, or one is there that this mixer has no place for, such as a bias.
        """
        weights = renamed("LlamaAttention", state_dict, prefix, _TRANSFORMERS)
        q, k, v = (weights.pop(name) for name in ("q", "k", "v"))
        if heads < 1 or len(q) % heads or len(k) % (len(q) // heads) or k.shape != v.shape:
            raise ValueError(
                "MHA wants heads that divide the rows of q_proj, whose size divides those of k_proj and v_proj, "
                f"not heads={heads} with {len(q)}, {len(k)} and {len(v)} rows"
            )
        head_dim = len(q) // heads
        mixer = cls(
            q.shape[1],
            heads,
            kv_heads=len(k) // head_dim,
            head_dim=head_dim,
            rotary_base=rotary_base,
            rotary_scaling=rotary_scaling,
            window=window,
        )
        weights["qkv.weight"] = torch.cat([q, k, v])
        fill(mixer, weights, _TRANSFORMERS | {"qkv.weight": "q_proj, k_proj and v_proj"})
        return mixer

    def extra_repr(self) -> str:
        return (
            f"{self.dim}, heads={self.heads}, kv_heads={self.kv_heads}, scale={self.scale}, window={self.window}, "
            f"normalizer={self.normalizer}, {self.rope}"
        )


_TRANSFORMERS = {
    "q": "q_proj.weight",
    "k": "k_proj.weight",
    "v": "v_proj.weight",
    "out.weight": "o_proj.weight",
}
