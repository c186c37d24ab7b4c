"""Pickles of numpy arrays: every form that numpy writes is read, and nothing else; nothing is ever executed."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.importers.pickles import MOST_STEPS, Array, read_pickle
from upsnet.errors import InputError

VALUES = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
ARRAYS: dict[str, np.ndarray] = {
    "plain": VALUES,
    "fortran": np.asfortranarray(VALUES),
    "turned": VALUES.transpose(1, 0, 3, 2),
    "part": VALUES[:, ::2, 1:],
    "scalar": np.ones((), np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "half": VALUES.astype(np.float16),
    "double": VALUES.astype(np.float64),
    "big-endian": VALUES.astype(">f4"),
    "whole": np.arange(-3, 3),
    "bytes": np.arange(6, dtype=np.uint8),
    "flags": VALUES > 0,
    "unaligned": np.frombuffer(b"x" + VALUES.tobytes(), np.float32, offset=1),
    "read-only": np.frombuffer(VALUES.tobytes(), np.float32),
}


def read(folder: Path, content: bytes) -> Any:  # what the pickle holds
    (folder / "file.pkl").write_bytes(content)
    return read_pickle(folder / "file.pkl")


@pytest.mark.parametrize("old_module", [True, False])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_form_of_an_array(tmp_path: Path, protocol: int, old_module: bool) -> None:
    """In the spelling of numpy 1, which detectron2's zoo has, and of numpy 2."""
    content = pickle.dumps({"model": ARRAYS, "again": ARRAYS["plain"], "__author__": "é", "n": 3, "x": 0.5}, protocol)
    found = read(tmp_path, numpy_1(content) if old_module else content)
    assert found["again"] is found["model"]["plain"] and (found["__author__"], found["n"], found["x"]) == ("é", 3, 0.5)
    for name, array in ARRAYS.items():
        values = found["model"][name].values
        assert values.shape == array.shape and values.dtype == array.dtype.newbyteorder("="), name
        assert np.array_equal(values, array) and values.dtype.isnative and values.flags.writeable


def numpy_1(content: bytes) -> bytes:
    """The same with the names of modules that numpy 1 has."""
    frames = [place for opcode, _, place in pickletools.genops(content) if opcode.name == "FRAME"]
    for place in reversed(frames):  # they have a length, and need not be
        assert place is not None
        content = content[:place] + content[place + 9 :]
    for name in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + name, b"numpy.core." + name
        content = content.replace(bytes([len(new)]) + new, bytes([len(old)]) + old).replace(new, old)
    return content


def test_python_2(tmp_path: Path) -> None:
    """Its texts are bytes, and an array's bytes are such a text."""
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\n"
        b"U\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNK\x00K\x00K\x00tb\x89U\x08" + struct.pack("<2f", 1.5, -2) + b"tb"
    )
    found = read(tmp_path, b"\x80\x02}U\x01a" + array + b"s.")
    assert found["a"].values.tolist() == [1.5, -2]


class Calls:
    """Unpickled in earnest it would call `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.state = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.state


def of_type(code: bytes, order: bytes = b"|", fields: bytes = b"NNN") -> bytes:
    """An array of such a type, in protocol 2: 8 bytes, shape [1]."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x01\x85cnumpy\ndtype\nU" + bytes([len(code)]) + code + b"K\x00K\x01\x87R(K\x03U\x01" + order + fields
        + b"K\x00K\x00K\x00tb\x89U\x08AAAAAAAAtb."
    )  # fmt: skip


