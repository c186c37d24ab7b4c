"""Pickles of numpy arrays, read without unpickling: nothing that the file names is ever called.

A pickle is a program for a small machine with a stack. This machine knows plain data and the five names with which
numpy writes an array. To it they are words: what they make is a note of a type, a shape and bytes, which is checked
before numpy sees it. Every other instruction, and every other name, is refused.
"""

from __future__ import annotations

import math
import mmap
import pickletools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from upsnet.errors import InputError

MOST_STEPS = 200_000  # of the machine; a network with 1000 tensors needs 30 000
MOST_AXES = 32
TYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")
MARK = object()

# The names that numpy's arrays are pickled with, in all of Python's protocols and numpy's versions.
NAMES = {
    **dict.fromkeys(
        [("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")], "reconstruct"
    ),
    **dict.fromkeys([("numpy.core.numeric", "_frombuffer"), ("numpy._core.numeric", "_frombuffer")], "frombuffer"),
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    **dict.fromkeys([("builtins", "bytes"), ("__builtin__", "bytes")], "bytes"),  # empty ones, before protocol 3
}

CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}


class Refused(Exception):
    """Why a pickle is not read."""


class Word:
    """One of NAMES, on the stack. Nothing can be called through it."""

    def __init__(self, name: str) -> None:
        self.name = name


class Type:
    """A numpy type in the making: `code` as f4, then its byte order."""

    def __init__(self, code: str) -> None:
        self.code = code


class Array:
    """A numpy array: `values`, a copy in native byte order. Empty until its state is known."""

    def __init__(self) -> None:
        self.values = np.zeros(0, np.float32)


def read_pickle(path: Path) -> Any:  # whatever plain data it holds
    """Plain data, with an `Array` for each array. InputError: it holds anything else, or is truncated or corrupt."""
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Machine(len(content)).run(content)
    except Refused as error:
        raise InputError(f"{path}: a pickle that {error}; only numpy arrays of numbers are read from pickles") from None
    except (ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        reason = f" ({error})" if isinstance(error, ValueError) else ""  # the others' words are Python's own
        raise InputError(f"{path}: truncated or corrupt, or no file of weights{reason}") from None


class _Machine:
    """`size`: of the file in bytes. What it makes of them is no more, however often it says the same again."""

    def __init__(self, size: int) -> None:
        self.left = {"text": size, "arrays": size}
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: Any) -> Any:  # bytes, or a file
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step == MOST_STEPS:
                raise Refused(f"has more than {MOST_STEPS} instructions")
            if opcode.name == "STOP":
                return self.pop()
            self.step(opcode.name, argument)
        raise ValueError("it has no end")

    def step(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "FRAME":
                pass
            case _ if name in CONSTANTS:
                self.stack.append(CONSTANTS[name])
            case _ if name in LITERALS:
                self.stack.append(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "TUPLE":
                self.stack.append(tuple(self.pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(self.take(int(name[-1])))
            case "EMPTY_LIST":
                self.stack.append([])
            case "LIST":
                self.stack.append(self.pop_mark())
            case "APPEND" | "APPENDS":
                values = self.pop_mark() if name == "APPENDS" else self.take(1)
                self.top(list).extend(values)
            case "EMPTY_DICT":
                self.stack.append({})
            case "DICT":
                items = self.pop_mark()
                self.stack.append({})
                self.set_items(items)
            case "SETITEM" | "SETITEMS":
                self.set_items(self.pop_mark() if name == "SETITEMS" else self.take(2))
            case "GLOBAL":
                self.name(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                self.name(*self.take(2))
            case "REDUCE":
                self.reduce()
            case "BUILD":
                self.build()
            case _:
                raise Refused(f"has the instruction {name}")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("a mark where a value should be")
        return value

    def pop_mark(self) -> list[Any]:
        values: list[Any] = []
        while (value := self.stack.pop()) is not MARK:
            values.append(value)
        return values[::-1]

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"no {kind.__name__} where one should be")
        return self.stack[-1]

    def take(self, count: int) -> tuple[Any, ...]:
        return tuple(self.pop() for _ in range(count))[::-1]

    def set_items(self, values: Sequence[Any]) -> None:
        target = self.top(dict)
        for key, value in zip(values[::2], values[1::2], strict=True):
            if not isinstance(key, str | int):
                raise Refused(f"has a {type(key).__name__} as a key")
            target[key] = value

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if (module, name) not in NAMES:
            raise Refused(f"names {module[:60]}.{name[:60]}")
        self.stack.append(Word(NAMES[module, name]))

    def reduce(self) -> None:
        arguments, word = self.pop(), self.pop()
        if not isinstance(word, Word) or not isinstance(arguments, tuple):
            raise Refused("calls what is none of numpy's names")
        match word.name, arguments:
            case "encode", (str(text), "latin1"):
                self.stack.append(self.encoded(text))
            case "bytes", ():
                self.stack.append(b"")
            case "dtype", (str(code), *_):
                self.stack.append(Type(code))
            case "reconstruct", (Word(name="ndarray"), *_):
                self.stack.append(Array())
            case "frombuffer", (bytes() | bytearray() as data, Type() as kind, tuple(shape), "C" | "F" as order):
                self.stack.append(self.array(Array(), kind, shape, order, data))
            case "frombuffer", (bytes() | bytearray() as data, Type() as kind, tuple(shape), "K", tuple(axes)) if all(
                type(axis) is int for axis in axes
            ):
                array = self.array(Array(), kind, shape, "C", data)
                array.values = np.ascontiguousarray(array.values.transpose(axes))
                self.stack.append(array)
            case _:
                raise Refused(f"calls {word.name} in no way that numpy's arrays need")

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        match target, state:
            case Type(), (int(), "<" | ">" | "=" | "|" as order, None, None, None, *_):
                target.code = order + target.code
            case Array(), (int(), tuple(shape), Type() as kind, bool() | int() as fortran, bytes() | str() as data):
                data = self.encoded(data) if isinstance(data, str) else data
                self.array(target, kind, shape, "F" if fortran else "C", data)
            case _:
                raise Refused("sets the state of what is no array of numbers")

    def array(self, target: Array, kind: Type, shape: tuple[Any, ...], order: str, data: bytes | bytearray) -> Array:
        if not TYPE.fullmatch(kind.code):
            raise Refused(f"has an array of type {kind.code[:20]}")
        dtype = np.dtype(kind.code)
        if len(shape) > MOST_AXES or not all(type(side) is int and 0 <= side < 2**63 for side in shape):
            raise ValueError("an array without a shape")
        if math.prod(shape) * dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {list(shape)} with {len(data)} bytes")
        self.charge("arrays", len(data))
        values = np.ndarray(shape, dtype, data, order="F" if order == "F" else "C")
        target.values = np.array(values, dtype.newbyteorder("="), order="C")
        return target

    def encoded(self, text: str) -> bytes:
        self.charge("text", len(text))
        return text.encode("latin1")

    def charge(self, account: str, size: int) -> None:
        self.left[account] -= size
        if self.left[account] < 0:
            raise Refused("makes more bytes than it has")
