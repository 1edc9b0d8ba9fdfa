"""Pickled numpy data without unpickling: arrays, containers, text and numbers, read in place.

The instructions are those of `encoders.inert_pickle`, with one difference: there an unknown name is kept as a name,
here it is refused, because a data file that asks for anything but arrays is not the file it should be. Large blocks of
numbers become views of the given memory and are not copied, so a memory-mapped file of gigabytes costs what is read.
"""

import pickletools
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encoders.inert_pickle import (
    MAX_OPCODES,
    STEPS,
    Inert,
    Machine,
    PickleRefused,
    StoredTensor,
    storage_of,
    stored_tensor,
)
from encoders.pickled_arrays import MAX_TEXT_BYTES, LongText, Unfinished, array_of, dtype_of, latin1_bytes

VIEW_BYTES = 1 << 16
MAX_ARGUMENT_BYTES = 1024
MAX_KEY_TYPES = (str, bytes, int, float, type(None))

_LENGTH_FORMATS = {
    "SHORT_BINBYTES": "<B",
    "BINBYTES": "<I",
    "BINBYTES8": "<Q",
    "BYTEARRAY8": "<Q",
    "SHORT_BINUNICODE": "<B",
    "BINUNICODE": "<I",
    "BINUNICODE8": "<Q",
}
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
_TORCH_STORAGE = re.compile(r"torch [A-Z][A-Za-z0-9]*Storage")
_UNDERSTOOD = {
    "numpy ndarray",
    "numpy dtype",
    "numpy.core.multiarray _reconstruct",
    "numpy.core.multiarray scalar",
    "numpy.core.numeric _frombuffer",
    "_codecs encode",
    "collections OrderedDict",
    "builtins complex",
    "builtins bytes",
    "builtins bytearray",
    "torch._utils _rebuild_tensor_v2",
}


class _Reader(Machine):
    """The machine, its place in the content, and what knows the storages that lie beside the pickle."""

    def __init__(self, content: memoryview, tensor: Callable[[StoredTensor], NDArray[Any]] | None) -> None:
        super().__init__()
        self.content = content
        self.position = 0
        self.tensor = tensor

    def take(self, n_bytes: int) -> memoryview:
        """Return the next bytes as a view."""
        end = self.position + n_bytes
        if end > len(self.content):
            raise PickleRefused(f"the pickle goes on for {n_bytes} bytes behind its end; the file is cut short")
        view = self.content[self.position : end]
        self.position = end
        return view

    def read(self, n_bytes: int) -> bytes:
        """Return the next bytes of a short argument."""
        if n_bytes > MAX_ARGUMENT_BYTES:
            raise PickleRefused(f"the pickle has a number or name of {n_bytes} bytes, which no data file needs")
        return bytes(self.take(n_bytes))

    def readline(self) -> bytes:
        """Return the next line of a short argument."""
        near = bytes(self.content[self.position : self.position + MAX_ARGUMENT_BYTES])
        end = near.find(b"\n")
        if end < 0:
            raise PickleRefused("the pickle has a name without an end; the file is damaged")
        self.position += end + 1
        return near[: end + 1]


def read_numpy_pickle(
    content: memoryview, *, tensor: Callable[[StoredTensor], NDArray[Any]] | None = None
) -> tuple[Any, int]:
    """Return what a pickle of plain values and arrays says, and how many bytes it takes.

    Parameters
    ----------
    content : memoryview of bytes
        A pickle of protocol 2 to 5; what follows it is not looked at.
    tensor : callable, optional
        Turns torch's description of a tensor into an array; without it tensors are refused.

    Returns
    -------
    value : dict, list, tuple, str, bytes, number, None or ndarray
        Arrays are read-only views of ``content`` where they are larger than some kilobytes. Tuples inside dictionaries
        are values only, never keys. Bytes of more than 64 KiB come as a view, bytearrays as bytes.
    n_bytes : int
        Length of the pickle.

    Raises
    ------
    PickleRefused
        If it is damaged, or names anything else; the name is in the message.
    """
    reader = _Reader(content, tensor)
    try:
        for _ in range(MAX_OPCODES):
            opcode = _OPCODES.get(chr(reader.take(1)[0]))
            if opcode is None:
                raise PickleRefused("the pickle has an unknown instruction; the file is damaged")
            if opcode.name == "STOP":
                value = reader.pop()
                _check_finished(value)
                return value, reader.position
            step = _STEPS.get(opcode.name)
            if step is None:
                raise PickleRefused(f"the pickle uses the instruction {opcode.name}, which no data file needs")
            step(reader, _argument(reader, opcode))
    except PickleRefused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, MemoryError) as error:
        raise PickleRefused(f"the pickle is damaged ({type(error).__name__})") from error
    raise PickleRefused(f"the pickle has more than {MAX_OPCODES} instructions")


def _argument(reader: _Reader, opcode: Any) -> Any:
    if opcode.arg is None:
        return None
    length_format = _LENGTH_FORMATS.get(opcode.name)
    if length_format is None:
        return opcode.arg.reader(reader)
    (length,) = struct.unpack(length_format, reader.take(struct.calcsize(length_format)))
    view = reader.take(length)
    if opcode.name.endswith(("BYTES", "BYTES8", "ARRAY8")):
        return view if length > VIEW_BYTES else bytes(view)
    return LongText(view) if length > MAX_TEXT_BYTES else str(view, "utf-8", "surrogatepass")


