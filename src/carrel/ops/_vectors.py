"""Numbers side by side in one register, for numba kernels whose loops LLVM does not vectorise well by itself.

A `Vector` is a value like a float: it lives in variables, and what is held over a loop stays in registers. 32 bytes
are one register of AVX2; where registers are narrower, LLVM uses several. Nothing here looks at bounds.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

_BYTES = 32


class Vector(types.Type):
    """The type numba gives to such a value."""

    def __init__(self, dtype: Any) -> None:
        self.dtype, self.lanes = dtype, _BYTES * 8 // dtype.bitwidth
        super().__init__(f"vector of {self.lanes} {dtype}")


@register_model(Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Vector) -> None:
        super().__init__(manager, kind, ir.VectorType(manager.lookup(kind.dtype).get_value_type(), kind.lanes))


def _place(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    """Pointer to the vector that starts at an index of a one-dimensional contiguous array."""
    pointer = builder.gep(context.make_array(kind)(context, builder, array).data, [index])
    return builder.bitcast(pointer, context.get_value_type(Vector(kind.dtype)).as_pointer())


def _align(context: Any, kind: Any) -> int:
    return int(context.get_abi_sizeof(context.get_data_type(kind.dtype)))


def _lanes(context: Any, array: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, Vector(signature.args[0].dtype).lanes)

    return types.intp(array), generate


def _load(context: Any, array: Any, index: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        return builder.load(_place(context, builder, kind, *args), align=_align(context, kind))

    return Vector(array.dtype)(array, types.intp), generate


def _store(context: Any, array: Any, index: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = signature.args[0]
        builder.store(args[2], _place(context, builder, kind, *args[:2]), align=_align(context, kind))
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


def _broadcast(context: Any, builder: Any, kind: Vector, number: Any) -> Any:
    whole = context.get_value_type(kind)
    first = builder.insert_element(ir.Constant(whole, ir.Undefined), number, ir.Constant(ir.IntType(32), 0))
    return _shuffle(builder, first, first, [0] * whole.count)


def _every(context: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _broadcast(context, builder, signature.return_type, args[0])

    return Vector(number)(number), generate


def _same(context: Any, array: Any, index: Any) -> Any:
    vector = Vector(array.dtype)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return _broadcast(context, builder, vector, builder.load(builder.gep(data, [args[1]])))

    return vector(array, types.intp), generate


def _times(context: Any, a: Any, b: Any) -> Any:
    return a(a, b), lambda context, builder, signature, args: builder.fmul(*args, flags=("contract", "nsz"))


def _plus(context: Any, a: Any, b: Any) -> Any:
    return a(a, b), lambda context, builder, signature, args: builder.fadd(*args, flags=("contract", "nsz"))


def _over(context: Any, a: Any, b: Any) -> Any:
    return a(a, b), lambda context, builder, signature, args: builder.fdiv(*args)


def _times_plus(context: Any, a: Any, b: Any, c: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        whole = context.get_value_type(signature.return_type)
        number = "f32" if signature.return_type.dtype.bitwidth == 32 else "f64"
        name = f"llvm.fmuladd.v{whole.count}{number}"  # one instruction where the processor has it
        kind = ir.FunctionType(whole, [whole] * 3)
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)

    return a(a, b, c), generate


def _shuffle(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(order)), order))


def _total(context: Any, vector: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (x,), count = args, signature.args[0].lanes
        while count > 1:
            count //= 2
            halves = [list(range(count)), list(range(count, 2 * count))]
            x = builder.fadd(*(_shuffle(builder, x, x, half) for half in halves), flags=("contract", "nsz"))
        return builder.extract_element(x, ir.Constant(ir.IntType(32), 0))

    return vector.dtype(vector), generate


def _kept(context: Any, vector: Any, sign: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(context.get_value_type(signature.return_type), None)
        return builder.select(builder.fcmp_ordered(">", args[1], zero), args[0], zero)

    return vector(vector, sign), generate


lanes: Any = intrinsic(_lanes)  # lanes(array): numbers in a vector of its kind, known when compiled
load: Any = intrinsic(_load)  # load(array, index)
store: Any = intrinsic(_store)  # store(array, index, vector)
every: Any = intrinsic(_every)  # every(number): the same in all lanes
same: Any = intrinsic(_same)  # same(array, index): that number in all lanes
times: Any = intrinsic(_times)  # times(a, b)
plus: Any = intrinsic(_plus)  # plus(a, b)
over: Any = intrinsic(_over)  # over(a, b)
times_plus: Any = intrinsic(_times_plus)  # times_plus(a, b, c) = a b + c
kept: Any = intrinsic(_kept)  # kept(a, b): a where b is above 0, and 0 elsewhere
total: Any = intrinsic(_total)  # total(vector): the sum of its lanes
