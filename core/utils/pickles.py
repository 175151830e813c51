"""What a pickle would make, found without making it."""

import pickletools
from typing import IO, NamedTuple

MAX_UNFOLDED, MAX_DEPTH = 1_000_000, 100  # of a tuple: objects in it, each as often as it is held; levels

_PUT, _GET = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
_UNHASHABLE = (pickletools.pylist, pickletools.pydict, pickletools.pyset)


class _Made(NamedTuple):
    """An object on the stack, as hashing goes through it."""

    unfolded: int = 1
    depth: int = 0


_LEAF, _MARK = _Made(), _Made()  # the latter is told by its identity


def check_tuples(file: IO[bytes]) -> None:
    """Read one pickle, to its end, and refuse tuples that no reader would come to the end of.

    A tuple that holds the same tuple twice, which holds another one twice, and so on, takes few bytes; but to hash it,
    as a dict does with its keys, all of it is walked through, and as deep as it goes.

    Raises:
        ValueError: such tuples, or no pickle that torch writes.
    """
    try:
        _run(file)
    except (IndexError, KeyError):  # of the stack, of the memo
        raise ValueError("a damaged pickle, or none of torch's") from None


def _run(file: IO[bytes]) -> None:
    stack: list[_Made] = []
    memo: dict[int, _Made] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in _PUT:
            memo[argument] = stack[-1]
        elif opcode.name in _GET:
            stack.append(memo[argument])
        elif opcode.name == "MARK":
            stack.append(_MARK)
        else:
            made = _joined(_taken(stack, opcode))
            if "TUPLE" in opcode.name and (made.unfolded > MAX_UNFOLDED or made.depth > MAX_DEPTH):
                raise ValueError("tuples within tuples, too many or too deep")
            stack += [_LEAF if kind in _UNHASHABLE else made for kind in opcode.stack_after]


def _taken(stack: list[_Made], opcode: pickletools.OpcodeInfo) -> list[_Made]:
    """Take off the stack what an opcode does."""
    start = len(stack) - len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        start = len(stack) - 1
        while stack[start] is not _MARK:
            start -= 1
        start -= opcode.stack_before.index(pickletools.markobject)
    if start < 0:
        raise IndexError
    taken = stack[start:]
    del stack[start:]
    return taken


def _joined(parts: list[_Made]) -> _Made:
    if not parts:
        return _LEAF
    unfolded = 1 + sum(part.unfolded for part in parts)
    return _Made(min(unfolded, MAX_UNFOLDED + 1), 1 + max(part.depth for part in parts))
