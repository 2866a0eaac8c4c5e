"""Moving tokens and memories between flat memory and the kernels' scratch, in numba.

Channels of k lie in blocks of `LANES`, those of v in tiles of `TILE`, whose rows have fixed distances: LLVM then needs
no comparisons of addresses before it vectorises. Tokens past the end are filled in as ones that change nothing.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .._compile import kernel
from .._vectors import load, store

LANES, TILE = 16, 64
# Rows of a block of LANES channels, four tokens each: q, k, decays a, what q sees of its own decay f (a, or 1 if
# exclusive), q and k times the decays back to, or on to, the border of the four, dots with S or G, dq; then the
# product of the four decays and X.
AT_Q, AT_K, AT_A, AT_F, AT_QA, AT_KA, AT_DOT, AT_DQ, AT_D, AT_X = (
    LANES * row for row in (0, 4, 8, 12, 16, 20, 24, 28, 32, 33)
)
BLOCK = LANES * 34
# Rows of a tile: v, the gradient g of o, and o or dv.
AT_V, AT_G, AT_O = (TILE * row for row in (0, 4, 8))
ROWS = TILE * 12


def _copying(context: Any, to: Any, there: Any, source: Any, here: Any, count: Any) -> Any:
    """``count`` numbers from one place to another, in bounds and without overlap, which is not looked at.

    Assignment of views would do, but each is counted up and down, by additions that lock the bus.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointers = [context.make_array(signature.args[i])(context, builder, args[i]).data for i in (0, 2)]
        target, origin = (builder.gep(x, [args[i]]) for x, i in zip(pointers, (1, 3), strict=True))
        size = context.get_abi_sizeof(context.get_data_type(to.dtype))
        cgutils.raw_memcpy(builder, target, origin, args[4], size)
        return context.get_dummy_value()

    return types.void(to, types.intp, source, types.intp, types.intp), generate


_copy: Any = intrinsic(_copying)


def _fetching(context: Any, source: Any, here: Any) -> Any:
    """Ask for the memory at a place that will be read soon; one that does not exist is passed over."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = context.make_array(signature.args[0])(context, builder, args[0]).data
        byte, whole = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, whole, whole, whole])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        place = builder.bitcast(builder.gep(pointer, [args[1]]), byte)
        builder.call(prefetch, [place, whole(0), whole(3), whole(1)])
        return context.get_dummy_value()

    return types.void(source, types.intp), generate


_fetch: Any = intrinsic(_fetching)


def _plainly(context: Any, number: Any) -> Any:
    """A number whose value is no part of its type: for each constant numba would compile a function anew."""
    return types.intp(types.intp), lambda context, builder, signature, args: args[0]


plain: Any = intrinsic(_plainly)


@kernel
def put(to, place, source, start, count, width, step, row, ahead):
    """Copy ``count`` tokens into four rows of each block, at ``place`` in it; the others become 0.

    Tokens that many ``ahead`` are asked for: what comes next, up or down in time.
    """
    for first in range(0, width, row):
        there, some = place + first // row * step, min(row, width - first)
        for r in range(count):
            here = start[0] + r * start[1] + first
            if some == row:  # a number known when this is compiled: a few moves in place of a call
                _copy(to, there + r * row, source, here, row)
            else:
                _copy(to, there + r * row, source, here, some)
        for c in range(count * row, 4 * row):
            to[there + c] = 0
        for r in range(4):
            for c in range(0, row, LANES):
                _fetch(source, start[0] + (ahead + r) * start[1] + first + c)


@kernel
def take(to, start, source, place, count, width, step, row):
    """The other way round."""
    for first in range(0, width, row):
        here, some = place + first // row * step, min(row, width - first)
        for r in range(count):
            there = start[0] + r * start[1] + first
            if some == row:
                _copy(to, there, source, here + r * row, row)
            else:
                _copy(to, there, source, here + r * row, some)


@kernel
def four(w, at, step):
    """A row of each of the four tokens."""
    return load(w, at), load(w, at + step), load(w, at + 2 * step), load(w, at + 3 * step)


@kernel
def put_four(w, at, step, x0, x1, x2, x3):
    store(w, at, x0)
    store(w, at + step, x1)
    store(w, at + 2 * step, x2)
    store(w, at + 3 * step, x3)


@kernel
def load_state(S, source, size, width):
    """(N, P) into tiles of TILE columns; what lies beyond stays 0."""
    for first in range(0, width, TILE):
        for n in range(size):
            there = (first // TILE * size + n) * TILE
            for p in range(min(TILE, width - first)):
                S[there + p] = source[n, first + p]


@kernel
def store_state(to, S, size, width):
    for first in range(0, width, TILE):
        for n in range(size):
            here = (first // TILE * size + n) * TILE
            for p in range(min(TILE, width - first)):
                to[n, first + p] = S[here + p]


@kernel
def load_turned(S, source, size, width):
    """(N, P) into blocks of LANES channels."""
    for n in range(size):
        for p in range(width):
            S[(n // LANES * width + p) * LANES + n % LANES] = source[n, p]


@kernel
def store_turned(to, S, size, width):
    for n in range(size):
        for p in range(width):
            to[n, p] = S[(n // LANES * width + p) * LANES + n % LANES]
