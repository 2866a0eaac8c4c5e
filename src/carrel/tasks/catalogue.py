"""The problems by name, each at a size at which mixers can be told apart within minutes."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .copying import copying, selective_copying
from .digits import CLASSES, sequential_digits
from .induction import induction_heads
from .listops import TOKENS, listops
from .mqar import mqar
from .recall import copy_first_symbol

_Triple = tuple[Tensor, Tensor, Tensor]


class Batch(NamedTuple):
    """x: (batch, tokens) int64 or (batch, tokens, in_dim) float32; y: (batch, tokens) int64, 0 where nothing is asked;
    mask: (batch, tokens) bool, true where an answer is scored."""

    x: Tensor
    y: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Task:
    """A problem of a fixed size.

    ``length`` is the argument of its generator; a sequence may have a few tokens more, which ask for answers.
    ``vocab`` is the number of tokens, or ``in_dim`` the size of real inputs, the other being None; ``out_dim`` the
    number of answers. ``batch`` and ``steps`` are the training that it is meant for. ``chance`` is the share of answers
    that are right without looking: of a guess among equally frequent ones, or, where they are not, of the commonest.
    """

    name: str
    about: str
    length: int
    vocab: int | None
    in_dim: int | None
    out_dim: int
    batch: int
    steps: int
    chance: float
    make: Callable[..., _Triple] = field(repr=False)
    splits: bool = field(default=False, repr=False)

    def sample(self, batch: int, generator: torch.Generator, *, held_out: bool = False) -> Batch:
        """``batch`` sequences, a function of the task and the generator alone.

        ``held_out`` takes them from the part kept for judging where the data are finite; where they are drawn from
        a distribution, sequences from a generator of another seed serve as such.
        """
        options = {"held_out": held_out} if self.splits else {}
        return Batch(*self.make(batch, generator=generator, **options))


def make_task(name: str, length: int | None = None) -> Task:
    """The task of this name; ``length`` None is its own.

    Raises ValueError: no task has this name, or none of this length can be made.
    """
    try:
        build, own = _TASKS[name]
    except KeyError:
        near = difflib.get_close_matches(name, _TASKS, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(_TASKS)}"
        raise ValueError(f"no task is called {name!r}; {hint}") from None
    return build(own if length is None else length)


def _want(good: bool, name: str, wanted: str, length: int) -> None:
    if not good:
        raise ValueError(f"{name} wants {wanted}, not {length}")


_DATA, _SYMBOLS = 4, 8


def _copying(length: int) -> Task:
    _want(length >= _DATA, "copying", f"a length of at least {_DATA}", length)
    return Task(
        name="copying",
        about=f"Write down the first {_DATA} of {length} tokens at the end: a fixed delay is enough.",
        length=length, vocab=_SYMBOLS + 2, in_dim=None, out_dim=_SYMBOLS, batch=32, steps=400, chance=1 / _SYMBOLS,
        make=functools.partial(copying, length=length, data=_DATA, vocab=_SYMBOLS),
    )  # fmt: skip


def _selective_copying(length: int) -> Task:
    _want(length >= _DATA, "selective-copying", f"a length of at least {_DATA}", length)
    return Task(
        name="selective-copying",
        about=f"Write down {_DATA} symbols that stand anywhere among {length} tokens, in order: what to keep depends "
        "on the token.",
        length=length, vocab=_SYMBOLS + 2, in_dim=None, out_dim=_SYMBOLS, batch=32, steps=1000, chance=1 / _SYMBOLS,
        make=functools.partial(selective_copying, length=length, data=_DATA, vocab=_SYMBOLS),
    )  # fmt: skip


def _induction_heads(length: int) -> Task:
    _want(length >= 3, "induction-heads", "a length of at least 3", length)
    return Task(
        name="induction-heads",
        about=f"Among {length} tokens one stands twice, the second time at the end: name what followed it before.",
        length=length, vocab=17, in_dim=None, out_dim=16, batch=32, steps=1000, chance=1 / 16,
        make=functools.partial(induction_heads, length=length, vocab=16),
    )  # fmt: skip


def _mqar(length: int) -> Task:
    _want(length >= 4 and length % 2 == 0, "mqar", "an even length of at least 4", length)
    keys = max(1, length // 8)
    vocab = max(64, 4 * keys)
    return Task(
        name="mqar",
        about=f"Read {keys} pairs of keys and values, then name each key's value where the key returns.",
        length=length, vocab=vocab, in_dim=None, out_dim=vocab, batch=64, steps=1000, chance=2 / vocab,
        make=functools.partial(mqar, length=length, keys=keys, vocab=vocab, alpha=0.1),
    )  # fmt: skip


@functools.cache  # the share of the commonest answer takes a second
def _listops(length: int) -> Task:
    low, high = 16, 2000
    _want(low <= length <= high, "listops", f"a length from {low} to {high}", length)
    depth, width, shortest = (4, 4, 8) if length <= 100 else (10, 10, length // 4)
    make = functools.partial(listops, max_depth=depth, max_args=width, min_length=shortest, max_length=length)
    return Task(
        name="listops",
        about=f"Work out nested minima, maxima, medians and sums of digits, {shortest} to {length} tokens long.",
        length=length, vocab=len(TOKENS), in_dim=None, out_dim=10, batch=32, steps=1000,
        chance=_commonest(make, min(4000, max(1000, 256_000 // length))), make=make,
    )  # fmt: skip


def _commonest(make: Callable[..., _Triple], size: int) -> float:
    _, y, _ = make(size, generator=torch.Generator().manual_seed(0))
    return float(y[:, -1].bincount().max()) / size


def _sequential_digits(length: int) -> Task:
    _want(length in (8, 64), "sequential-digits", "64 tokens, the pixels, or 8, the rows", length)
    rows = length == 8
    return Task(
        name="sequential-digits",
        about=f"Name the handwritten digit whose {'rows' if rows else 'pixels'} were read one by one.",
        length=length, vocab=None, in_dim=8 if rows else 1, out_dim=CLASSES, batch=32, steps=1000, chance=1 / CLASSES,
        make=functools.partial(sequential_digits, rows=rows), splits=True,
    )  # fmt: skip


def _copy_first_symbol(length: int) -> Task:
    _want(length >= 1, "copy-first-symbol", "a length of at least 1", length)
    return Task(
        name="copy-first-symbol",
        about=f"A symbol, then {length} tokens of noise; name the symbol at the end.",
        length=length, vocab=None, in_dim=10, out_dim=10, batch=32, steps=400, chance=1 / 10,
        make=functools.partial(copy_first_symbol, length=length, classes=10),
    )  # fmt: skip


_TASKS: dict[str, tuple[Callable[[int], Task], int]] = {
    "copying": (_copying, 32),
    "selective-copying": (_selective_copying, 32),
    "induction-heads": (_induction_heads, 64),
    "mqar": (_mqar, 32),
    "listops": (_listops, 64),
    "sequential-digits": (_sequential_digits, 64),
    "copy-first-symbol": (_copy_first_symbol, 256),
}
TASKS: tuple[str, ...] = tuple(_TASKS)
