"""The contract of every sequence mixer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class Mixer(nn.Module, ABC):
    r"""A causal map over a sequence that can be fed in pieces.    y, state = mixer(x, state=None)

    .. math:: (y_{1..k}, s_k) = \text{mixer}(x_{1..k}, s_0), \quad (y_{k+1..L}, s_L) = \text{mixer}(x_{k+1..L}, s_k),
              \qquad \text{the same } y \text{ and } s_L \text{ for every } 0 \le k \le L

    Feeding a sequence in any split, pieces of zero tokens included, gives the same outputs, the same gradients and the
    same future. :func:`carrel.testing.check_streaming` asks this of every mixer.

    Args of ``forward``:
        x: (batch, length, dim), any length from 0 on.
        state: what an earlier call returned, or None at the start of a sequence.
    Returns y: (batch, length, dim), y_t depending on x_1..x_t only; and a new state: a NamedTuple of tensors with
        the batch as first axis, so that rows can be picked, repeated and dropped (``pos: (batch,)`` int64 if positions
        matter). A call never changes what an old state means: replaying from it, and branching, give the same outputs.
    Raises ValueError: x is not (batch, length, dim), or the state does not fit x and the mixer.

    A subclass sets ``dim``; ``chunk``, the number of tokens that it works on at once (1 if it goes token by token);
    ``restarts``, the number of tokens after which it begins anew and sees none before, or 0 if it never does; and
    ``no_weight_decay``, the names of its own parameters that weight decay would harm.
    A class is either this one or final: a variant is another mixer, or an argument that every path honours.
    """

    dim: int
    chunk: int = 1
    restarts: int = 0
    no_weight_decay: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for base in cls.__bases__:
            if issubclass(base, Mixer) and base is not Mixer:
                raise TypeError(f"{cls.__name__} derives from {base.__name__}, but mixers are final: derive from Mixer")

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]: ...

    def _check_input(self, x: Tensor) -> None:
        if x.dim() != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{type(self).__name__} wants x of shape (batch, length, {self.dim}), not {tuple(x.shape)}"
            )
