"""States that several mixers share."""

from __future__ import annotations

import threading
import weakref
from typing import NamedTuple

import torch
from torch import Tensor


class KVCache(NamedTuple):
    """Keys and values of all tokens so far; grows by one column of each per token.

    k, v: (batch, kv_heads, tokens, head_dim), the latest token last; pos: (batch,) int64, tokens that a row has seen.
    A row with ``pos`` below ``tokens`` owns only its last ``pos`` columns: to join states of different lengths, fill
    the shorter ones up in front.
    """

    k: Tensor
    v: Tensor
    pos: Tensor

    def append(self, k: Tensor, v: Tensor) -> KVCache:
        """The cache with further columns; this one keeps its meaning.

        Without gradients k and v of the result lie at the front of a buffer with room for as many columns again. The
        first to append to them writes into that room, at no more cost than the new columns; whoever appends to the
        same cache a second time, or to picked rows, gets a buffer of its own. With gradients everything is copied.
        """
        return KVCache(_append(self.k, k), _append(self.v, v), self.pos + k.shape[2])

    def truncate(self, tokens: int) -> KVCache:
        """The cache of the first ``tokens`` columns: what came later is taken back."""
        back = self.k.shape[2] - tokens
        return KVCache(self.k[:, :, :tokens], self.v[:, :, :tokens], (self.pos - back).clamp(min=0))

    def reorder(self, rows: Tensor) -> KVCache:
        """The cache whose rows are those given, (rows,) int64: beam search goes on from some several times and drops
        others. Each goes on by itself."""
        return KVCache(*(part.index_select(0, rows) for part in self))

    def latest(self, tokens: int) -> KVCache:
        """The cache of the last ``tokens`` columns, or of all if there are fewer; pos still counts the others."""
        first = max(self.k.shape[2] - tokens, 0)
        return KVCache(self.k[:, :, first:], self.v[:, :, first:], self.pos)


class LatentCache(NamedTuple):
    """One latent vector and one turned key for all heads of every token so far; it grows as :class:`KVCache` does.

    c: (batch, 1, tokens, kv_rank), k_rope: (batch, 1, tokens, rope_dim), the latest token last; the axis of one stands
    where other caches have heads. pos: (batch,) int64, tokens that a row has seen, and owns if they are fewer.
    """

    c: Tensor
    k_rope: Tensor
    pos: Tensor

    def append(self, c: Tensor, k_rope: Tensor) -> LatentCache:
        """The cache with further columns; this one keeps its meaning. See :meth:`KVCache.append`."""
        return LatentCache(_append(self.c, c), _append(self.k_rope, k_rope), self.pos + c.shape[2])

    def truncate(self, tokens: int) -> LatentCache:
        """The cache of the first ``tokens`` columns: what came later is taken back."""
        back = self.c.shape[2] - tokens
        return LatentCache(self.c[:, :, :tokens], self.k_rope[:, :, :tokens], (self.pos - back).clamp(min=0))

    def reorder(self, rows: Tensor) -> LatentCache:
        """The cache whose rows are those given. See :meth:`KVCache.reorder`."""
        return LatentCache(*(part.index_select(0, rows) for part in self))


def visible(pos: Tensor, columns: int, length: int, window: int | None = None) -> Tensor:
    """Which columns of a cache its newest ``length`` tokens may look at: (batch, 1, length, columns) bool.

    They are the last ``length`` columns; a token sees itself and what came before, within ``window`` tokens where that
    is given, as far as the row owns it (``pos``: (batch,), after appending).
    """
    column = torch.arange(columns, device=pos.device)
    newest = column[columns - length :, None]
    seen = column <= newest if window is None else (column <= newest) & (column > newest - window)
    return seen & (column >= columns - pos[:, None])[:, None, None]


# Columns written so far, by the memory that they lie in. A view knows its own length only, and a mark within the
# tensors would be copied, moved and saved along with them.
_written: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
_LEAST_ROOM = 16  # columns


def _append(old: Tensor, new: Tensor) -> Tensor:
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.cat((old, new), 2)
    count, total = old.shape[2], old.shape[2] + new.shape[2]
    if not _claim(old, new.shape[2]):
        batch, heads, _, dim = old.shape
        room = old.new_empty(batch, heads, 2 * max(total, _LEAST_ROOM), dim)
        room[:, :, :count] = old
        with _lock:
            _written[room.untyped_storage()] = total
        old = room[:, :, :count]
    _, heads, _, dim = old.shape
    whole = old.as_strided((old.shape[0], heads, total, dim), old.stride(), old.storage_offset())
    whole[:, :, count:] = new
    return whole


def _claim(old: Tensor, more: int) -> bool:
    """Whether ``old`` ends where a buffer with room for ``more`` columns is written to; marks them as written, too."""
    if old.is_inference() and not torch.is_inference_mode_enabled():
        return False  # torch forbids it
    storage = old.untyped_storage()
    batch, heads, count, dim = old.shape
    columns = old.stride(0) // (heads * dim) if batch and heads and dim else 0
    dense = (columns * heads * dim, columns * dim, dim, 1)
    size = batch * heads * columns * dim * old.element_size()
    if old.stride() != dense or storage.nbytes() != size:
        return False
    first, within = divmod(int(old.storage_offset()), dim)  # a cache of the latest columns begins further on
    end = first + count
    if within or end + more > columns:
        return False
    with _lock:
        if _written.get(storage) != end:
            return False
        _written[storage] = end + more
    return True
