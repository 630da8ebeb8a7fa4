"""C functions called for each row of a table of arguments: one call from Python, without its lock.

Threads that call for each image through ctypes wait for the lock after each one. The loop is built with
llvmlite, which is there wherever FFCV is (numba needs it), in about 20 ms.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

WORD = ir.IntType(64)
"""Of an argument: the 64-bit ABIs of Linux pass each whole number in a place of that size."""


class RowCaller:
    """Calls C functions, one after another, for each row of a table.

    Args:
        functions: address of each function and its number of arguments, all of which are whole numbers or
            addresses. The first returns an int; what others return is not looked at.
    """

    def __init__(self, *functions: tuple[int, int]) -> None:
        self._addresses = [address for address, _ in functions]
        self._width = sum(arguments for _, arguments in functions)
        self._engine = _compiled(_module([arguments for _, arguments in functions]))
        types = [ctypes.c_int64] * (2 + len(functions))
        self._loop: Callable[..., None] = ctypes.CFUNCTYPE(None, *types)(
            self._engine.get_function_address("each_row")
        )

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Call the functions for each row and return the results of the first.

        Args:
            rows: int64 (n, arguments of all functions), contiguous; the first column is overwritten.

        Returns:
            int64 (n,): a view of the first column.
        """
        assert rows.dtype == np.int64
        assert rows.flags.c_contiguous
        assert rows.shape[1] == self._width
        if len(rows):
            self._loop(rows.ctypes.data, len(rows), *self._addresses)
        results: np.ndarray = rows[:, 0]
        return results


def _module(counts: list[int]) -> str:
    """Return LLVM's text of `each_row(first row, number of rows, functions …)`, for at least one row."""
    module = ir.Module()
    kind = ir.FunctionType(ir.VoidType(), [WORD] * (2 + len(counts)))
    function = ir.Function(module, kind, "each_row")
    rows, length, *addresses = function.args
    entry, loop, done = map(function.append_basic_block, ("entry", "loop", "done"))
    ir.IRBuilder(entry).branch(loop)
    builder = ir.IRBuilder(loop)
    number = builder.phi(WORD)
    number.add_incoming(WORD(0), entry)
    _calls(builder, builder.add(rows, builder.mul(number, WORD(8 * sum(counts)))), addresses, counts)
    following = builder.add(number, WORD(1))
    number.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, length), loop, done)
    ir.IRBuilder(done).ret_void()
    return str(module)


def _calls(builder: ir.IRBuilder, row: Any, addresses: list[Any], counts: list[int]) -> None:
    """Call each function with its part of a row, and keep the result of the first in the row's first word."""
    words = [
        builder.inttoptr(builder.add(row, WORD(8 * place)), WORD.as_pointer()) for place in range(sum(counts))
    ]
    arguments = [builder.load(word) for word in words]
    for number, (address, count) in enumerate(zip(addresses, counts, strict=True)):
        own, arguments = arguments[:count], arguments[count:]
        kind = ir.FunctionType(ir.IntType(32), [WORD] * count)
        result = builder.call(builder.inttoptr(address, kind.as_pointer()), own)
        if number == 0:
            builder.store(builder.sext(result, WORD), words[0])


def _compiled(source: str) -> Any:
    """Return LLVM's engine, which owns the machine code."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(source)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    return engine
