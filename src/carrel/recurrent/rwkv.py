"""RWKV by its version."""

from __future__ import annotations

from .rwkv4 import RWKV4
from .rwkv6 import RWKV6


def RWKV(dim: int, version: int = 4, heads: int | None = None, head_dim: int = 64) -> RWKV4 | RWKV6:  # noqa: N802
    r"""Attention without queries that compare: a sum over the past that decays, with a state of constant size.

    .. math:: S_t = \mathrm{diag}(w_t)\, S_{t-1} + k_t v_t^\top

    In version 4 k and v are numbers per channel, w is the same for all tokens and what is read is an average; in
    version 6 they are vectors per head and each token chooses w. :class:`RWKV4` and :class:`RWKV6` have the equations.
    A model alternates them with :class:`RWKVChannelMix`.

    Args:
        dim: width of x and y.
        version: 4 or 6.
        heads, head_dim: of version 6, where heads · head_dim must be dim; heads None takes as many as fit. Version 4
            has none and refuses them.
    Returns the mixer, a new :class:`RWKV4` or :class:`RWKV6`.
    Raises ValueError: another version, or sizes that the version does not take.
    Source: arXiv:2305.13048 (version 4), arXiv:2404.05892 (version 6).
    """
    if version == 6:
        return RWKV6(dim, heads, head_dim)
    if version != 4:
        raise ValueError(f"RWKV wants version 4 or 6, not {version!r}")
    if heads is not None or head_dim != 64:
        raise ValueError(f"RWKV of version 4 has no heads; it was given heads={heads} and head_dim={head_dim}")
    return RWKV4(dim)
