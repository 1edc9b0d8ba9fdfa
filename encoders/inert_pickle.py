"""What a pickle says, without doing what it says: an interpreter of the opcodes that builds plain values only.

Containers, text and numbers become what they are. Three callables of torch are understood, because they describe
tensors; every other global becomes an `Inert` name that is never imported, called or given attributes. Nothing here
runs code of the file, so the worst that a hostile file can do is to be refused or to waste the limits below.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_OPCODES = 4_000_000
MAX_PICKLE_BYTES = 64 << 20
MAX_DIMS = 16


class PickleRefused(ValueError):
    """The pickle is damaged, or asks for something outside the small language that is understood."""


@dataclass(frozen=True)
class Inert:
    """A name that the pickle wanted to import or to call, for example ``os system``."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A block of numbers kept beside the pickle: torch's type name, the block's key, its number of elements."""

    kind: str
    key: str
    n_elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A view of a storage; sizes are not yet checked against the block."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Machine:
    """Stack, marks and memo of a pickle that is being read; `STEPS` are the instructions that work on them."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self) -> Any:
        """Take the topmost value, which must not lie below the last mark."""
        if not self.stack or (self.marks and len(self.stack) <= self.marks[-1]):
            raise PickleRefused("the pickle takes a value where there is none; the file is damaged")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Take the values above the last mark, and the mark."""
        if not self.marks:
            raise PickleRefused("the pickle ends a group that was never begun; the file is damaged")
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values


def read_pickle(content: bytes) -> Any:
    """Return what a pickle describes, as plain values, `StoredTensor` and `Inert`.

    Parameters
    ----------
    content : bytes
        Any protocol from 0 to 5. Containers may contain themselves; walk them with care.

    Raises
    ------
    PickleRefused
        If it is damaged, too long, or uses extension codes or buffers outside the file.
    """
    if len(content) > MAX_PICKLE_BYTES:
        raise PickleRefused(f"the pickle has {len(content)} bytes, at most {MAX_PICKLE_BYTES} are read")
    machine = Machine()
    n_seen = 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            n_seen += 1
            if n_seen > MAX_OPCODES:
                raise PickleRefused(f"the pickle has more than {MAX_OPCODES} instructions")
            if opcode.name == "STOP":
                return machine.pop()
            step = STEPS.get(opcode.name)
            if step is None:
                raise PickleRefused(f"the pickle uses the instruction {opcode.name}, which no weights file needs")
            step(machine, argument)
    except PickleRefused:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, AttributeError, RecursionError) as error:
        raise PickleRefused(f"the pickle is damaged ({type(error).__name__})") from error
    raise PickleRefused("the pickle has no end; the file is cut short")


