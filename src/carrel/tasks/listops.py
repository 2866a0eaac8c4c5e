"""Nested arithmetic on digits, read token by token."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = (*"0123456789", *OPERATORS, "]", "")
_CLOSE, _PAD = 14, 15
_OPERATOR_SHARE = 0.25
_PATIENCE = 10**6  # rejected trees in a row


def listops(
    batch: int,
    *,
    max_depth: int = 10,
    max_args: int = 10,
    min_length: int = 500,
    max_length: int = 2000,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The value, 0 to 9, of a nested expression such as ``[MAX 4 [MIN 2 7 ] 0 ]``.

    A tree is grown from its root at depth 1. At a depth below max_depth a node is an operator with probability 1/4,
    otherwise, and always at max_depth, a digit. An operator has 2 to max_args children. MIN and MAX are what they say,
    MED is the median (of an even number the mean of the middle two, rounded down), SM the sum modulo 10. Trees are
    drawn until one has a fitting number of tokens, an operator with its bracket being one token and the closing bracket
    another: 10 digits, 4 operators and ``]`` make 15, in the order of ``TOKENS``.

    Args:
        batch: number of expressions.
        max_depth: levels of a tree, at least 2.
        max_args: children of an operator at most, at least 2.
        min_length, max_length: tokens of an expression, 1 <= min_length < max_length.
        generator: the only source of chance; on the CPU.
    Returns x: (batch, max_length) int64, shorter expressions having a sixteenth token, 15, in front; y like it, 0
        except at the last token; mask like them, bool, true at the last token. Answers are not equally frequent (MIN
        makes 0 and MAX makes 9): compare with ``(y[:, -1].bincount() / batch).max()``, the share of the commonest.
    Raises ValueError: a size out of range, or a million trees in a row of which none had a fitting length.
    Cost: about 1 µs per token drawn, of which most are thrown away if few trees fit.
    Source: arXiv:1804.06028; the sizes by default are those of arXiv:2011.04006, section 2.2.1.
    """
    if batch < 0 or max_depth < 2 or max_args < 2 or not 1 <= min_length < max_length:
        raise ValueError(
            "listops wants batch >= 0, max_depth >= 2, max_args >= 2 and 1 <= min_length < max_length, not batch="
            f"{batch}, max_depth={max_depth}, max_args={max_args}, min_length={min_length}, max_length={max_length}"
        )
    # of Python's generator only random() is promised to stay the same from one version to the next
    draw = random.Random(int(torch.randint(2**63 - 1, (), generator=generator))).random
    x = torch.full((batch, max_length), _PAD)
    y, mask = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool)
    mask[:, -1] = True
    for row in range(batch):
        tokens, value = _fitting(draw, max_depth, max_args, min_length, max_length)
        x[row, max_length - len(tokens) :] = torch.tensor(tokens)
        y[row, -1] = value
    return x, y, mask


def evaluate(tokens: Sequence[int]) -> int:
    """The value of an expression in tokens as :func:`listops` writes it, padding in front allowed.

    Raises ValueError: the tokens are no expression.
    """
    open_: list[tuple[int, list[int]]] = [(-1, [])]
    for token in tokens:
        if token < 10:
            open_[-1][1].append(int(token))
        elif token < _CLOSE:
            open_.append((int(token) - 10, []))
        elif token == _CLOSE and len(open_) > 1 and open_[-1][1]:
            operator, values = open_.pop()
            open_[-1][1].append(_apply(operator, values))
        elif token != _PAD:
            raise ValueError(f"{' '.join(TOKENS[t] for t in tokens).strip()!r} is no expression")
    if len(open_) != 1 or len(open_[0][1]) != 1:
        raise ValueError(f"{' '.join(TOKENS[t] for t in tokens).strip()!r} is no expression")
    return open_[0][1][0]


def _fitting(draw: Callable[[], float], max_depth: int, max_args: int, low: int, high: int) -> tuple[list[int], int]:
    for _ in range(_PATIENCE):
        tokens: list[int] = []
        value = _grow(draw, tokens, 1, max_depth, max_args, high)
        if low <= len(tokens) <= high:
            return tokens, value
    raise ValueError(
        f"listops drew {_PATIENCE} trees of depth {max_depth} with up to {max_args} arguments, "
        f"and none had {low} to {high} tokens"
    )


def _grow(draw: Callable[[], float], tokens: list[int], depth: int, max_depth: int, max_args: int, high: int) -> int:
    """Append a subtree and return its value; once there are too many tokens it stops, and neither means anything."""
    if depth >= max_depth or draw() >= _OPERATOR_SHARE:
        value = int(draw() * 10)
        tokens.append(value)
        return value
    operator = int(draw() * 4)
    tokens.append(10 + operator)
    values = []
    for _ in range(2 + int(draw() * (max_args - 1))):
        values.append(_grow(draw, tokens, depth + 1, max_depth, max_args, high))
        if len(tokens) >= high:  # without the bracket that is still to come
            break
    tokens.append(_CLOSE)
    return _apply(operator, values)


def _apply(operator: int, values: list[int]) -> int:
    if operator == 0:
        return min(values)
    if operator == 1:
        return max(values)
    if operator == 2:
        ordered, middle = sorted(values), len(values) // 2
        return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) // 2
    return sum(values) % 10