ARRAY = pickle.dumps(np.zeros(2, np.float32), 2)
HOSTILE = {
    "system": pickle.dumps({"model": Calls(os.system, "touch HACKED"), "__author__": "x"}),
    "eval": pickle.dumps(Calls(eval, "open('HACKED', 'w')"), 0),
    "exec in Python 2's words": b'c__builtin__\nexec\n(S\'open("HACKED", "w")\'\ntR.',
    "getattr": pickle.dumps(Calls(getattr, "text", "upper"), 4),
    "import": b"c__builtin__\n__import__\n(S'os'\ntR.",
    "numpy's loader": b"cnumpy\nload\n(S'file.pkl'\ntR.",
    "numpy's own eval": b"cnumpy.f2py.crackfortran\nmyeval\n(S'1'\ntR.",
    "a name in a name": b"\x80\x04\x8c\x05numpy\x8c\x0ccore.os.path\x93.",
    "dotted": b"\x80\x04\x8c\x16numpy._core.multiarray\x8c\x15_reconstruct.__class__\x93.",
    "a class": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "instance": b"(inumpy\nndarray\n.",
    "object": b"(cnumpy\nndarray\no.",
    "persistent": b"Pnumber\n.",
    "persistent, protocol 1": b"K\x01Q.",
    "extension": b"\x82\x01.",
    "ordered": b"\x80\x02ccollections\nOrderedDict\n)R.",
    "array calls array": b"\x80\x02cnumpy\nndarray\n)R.",
    "called array": ARRAY[:-1] + b")R.",
    "state of a name": b"\x80\x02cnumpy\ndtype\n}U\x01aK\x01sb.",
    "state of a dictionary": b"\x80\x02}}U\x01aK\x01sb.",
    "objects": pickle.dumps(np.array([None]), 2),
    "structure": pickle.dumps(np.zeros(2, [("a", "f4")]), 2),
    "texts": pickle.dumps(np.array(["ab"]), 2),
    "dates": pickle.dumps(np.array(["2020-01-01"], "M8[D]"), 2),
    "complex": pickle.dumps(np.zeros(1, complex), 2),
    "long double": pickle.dumps(np.zeros(1, np.longdouble), 2),
    "type O": of_type(b"O8"),
    "type with a comma": of_type(b"f4,O8"),
    "type V": of_type(b"V8"),
    "type with fields": of_type(b"f8", b"<", b"N}}"),
    "type with a parent": of_type(b"f8", b"<", b"cnumpy\ndtype\nNN"),
    "type with an odd order": of_type(b"f8", b"<f"),
    "a numpy number": pickle.dumps(np.float32(1), 2),
    "a set": pickle.dumps({1, 2}, 4),
    "a list as key": b"\x80\x02}]K\x01s.",
    "another codec": b"c_codecs\nencode\n(Vabc\nVrot13\ntR.",
    "bytes of a length": b"c__builtin__\nbytes\nK\x08\x85R.",
    "huge bytes": b"c__builtin__\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_is_no_array_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"file\.pkl: ") as error:
        read(tmp_path, HOSTILE[name])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400
    assert [path.name for path in tmp_path.iterdir()] == ["file.pkl"]


def sized(data: int, *shape: int) -> bytes:
    """An array that says it is of `shape`, with as many bytes of data."""
    sides = b"".join(b"\x8a\x08" + struct.pack("<q", side) for side in shape)
    return (
        b"\x80\x03cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n(" + sides + b"tC\x01b\x87R(K\x01(" + sides
        + b"tcnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87R(K\x03X\x01\x00\x00\x00<NNNK\x00K\x00K\x00tb\x89C"
        + bytes([data]) + bytes(data) + b"tb"
    )  # fmt: skip


BOMBS = {
    "a huge shape": sized(8, 2**40) + b".",
    "a shape beyond 64 bits": sized(0, 2**62, 2**62, 2**62) + b".",
    "a negative side": sized(8, -2) + b".",
    "many axes": sized(4, *[1] * 40) + b".",
    "a missing byte": sized(7, 2) + b".",
    "a huge place in the memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "a huge frame": b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "a huge text": b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fN.",
    "huge bytes": b"\x80\x03B\xff\xff\xff\xffN.",
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    "a number of many digits": b"L" + b"9" * 100_000 + b"L\n.",
    "one text encoded often": b"X\x00\x00\x01\x00" + b"a" * 65536 + b"q\x00"
    + b"c_codecs\nencode\nq\x01X\x06\x00\x00\x00latin1q\x02" + b"h\x01h\x00h\x02\x86R" * 5000 + b".",
    "deep": b"]" * 20_000 + b"a" * 19_999 + b".",
    "twice as large, sixty times": b"K\x01" + b"q\x00h\x00\x86" * 60 + b".",
    "many steps": b"N" * (MOST_STEPS + 1) + b".",
    "an endless stack": b"(" * 50_000,
    "a key of tuples": b"}K\x01" + b"q\x00h\x00\x86" * 60 + b"K\x01s.",
    "a name of tuples": b"\x80\x04K\x01" + b"q\x00h\x00\x86" * 60 + b"\x8c\x01a\x93.",
}  # fmt: skip
_DATA = b"\x80\x03C\x80" + bytes(128) + b"q\x00"  # its bytes, by number 0
_FROM_DATA = (
    b"cnumpy.core.numeric\n_frombuffer\n(h\x00"
    + b"cnumpy\ndtype\nX\x02\x00\x00\x00f4\x89\x88\x87RK\x20\x85X\x01\x00\x00\x00CtR"
)
BOMBS["bytes of one array in many"] = _DATA + b"](" + _FROM_DATA * 3000 + b"e."


@pytest.mark.parametrize("name", BOMBS)
def test_small_files_take_little(tmp_path: Path, name: str) -> None:
    """Whether refused or read: no file makes much more of itself than it has bytes."""
    content = BOMBS[name]
    (tmp_path / "file.pkl").write_bytes(content)
    tracemalloc.start()
    try:
        found = read_pickle(tmp_path / "file.pkl")
    except InputError as error:
        found = None
        assert len(str(error)) < 400
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert not isinstance(found, Array)
    assert peak < 2_000_000 + 200 * len(content)


def test_truncated_anywhere(tmp_path: Path) -> None:
    content = pickle.dumps({"model": {"a": VALUES[0, 0]}, "__author__": "x"}, 3)
    for end in range(len(content)):
        with pytest.raises(InputError, match="truncated or corrupt"):
            read(tmp_path, content[:end])


def test_a_text_is_named_without_python_s_own_words(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"truncated or corrupt, or no file of weights$"):
        read(tmp_path, b"hello\n")  # h: what the memo has as number 101


def test_any_byte_may_be_another(tmp_path: Path) -> None:
    """Read or refused, never another error."""
    random = np.random.default_rng(1)
    content = pickle.dumps({"model": {"a": VALUES[0, 0], "b": np.arange(3)}, "__author__": "x"}, 2)
    for _ in range(300):
        changed = bytearray(content)
        changed[random.integers(len(content))] = random.integers(256)
        try:
            read(tmp_path, bytes(changed))
        except InputError as error:
            assert str(tmp_path) in str(error)
