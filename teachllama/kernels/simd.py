"""Vectors for Numba: several numbers in one value, and memory read by address.

Numba vectorizes plain loops automatically, but not those that decode the bytes of a quantized block. The types here are
explicit: `F32x16` and `F32x32` hold 16 or 32 float32, `I32x16` holds 16 integers. They do not depend on the processor:
they are LLVM's generic vectors, and one F32x16 becomes one register of AVX-512, two of AVX2, four of NEON.
https://llvm.org/docs/LangRef.html#vector-type

Independent of models. Addresses are trusted: Python checks shapes and lifetimes before it calls a kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from inspect import isfunction
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model
from numba.np import numpy_support

from teachllama.kernels import symbols

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_F16, _F32 = ir.HalfType(), ir.FloatType()

# Parts of kernels: Numba only types them and generates their LLVM IR; `machine_code.py` does the rest.
_njit: Any = njit  # Numba's own annotations lack two of these
jit: Any = _njit(nogil=True, error_model="numpy", boundscheck=False, no_cpython_wrapper=True, no_cfunc_wrapper=True)


class VectorType(types.Type):
    """A vector of `lanes` numbers of one LLVM type."""

    def __init__(self, name: str, element: Any, lanes: int):
        self.element, self.lanes = element, lanes
        super().__init__(name=f"{name}x{lanes}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType):
        super().__init__(manager, kind, ir.VectorType(kind.element, kind.lanes))


class RowsType(types.Type):
    """Several vectors of one type: the sums of some rows of weights, held in registers."""

    def __init__(self, rows: int, vector: VectorType):
        self.rows, self.vector = rows, vector
        super().__init__(name=f"{rows}x{vector.name}")


@register_model(RowsType)
class _RowsModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: RowsType):
        super().__init__(manager, kind, ir.ArrayType(ir.VectorType(kind.vector.element, kind.vector.lanes), kind.rows))


F32x8, F32x16, F32x32 = (VectorType("F32", _F32, lanes) for lanes in (8, 16, 32))
I32x16 = VectorType("I32", _I32, 16)

MASKED = -1e30  # the score of a key that a token must not see: e^MASKED is 0, without NaN
Emit = Callable[[Any, Any], Any]  # (LLVM builder, arguments) -> LLVM value


def _function(result: Any, arguments: tuple[Any, ...], emit: Emit) -> Any:
    """Makes a function for kernels. `result` is a type, the index of the argument that has it, or returns a type."""

    def typed(typingctx: Any, *given: Any) -> Any:
        wanted = [g if w is None else w for g, w in zip(given, arguments, strict=True)]
        returns = given[result] if isinstance(result, int) else result(*given) if isfunction(result) else result

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = emit(builder, args)
            return context.get_dummy_value() if value is None else value

        return returns(*wanted), generate

    # Numba inspects the names and number of parameters, so the function must have the right number.
    wrapper = {0: lambda t: typed(t), 1: lambda t, a0: typed(t, a0), 2: lambda t, a0, a1: typed(t, a0, a1)}
    wrapper[3] = lambda t, a0, a1, a2: typed(t, a0, a1, a2)
    wrapper[4] = lambda t, a0, a1, a2, a3: typed(t, a0, a1, a2, a3)
    wrapper[7] = lambda t, a0, a1, a2, a3, a4, a5, a6: typed(t, a0, a1, a2, a3, a4, a5, a6)
    return intrinsic(wrapper[len(arguments)])


def _pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, kind: Any, lanes: int = 0) -> Any:
    """One number, or `lanes` of them, at an address of any alignment."""
    return builder.load(_pointer(builder, address, ir.VectorType(kind, lanes) if lanes else kind), align=1)


def _store(builder: Any, args: Any) -> None:
    builder.store(args[1], _pointer(builder, args[0], args[1].type), align=1)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = ir.VectorType(value.type, lanes)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


def _constant(kind: Any, *values: float) -> Any:
    return ir.Constant(kind, list(values) * (1 if len(values) > 1 else kind.count))


def _llvm(builder: Any, name: str, result: Any, args: list[Any], **flags: Any) -> Any:
    kind = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, **flags)


def _vector_llvm(name: str) -> Emit:
    return lambda b, args: _llvm(b, f"llvm.{name}.v{args[0].type.count}f32", args[0].type, list(args))


_V16, _W16 = ir.VectorType(_F32, 16), ir.VectorType(_I32, 16)
_A, _F, _I = types.int64, types.float32, types.int64

# ---- memory ----
f32_at = _function(_F, (_A,), lambda b, a: _load(b, a[0], _F32))


def _f16_looked_up(b: Any, bits: Any) -> Any:
    kind = ir.ArrayType(_F32, 1 << 16)
    table = b.module.globals.get(symbols.F16_TABLE) or ir.GlobalVariable(b.module, kind, symbols.F16_TABLE)
    return b.load(b.gep(table, [_I64(0), bits], inbounds=True))


f16_at = _function(_F, (_A,), lambda b, a: _f16_looked_up(b, b.zext(_load(b, a[0], _I16), _I64)))
f16_of_bits = _function(_F, (_I,), lambda b, a: _f16_looked_up(b, a[0]))  # a constant written so takes no register
u8_at = _function(_I, (_A,), lambda b, a: b.zext(_load(b, a[0], _I8), _I64))
u32_at = _function(_I, (_A,), lambda b, a: b.zext(_load(b, a[0], _I32), _I64))
i64_at = _function(_I, (_A,), lambda b, a: _load(b, a[0], _I64))
put_f32 = _function(types.void, (_A, _F), _store)
put_i8 = _function(types.void, (_A, _I), lambda b, a: _store(b, (a[0], b.trunc(a[1], _I8))))
put_i16 = _function(types.void, (_A, _I), lambda b, a: _store(b, (a[0], b.trunc(a[1], _I16))))
put_f16 = _function(types.void, (_A, _F), lambda b, a: _store(b, (a[0], b.fptrunc(a[1], _F16))))

f32_of_bits = _function(_F, (_I,), lambda b, a: b.bitcast(b.trunc(a[0], _I32), _F32))

load = _function(F32x16, (_A,), lambda b, a: _load(b, a[0], _F32, 16))
load_f16 = _function(F32x16, (_A,), lambda b, a: b.fpext(_load(b, a[0], _F16, 16), _V16))
load_bf16 = _function(
    F32x16,
    (_A,),
    lambda b, a: b.bitcast(b.shl(b.zext(_load(b, a[0], _I16, 16), _W16), _constant(_W16, 16)), _V16),
)
load_i8 = _function(I32x16, (_A,), lambda b, a: b.sext(_load(b, a[0], _I8, 16), _W16))
load_u8 = _function(I32x16, (_A,), lambda b, a: b.zext(_load(b, a[0], _I8, 16), _W16))
# The address of 16 float32 on the stack, which are lost when the function ends that calls this.
room_for_16 = _function(_A, (), lambda b, a: b.ptrtoint(cgutils.alloca_once(b, _V16), _I64))
load_like = _function(1, (_A, None), lambda b, a: _load(b, a[0], a[1].type.element, a[1].type.count))
store = _function(types.void, (_A, None), _store)


def constants(numbers: list[int]) -> Any:
    """For kernels: index -> one of these numbers."""
    table = ir.Constant(ir.ArrayType(_I64, len(numbers)), numbers)

    def emit(b: Any, args: Any) -> Any:
        return b.load(b.gep(cgutils.global_constant(b.module, "numbers", table), [_I64(0), args[0]]))

    return _function(_I, (_A,), emit)


def _prefetch(b: Any, args: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
    function = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(function, [_pointer(b, args[0], _I8), _I32(0), _I32(3), _I32(1)])  # for reading, into all cache levels, data


prefetch = _function(types.void, (_A,), _prefetch)  # starts loading a cache line for later; any address is allowed

# ---- making vectors ----
zeros16 = _function(F32x16, (), lambda b, a: _constant(_V16, 0.0))
zeros32 = _function(F32x32, (), lambda b, a: _constant(ir.VectorType(_F32, 32), 0.0))
splat = _function(F32x16, (_F,), lambda b, a: _splat(b, a[0], 16))
splat_like = _function(1, (_F, None), lambda b, a: _splat(b, a[0], a[1].type.count))
splat_int = _function(I32x16, (_I,), lambda b, a: _splat(b, b.trunc(a[0], _I32), 16))
bytes_of = _function(  # the eight bytes of a, then those of b
    I32x16,
    (_I, _I),
    lambda b, a: b.zext(b.bitcast(b.insert_element(_splat(b, a[0], 2), a[1], _I32(1)), ir.VectorType(_I8, 16)), _W16),
)
two_halves = _function(  # eight lanes of a, eight of b
    F32x16,
    (_F, _F),
    lambda b, a: b.shuffle_vector(_splat(b, a[0], 8), _splat(b, a[1], 8), _constant(_W16, *range(16))),
)
iota = _function(I32x16, (), lambda b, a: _constant(_W16, *range(16)))

lanes = _function(_I, (None,), lambda b, a: _I64(a[0].type.count))  # how many numbers a vector holds

# ---- arithmetic ----
fma = _function(2, (None, None, None), _vector_llvm("fma"))  # a * b + c, rounded once
fma_scalar = _function(  # scalar * b + c
    2,
    (_F, None, None),
    lambda b, a: _vector_llvm("fma")(b, (_splat(b, a[0], a[1].type.count), a[1], a[2])),
)
fma_numbers = _function(_F, (_F, _F, _F), lambda b, a: _llvm(b, "llvm.fma.f32", _F32, list(a)))  # for plain numbers
largest = _function(0, (None, None), _vector_llvm("maxnum"))
smallest = _function(0, (None, None), _vector_llvm("minnum"))
square_root = _function(0, (None,), _vector_llvm("sqrt"))
to_float = _function(F32x16, (I32x16,), lambda b, a: b.sitofp(a[0], _V16))
_nearest = _function(0, (None,), _vector_llvm("rint"))


def _kept(b: Any, args: Any) -> Any:
    value, first, end = args
    lanes = value.type.count
    kind = ir.VectorType(_I32, lanes)
    lane = _constant(kind, *range(lanes))
    after = b.icmp_signed(">=", lane, _splat(b, b.trunc(first, _I32), lanes))
    before = b.icmp_signed("<", lane, _splat(b, b.trunc(end, _I32), lanes))
    return b.select(b.and_(after, before), value, _constant(value.type, MASKED))


mask_lanes = _function(0, (None, _I, _I), _kept)  # lanes first to end are kept, the others become MASKED


def _two_to_the(b: Any, args: Any) -> Any:
    kind = ir.VectorType(_I32, args[0].type.count)
    exponent = b.add(b.fptosi(args[0], kind), _constant(kind, 127))
    return b.bitcast(b.shl(exponent, _constant(kind, 23)), args[0].type)


_power_of_two = _function(0, (None,), _two_to_the)  # 2^n for whole n, by writing a float32's exponent


def _lane_sums(b: Any, vectors: list[Any]) -> Any:
    """A vector with the sum of each given one's lanes. Two share a vector as soon as half of one is enough.

    Halves are added until one number per vector is left: always in this order, so that equal lanes give equal sums.
    """
    lanes = vectors[0].type.count  # of one of them
    while lanes > 1:
        pairs = list(zip(vectors[::2], vectors[1::2], strict=True)) if len(vectors) > 1 else [(vectors[0], None)]
        vectors = []
        for one, other in pairs:
            n = one.type.count * (1 if other is None else 2)
            low, high = (
                b.shuffle_vector(
                    one,
                    ir.Constant(one.type, ir.Undefined) if other is None else other,
                    ir.Constant(ir.VectorType(_I32, n // 2), [i for i in range(n) if i // (lanes // 2) % 2 == half]),
                )
                for half in (0, 1)
            )
            vectors.append(b.fadd(low, high))
        lanes //= 2
    return vectors[0]


# The sum of all lanes.
hsum = _function(_F, (None,), lambda b, a: b.extract_element(_lane_sums(b, [a[0]]), _I32(0)))
hmax = _function(_F, (F32x16,), lambda b, a: _llvm(b, "llvm.vector.reduce.fmax.v16f32", _F32, [a[0]]))


def _looked_up(b: Any, args: Any) -> Any:
    table, index = args[0], b.and_(args[1], _constant(args[1].type, 15))
    out = ir.Constant(table.type, ir.Undefined)
    for lane in range(16):
        one = b.extract_element(table, b.extract_element(index, _I32(lane)))
        out = b.insert_element(out, one, _I32(lane))
    return out


# table[index & 15] for each lane: one instruction of AVX-512, which LLVM recognizes; elsewhere many.
look_up = _function(0, (F32x16, I32x16), _looked_up)


# ---- rows of vectors ----
def _row_addresses(b: Any, args: Any, rows: int) -> list[Any]:
    """The address of each row, `args[1]` bytes apart from `args[0]` on.

    Four rows share a base: a processor's address modes add a multiple of the step.
    """
    base, step = args
    bases = [base if r == 0 else b.add(base, b.mul(step, _I64(r))) for r in range(0, rows, 4)]
    return [b.add(bases[r // 4], b.mul(step, _I64(r % 4))) for r in range(rows)]


def _each_row(change: Callable[[Any, Any, Any, Any], Any]) -> Emit:
    """Rows, an address, a step between rows, and perhaps a vector -> rows: `change(builder, row, address, vector)`."""

    def emit(b: Any, args: Any) -> Any:
        rows = args[0]
        for r, at in enumerate(_row_addresses(b, args[1:3], rows.type.count)):
            row = change(b, b.extract_value(args[0], r), at, args[-1])
            rows = rows if row is None else b.insert_value(rows, row, r)
        return rows

    return emit


def _add_product(b: Any, row: Any, at: Any, v: Any) -> Any:
    return _vector_llvm("fma")(b, (_splat(b, _load(b, at, _F32), v.type.count), v, row))


def _add_times(b: Any, row: Any, at: Any, v: Any) -> Any:
    return _vector_llvm("fma")(b, (v, _load(b, at, _F32, v.type.count), row))


def _add_stored(b: Any, row: Any, at: Any, _: Any) -> Any:
    return b.fadd(row, _load(b, at, _F32, row.type.count))


def _rows_of_zeros(rows: int, vector: VectorType) -> Any:
    kind = RowsType(rows, vector)
    return _function(kind, (), lambda b, a: ir.Constant(ir.ArrayType(ir.VectorType(_F32, vector.lanes), rows), None))


zeros_8x32, zeros_8x16 = _rows_of_zeros(8, F32x32), _rows_of_zeros(8, F32x16)
zeros_6x16, zeros_4x8 = _rows_of_zeros(6, F32x16), _rows_of_zeros(4, F32x8)
zeros_2x16, zeros_4x16 = _rows_of_zeros(2, F32x16), _rows_of_zeros(4, F32x16)
zeros_1x32, zeros_1x16, zeros_1x8 = (_rows_of_zeros(1, vector) for vector in (F32x32, F32x16, F32x8))
load_row = _function(  # a vector as long as a row of the second argument
    lambda at, rows: rows.vector, (_A, None), lambda b, a: _load(b, a[0], _F32, a[1].type.element.count)
)
n_rows = _function(_I, (None,), lambda b, a: _I64(a[0].type.count))
n_lanes = _function(_I, (None,), lambda b, a: _I64(a[0].type.element.count))
# rows, address, step, v -> rows[r] + (the number at address + r * step) * v
add_products = _function(0, (None, _A, _I, None), _each_row(_add_product))
# rows, address, step, v -> rows[r] + (the vector at address + r * step) * v
add_vectors = _function(0, (None, _A, _I, None), _each_row(_add_times))
add_stored = _function(0, (None, _A, _I), _each_row(_add_stored))


def _store_sums(b: Any, args: Any) -> Any:
    rows = args[0]
    sums = _lane_sums(b, [b.extract_value(rows, r) for r in range(rows.type.count)])
    for r, at in enumerate(_row_addresses(b, args[1:], rows.type.count)):
        _store(b, (at, b.extract_element(sums, _I32(r))))
    return rows


# The sum of each row's lanes, stored `step` bytes apart.
store_sums = _function(0, (None, _A, _I), _store_sums)
store_rows = _function(0, (None, _A, _I), _each_row(lambda b, row, at, _: _store(b, (at, row))))
tile_shape = _function(_I, (), lambda b, a: _llvm(b, symbols.TILE_SHAPE, _I64, []))  # a number of `shapes.py`


def _operator(symbol: Any, on_floats: str | None, on_ints: str | None) -> None:
    """Defines an operator for vectors. The right side may be a plain number, which is then used for every lane."""

    def both(b: Any, args: Any) -> Any:
        left, right = args
        name = on_floats if left.type.element == _F32 else on_ints
        if not isinstance(right.type, ir.VectorType):
            if on_ints and right.type != left.type.element and left.type.element == _I32:
                right = b.trunc(right, _I32)
            right = _splat(b, right, left.type.count)
        return getattr(b, str(name))(left, right)

    vectors = _function(0, (None, None), both)
    with_float = _function(0, (None, _F), both)
    with_int = _function(0, (None, _I), both)

    @overload(symbol)
    def _(left, right):  # type: ignore[no-untyped-def]  # Numba compares this signature with the lambdas'
        if not isinstance(left, VectorType):
            return None
        if isinstance(right, VectorType):
            return lambda left, right: vectors(left, right)
        if left.element == _F32:
            return lambda left, right: with_float(left, right)
        return lambda left, right: with_int(left, right)


negative = _function(0, (None,), lambda b, a: b.fneg(a[0]))

for _symbol, _on_floats, _on_ints in (
    (operator.add, "fadd", "add"),
    (operator.sub, "fsub", "sub"),
    (operator.mul, "fmul", "mul"),
    (operator.truediv, "fdiv", None),
    (operator.and_, None, "and_"),
    (operator.or_, None, "or_"),
    (operator.lshift, None, "shl"),
    (operator.rshift, None, "lshr"),
):
    _operator(_symbol, _on_floats, _on_ints)


@jit
def exp(x: Any) -> Any:
    """e^x for each lane, to about one unit in the last place, with x clamped to -87 to 88.

    2^n * e^r with |r| at most ln(2) / 2, and a polynomial for e^r (coefficients of Cephes' expf,
    https://www.netlib.org/cephes/).
    """
    x = smallest(largest(x, splat_like(-87.0, x)), splat_like(88.0, x))
    n = _nearest(x * 1.44269504088896341)
    r = fma_scalar(-0.693359375, n, x)  # ln(2) in two parts, so that r keeps all its bits
    r = fma_scalar(2.12194440e-4, n, r)
    p = fma_scalar(1.9875691500e-4, r, splat_like(1.3981999507e-3, x))
    p = fma(p, r, splat_like(8.3334519073e-3, x))
    p = fma(p, r, splat_like(4.1665795894e-2, x))
    p = fma(p, r, splat_like(1.6666665459e-1, x))
    p = fma(p, r, splat_like(5.0000001201e-1, x))
    p = fma(p, r * r, r + splat_like(1.0, x))
    return p * _power_of_two(n)


def record_at(dtype: np.dtype[Any]) -> Any:
    """For kernels: the record of a NumPy structured type at an address; its fields are read in place."""
    record = numpy_support.from_dtype(dtype)

    @intrinsic
    def at(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(record))

        return record(types.int64), generate

    return at


# ---- functions by address ----
def address_of(function: Any, *arguments: Any) -> Any:
    """For kernels: a function that returns the address of a compiled one, for these types of arguments.

    What calls a function by its address is the same code for all functions, so Numba compiles it once. LLVM inlines it
    where the address is known, and the function too: it becomes as if written for that one function.
    """

    @intrinsic
    def address(typingctx: Any) -> Any:
        function.get_call_template(arguments, {})  # compiles it

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            compiled = function.overloads[arguments]
            context.add_linking_libs((compiled.library,))
            return builder.ptrtoint(context.declare_function(builder.module, compiled.fndesc), _I64)

        return types.int64(), generate

    return address


def _called(b: Any, args: Any, result: Any) -> Any:
    # Numba's calling convention: the result, and an exception, are returned through pointers.
    slot, error = cgutils.alloca_once(b, result), cgutils.alloca_once(b, cgutils.voidptr_t)
    pointers = [slot, error, *args[1:]]
    kind = ir.FunctionType(_I32, [a.type for a in pointers])
    b.call(_pointer(b, args[0], kind), pointers)
    return b.load(slot)


# address, arguments -> what the function at the address returns, which has the last argument's type; or nothing
call_6 = _function(6, (_A, _I, _I, _I, _I, _I, None), lambda b, a: _called(b, a, a[-1].type))
call_3 = _function(types.void, (_A, _I, _I, _I), lambda b, a: _called(b, a, cgutils.voidptr_t) and None)


# ---- between threads ----
atomic_add = _function(  # the old value
    _I, (_A, _I), lambda b, a: b.atomic_rmw("add", _pointer(b, a[0], _I64), a[1], "seq_cst")
)
atomic_load = _function(_I, (_A,), lambda b, a: b.load_atomic(_pointer(b, a[0], _I64), "acquire", 8))
atomic_store = _function(types.void, (_A, _I), lambda b, a: b.store_atomic(a[1], _pointer(b, a[0], _I64), "release", 8))
yield_thread = _function(  # sched_yield, by a name of our own: not every system has one (`symbols.py`)
    types.void, (), lambda b, a: _llvm(b, symbols.YIELD, _I32, []) and None
)