def _global(reader: _Reader, argument: Any) -> None:
    name = str(argument).replace("numpy._core.", "numpy.core.").replace("__builtin__ ", "builtins ")
    if name not in _UNDERSTOOD and not (reader.tensor and _TORCH_STORAGE.fullmatch(name)):
        raise PickleRefused(
            f"the pickle asks for {str(argument)[:200]!r}, expected arrays, dict, list, text and numbers only; "
            "do not load this file with pickle, numpy or torch unless you know who made it"
        )
    reader.stack.append(Inert(name))


def _stack_global(reader: _Reader, _: Any) -> None:
    name, module = reader.pop(), reader.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise PickleRefused("the pickle names a global by something that is no text; the file is damaged")
    _global(reader, f"{module} {name}")


def _recall(reader: _Reader, argument: Any) -> None:
    value = reader.memo[argument]
    reader.stack.append(value.value if isinstance(value, Unfinished) and value.value is not None else value)


def _set_items(reader: _Reader, pairs: list[Any]) -> None:
    target = reader.stack[-1]
    if not isinstance(target, dict):
        raise PickleRefused(f"the pickle sets items of a {type(target).__name__}; the file is damaged")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if not isinstance(key, MAX_KEY_TYPES):
            raise PickleRefused(f"a dictionary has a {type(key).__name__} as key, expected text or a number")
        target[key] = value


def _set_item(reader: _Reader, _: Any) -> None:
    value, key = reader.pop(), reader.pop()
    _set_items(reader, [key, value])


def _dict(reader: _Reader, _: Any) -> None:
    pairs = reader.pop_to_mark()
    reader.stack.append({})
    _set_items(reader, pairs)


def _reduce(reader: _Reader, _: Any) -> None:
    arguments, callee = reader.pop(), reader.pop()
    if not isinstance(callee, Inert) or not isinstance(arguments, tuple):
        raise PickleRefused("the pickle calls something that is no name; the file is damaged")
    reader.stack.append(_called(reader, callee.name, arguments))


def _called(reader: _Reader, name: str, arguments: tuple[Any, ...]) -> Any:
    match name:
        case "numpy.core.multiarray _reconstruct" if arguments[0] == Inert("numpy ndarray"):
            return Unfinished("array")
        case "numpy dtype" if isinstance(arguments[0], str):
            return Unfinished("dtype", arguments[0])
        case "numpy.core.multiarray scalar":
            return array_of(arguments[1], arguments[0], (), "C")[()]
        case "numpy.core.numeric _frombuffer":
            return array_of(*arguments)
        case "_codecs encode" if arguments[1] in ("latin1", "latin-1"):
            return latin1_bytes(arguments[0])
        case "collections OrderedDict" if not arguments:
            return {}
        case "builtins complex" if all(isinstance(part, int | float) for part in arguments):
            return complex(*arguments)
        case "builtins bytes" | "builtins bytearray" if not arguments:
            return b""
        case "builtins bytearray" if isinstance(arguments[0], bytes | memoryview):
            return arguments[0]
        case "torch._utils _rebuild_tensor_v2" if reader.tensor is not None:
            return reader.tensor(stored_tensor(*arguments[:4]))
    raise PickleRefused(f"the pickle calls {name!r} in a way that is not understood; the file is damaged")


def _build(reader: _Reader, _: Any) -> None:
    state, target = reader.pop(), reader.pop()
    if not isinstance(target, Unfinished) or target.value is not None or not isinstance(state, tuple):
        raise PickleRefused("the pickle sets attributes of an object, expected arrays and plain values only")
    if target.kind == "dtype":
        target.value = dtype_of(target.code, state)
    else:
        _, shape, dtype, fortran, data = state
        target.value = array_of(data, dtype, shape, "F" if fortran else "C")
    reader.stack.append(target.value)


def _persistent(reader: _Reader, _: Any) -> None:
    if reader.tensor is None:
        raise PickleRefused("the pickle refers to something outside of it, expected one complete file")
    reader.stack.append(storage_of(reader.pop()))


def _check_finished(value: Any) -> None:
    """Refuse names, texts of array size and half-made arrays that were left among the values."""
    waiting, seen = [value], set[int]()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Inert):
            raise PickleRefused(f"the pickle holds {one.name!r} itself, expected arrays and plain values")
        if isinstance(one, Unfinished):
            raise PickleRefused("the pickle uses an array before it is complete; the file is damaged")
        if isinstance(one, LongText):
            raise PickleRefused(f"the pickle holds a text of {len(one.utf8)} bytes, at most {MAX_TEXT_BYTES} are read")
        if isinstance(one, dict | list | tuple | np.ndarray) and id(one) not in seen:
            seen.add(id(one))
            if isinstance(one, dict):
                waiting += one.values()
            elif not isinstance(one, np.ndarray):
                waiting += one
            elif one.dtype.hasobject:
                waiting += one.ravel().tolist()


_AS_EVER = (
    "PROTO FRAME BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT NONE NEWTRUE NEWFALSE SHORT_BINBYTES BINBYTES BINBYTES8 "
    "BYTEARRAY8 SHORT_BINUNICODE BINUNICODE BINUNICODE8 EMPTY_TUPLE EMPTY_LIST EMPTY_DICT MARK POP POP_MARK TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 LIST APPEND APPENDS BINPUT LONG_BINPUT MEMOIZE"
).split()
_STEPS: dict[str, Callable[[Any, Any], None]] = {
    **{name: STEPS[name] for name in _AS_EVER},
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "SETITEM": _set_item,
    "SETITEMS": lambda reader, _: _set_items(reader, reader.pop_to_mark()),
    "DICT": _dict,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