def _push(machine: Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _constant(make: Callable[[], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _mark(machine: Machine, _: Any) -> None:
    machine.marks.append(len(machine.stack))


def _pop(machine: Machine, _: Any) -> None:
    if machine.marks and machine.marks[-1] == len(machine.stack):
        machine.marks.pop()
    else:
        machine.pop()


def _duplicate(machine: Machine, _: Any) -> None:
    value = machine.pop()
    machine.stack += [value, value]


def _tuple(n: int) -> Callable[[Machine, Any], None]:
    def build(machine: Machine, _: Any) -> None:
        machine.stack.append(tuple(reversed([machine.pop() for _ in range(n)])))

    return build


def _group(make: Callable[[list[Any]], Any]) -> Callable[[Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make(machine.pop_to_mark()))


def _append(machine: Machine, _: Any) -> None:
    value = machine.pop()
    _extend(machine.stack[-1], [value])


def _appends(machine: Machine, _: Any) -> None:
    values = machine.pop_to_mark()
    _extend(machine.stack[-1], values)


def _extend(target: Any, values: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(values)
    elif not isinstance(target, Inert):
        raise PickleRefused(f"the pickle appends to a {type(target).__name__}; the file is damaged")


def _set_item(machine: Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    _update(machine.stack[-1], [key, value])


def _set_items(machine: Machine, _: Any) -> None:
    pairs = machine.pop_to_mark()
    _update(machine.stack[-1], pairs)


def _update(target: Any, pairs: list[Any]) -> None:
    if isinstance(target, dict):
        # only text and numbers are keys: the hash of nested tuples can take for ever
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if isinstance(key, str | float | bytes | None) or (isinstance(key, int) and abs(key) < 1 << 62):
                target[key] = value
    elif not isinstance(target, Inert):
        raise PickleRefused(f"the pickle sets items of a {type(target).__name__}; the file is damaged")


def _dict_of(pairs: list[Any]) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    _update(made, pairs)
    return made


def _remember(machine: Machine, argument: Any) -> None:
    machine.memo[len(machine.memo) if argument is None else argument] = machine.stack[-1]


def _recall(machine: Machine, argument: Any) -> None:
    machine.stack.append(machine.memo[argument])


def _global(machine: Machine, argument: Any) -> None:
    machine.stack.append(Inert(str(argument)[:200]))


def _stack_global(machine: Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    if not (isinstance(name, str) and isinstance(module, str)):
        raise PickleRefused("the pickle names a global by something that is no text; the file is damaged")
    _global(machine, f"{module} {name}")


def _reduce(machine: Machine, _: Any) -> None:
    arguments, callee = machine.pop(), machine.pop()
    machine.stack.append(_called(callee, arguments))


def _new_object(machine: Machine, _: Any) -> None:
    machine.pop()
    machine.stack.append(_named(machine.pop()))


def _new_object_with_keywords(machine: Machine, _: Any) -> None:
    machine.pop()
    _new_object(machine, None)


def _instance(machine: Machine, argument: Any) -> None:
    machine.pop_to_mark()
    _global(machine, argument)


def _object(machine: Machine, _: Any) -> None:
    machine.stack.append(_named(machine.pop_to_mark()[0]))


def _build(machine: Machine, _: Any) -> None:
    machine.pop()  # attributes of an object: state dictionaries carry version numbers there, which nobody needs


def _persistent(machine: Machine, _: Any) -> None:
    machine.stack.append(storage_of(machine.pop()))


def _named(value: Any) -> Inert:
    return value if isinstance(value, Inert) else Inert(f"an instance of {type(value).__name__}")


def _called(callee: Any, arguments: Any) -> Any:
    """Return what a call would give, for the calls that describe tensors; for any other, its name."""
    if not isinstance(callee, Inert) or not isinstance(arguments, tuple):
        return Inert("a call of something that is no name")
    match callee.name:
        case "collections OrderedDict":
            pairs = arguments[0] if arguments else []
            return _dict_of([part for pair in pairs for part in pair])
        case "torch._utils _rebuild_tensor_v2":
            return stored_tensor(*arguments[:4])
        case "torch._utils _rebuild_parameter" | "torch._utils _rebuild_parameter_with_state":
            return arguments[0]
        case "torch._tensor _rebuild_from_type_v2":
            return _called(arguments[0], arguments[2])
        case _:
            return callee


def stored_tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> StoredTensor:
    """Check the arguments of torch's tensor rebuilding and keep them."""
    if not isinstance(storage, Storage):
        raise PickleRefused("a tensor of the file has no storage; the file is damaged")
    for numbers in (shape, strides, (offset,)):
        if not isinstance(numbers, tuple) or len(numbers) > MAX_DIMS or any(not _is_size(n) for n in numbers):
            raise PickleRefused("a tensor of the file has impossible sizes; the file is damaged")
    if len(shape) != len(strides):
        raise PickleRefused(f"a tensor of the file has {len(shape)} sizes and {len(strides)} strides; it is damaged")
    return StoredTensor(storage, offset, shape, strides)


def storage_of(identity: Any) -> Storage:
    """Check what torch writes in place of a storage and keep it."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise PickleRefused("the file keeps something beside its pickle that is no tensor; save the state dict alone")
    _, kind, key, _, n_elements = identity
    if not (isinstance(kind, Inert) and isinstance(key, str) and _is_size(n_elements)):
        raise PickleRefused("a storage of the file is described wrongly; the file is damaged")
    return Storage(kind.name, key, n_elements)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _nothing(machine: Machine, _: Any) -> None:
    return None


STEPS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _push),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(list),
    "MARK": _mark,
    "POP": _pop,
    "POP_MARK": lambda machine, _: machine.pop_to_mark().clear(),
    "DUP": _duplicate,
    "TUPLE": _group(tuple),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "LIST": _group(list),
    "FROZENSET": _group(list),
    "DICT": _group(_dict_of),
    "APPEND": _append,
    "APPENDS": _appends,
    "ADDITEMS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_with_keywords,
    "INST": _instance,
    "OBJ": _object,
    "BUILD": _build,
    "BINPERSID": _persistent,
}
