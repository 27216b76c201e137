"""The compiled inner loops of the Gram matrix: the integers of the numpy code in metrics.py, far faster.

Pure. Loaded by kernels.py only where a vector is large enough to pay for it; the tests hold them to numpy.
Products of 16-bit integers are written out as vectors of LLVM, since its optimizer does not find by itself
the instruction that multiplies two pairs and adds them (pmaddwd): with it they take a third of the time.
"""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import config, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

RUN = 512
"""Values of each update that are multiplied before their sum leaves the registers."""

LANES = 16
"""32-bit sums held in one vector."""

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_PAIRS, _SUMS = ir.VectorType(_I16, 2 * LANES), ir.VectorType(_I32, LANES)


def _has_pairs() -> bool:
    """Whether code is compiled for this processor, as it is unless numba is told otherwise, and it has the
    instruction."""
    is_own = not config.CPU_NAME and config.CPU_FEATURES is None and config.ENABLE_AVX
    return bool(is_own and binding.get_host_cpu_features().get("avx512bw"))


_HAS_PAIRS = _has_pairs()


def _add_products(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """total + left[2 i] * right[2 i] + left[2 i + 1] * right[2 i + 1], in every lane i."""
    if _HAS_PAIRS:
        kind = ir.FunctionType(_SUMS, [_PAIRS, _PAIRS])
        multiply = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.pmaddw.d.512")
        return builder.add(total, builder.call(multiply, [left, right]))
    for first in (0, 1):
        places = ir.Constant(_SUMS, [2 * i + first for i in range(LANES)])
        nothing = ir.Constant(_PAIRS, ir.Undefined)
        a, b = (builder.sext(builder.shuffle_vector(v, nothing, places), _SUMS) for v in (left, right))
        total = builder.add(total, builder.mul(a, b))
    return total


def _load(builder: Any, pointer: Any, kind: Any) -> Any:
    """A vector from wherever its first value lies."""
    loaded = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    loaded.align = 2
    return loaded


def _data(context: Any, builder: Any, kind: Any, value: Any) -> Any:
    return context.make_array(kind)(context, builder, value).data


def _loop(builder: Any, count: Any, step: int, totals: int, body: Any) -> list[Any]:
    """`totals` vectors of zeros, carried through body(at, vectors) for at = 0, step, ... below count > 0."""
    before = builder.basic_block
    loop, done = builder.append_basic_block("loop"), builder.append_basic_block("done")
    builder.branch(loop)
    builder.position_at_end(loop)
    at = builder.phi(_I64)
    at.add_incoming(_I64(0), before)
    carried = [builder.phi(_SUMS) for _ in range(totals)]
    for each in carried:
        each.add_incoming(ir.Constant(_SUMS, [0] * LANES), before)
    after = body(at, carried)
    following = builder.add(at, _I64(step))
    at.add_incoming(following, builder.basic_block)
    for each, value in zip(carried, after, strict=True):
        each.add_incoming(value, builder.basic_block)
    builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    builder.position_at_end(done)
    return list(after)


@intrinsic
def _add_tile(typing: Any, rows: Any, i: Any, j: Any, out: Any) -> Any:
    """out[i:i+4, j:j+4] += rows[i:i+4] @ rows[j:j+4].T for int16 (K, RUN) of at most 8191; out int64 (K, K).

    A lane adds 32 products before it is widened: 32 * 8191**2 is below 2**31.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = _data(context, builder, signature.args[0], arguments[0])
        target = _data(context, builder, signature.args[3], arguments[3])
        starts = [
            builder.gep(data, [builder.mul(builder.add(first, _I64(k)), _I64(RUN))])
            for first in arguments[1:3]
            for k in range(4)
        ]

        def body(at: Any, totals: list[Any]) -> list[Any]:
            vectors = [_load(builder, builder.gep(start, [at]), _PAIRS) for start in starts]
            return [
                _add_products(builder, totals[4 * a + b], vectors[a], vectors[4 + b])
                for a in range(4)
                for b in range(4)
            ]

        sums = _loop(builder, _I64(RUN), 2 * LANES, 16, body)
        wide = ir.VectorType(_I64, LANES)
        kind = ir.FunctionType(_I64, [wide])
        add_up = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.add.v{LANES}i64")
        shape = context.make_array(signature.args[3])(context, builder, arguments[3]).shape
        row_length = builder.extract_value(shape, 1)
        for index, vector in enumerate(sums):
            row = builder.add(arguments[1], _I64(index // 4))
            place = builder.add(builder.mul(row, row_length), builder.add(arguments[2], _I64(index % 4)))
            pointer = builder.gep(target, [place])
            total = builder.call(add_up, [builder.sext(vector, wide)])
            builder.store(builder.add(builder.load(pointer), total), pointer)
        return context.get_dummy_value()

    return types.void(rows, types.intp, types.intp, out), generate


@intrinsic
def _turn_rows(
    typing: Any, values: Any, start: Any, table: Any, pairs: Any, out: Any, to: Any, step: Any
) -> Any:
    """Four rows of values, `step` apart from `start`, times 16 columns of a table, into out[to + row * step].

    values int16, table int16 (pairs, 16, 2): two values of each column after the other. out int32.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data, matrix, target = (_data(context, builder, signature.args[k], arguments[k]) for k in (0, 2, 4))
        _, first, _, count, _, place, width = arguments
        offsets = [builder.mul(width, _I64(k)) for k in range(4)]
        starts = [builder.gep(data, [builder.add(first, offset)]) for offset in offsets]

        def body(at: Any, totals: list[Any]) -> list[Any]:
            columns = _load(builder, builder.gep(matrix, [builder.mul(at, _I64(2 * LANES))]), _PAIRS)
            after = []
            for start, total in zip(starts, totals, strict=True):
                pointer = builder.gep(start, [builder.mul(at, _I64(2))])
                pair = builder.load(builder.bitcast(pointer, _I32.as_pointer()))
                pair.align = 2
                one = builder.insert_element(ir.Constant(_SUMS, ir.Undefined), pair, _I32(0))
                everywhere = builder.shuffle_vector(
                    one, ir.Constant(_SUMS, ir.Undefined), ir.Constant(_SUMS, [0] * LANES)
                )
                after.append(_add_products(builder, total, builder.bitcast(everywhere, _PAIRS), columns))
            return after

        for offset, vector in zip(offsets, _loop(builder, count, 1, 4, body), strict=True):
            pointer = builder.gep(target, [builder.add(place, offset)])
            stored = builder.store(vector, builder.bitcast(pointer, _SUMS.as_pointer()))
            stored.align = 4
        return context.get_dummy_value()

    signature = types.void(values, types.intp, table, types.intp, out, types.intp, types.intp)
    return signature, generate


@njit(nogil=True, error_model="numpy")
def turn_int8(scales: Any, codes: Any, modules: Any, tables: Any, shifts: Any, out: Any, update: Any) -> None:
    """metrics.Metrics.turned of one int8 delta, into out[:, update].

    scales uint32 (runs, 2), codes int8 (runs, RUN), modules int64 (runs,): whose values a run holds.
    tables int16 (modules, width / 16, width / 2, 16, 2): of each module the matrix by which rows of `width`
    values are turned, as metrics._tables lays it out. shifts int64 (modules,). out int16 (runs, K, RUN).
    """
    width = 2 * tables.shape[2]
    values, products = np.empty(RUN, dtype=np.int16), np.empty(RUN, dtype=np.int32)
    for run in range(codes.shape[0]):
        row = codes[run]
        for n in range(RUN):
            values[n] = row[n]
        module = modules[run]
        for part in range(tables.shape[1]):
            table = tables[module, part]
            for start in range(0, RUN, 4 * width):
                _turn_rows(values, start, table, tables.shape[2], products, start + 16 * part, width)
        shift = shifts[module]
        half = (np.int64(1) << shift) >> 1
        target = out[run, update]
        for block in range(2):
            scale = np.int64(scales[run, block])
            of_block, turned = products[256 * block :][:256], target[256 * block :][:256]
            for n in range(256):
                rounded = (np.int64(of_block[n]) * scale + half) >> shift
                turned[n] = np.int16(max(min(rounded, np.int64(8191)), np.int64(-8191)))


@njit(nogil=True, error_model="numpy")
def add_gram(values: Any, modules: Any, out: Any) -> None:
    """out[module] += the products of its runs with one another, for tiles on and above the diagonal.

    values int16 (runs, K, RUN), K a multiple of 4. out int64 (modules, K, K).
    """
    count = values.shape[1]
    for run in range(values.shape[0]):
        rows, target = values[run], out[modules[run]]
        for i in range(0, count, 4):
            for j in range(i, count, 4):
                _add_tile(rows, i, j, target)
