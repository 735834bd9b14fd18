"""Exceptions out of signal handlers, at every place where one can come, one after the other.

CPython runs handlers of signals after calls, at the start of functions and at jumps backwards; and
calls that wait end with the handler's exception before they have done anything.
"""

import dis
import linecache
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

_AFTER = {"CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD"}
_WAITS = (".poll(", ".acquire(", ".recv(", ".send(", "sleep(")
_CODES: dict[CodeType, dict[int, str]] = {}


class Interrupted(Exception):
    """What a handler of a signal raises."""


class Interruption:
    """Inside a `with`: raises `kind` at the `number`-th place in files whose path has one of
    `parts`. `where` is that place, None when there were fewer.
    """

    def __init__(self, number: int, *parts: str, kind: type[BaseException] = Interrupted) -> None:
        self.where: str | None = None
        self._kind = kind
        self._left = number
        self._parts = parts

    def __enter__(self) -> "Interruption":
        self._before = sys.gettrace()
        sys.settrace(self._enter)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        if not any(part in frame.f_code.co_filename for part in self._parts):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        names = _CODES.get(frame.f_code)
        if names is None:
            names = {each.offset: each.opname for each in dis.get_instructions(frame.f_code)}
            _CODES[frame.f_code] = names
        before = ""

        def trace(frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
            nonlocal before
            if event == "opcode":
                name = names.get(frame.f_lasti, "")
                if before in _AFTER or name == "BEFORE_WITH" or self._waits(frame, name):
                    self._count(frame, name)
                before = name
            return trace

        return trace

    def _waits(self, frame: FrameType, name: str) -> bool:
        if not name.startswith("CALL"):
            return False
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return any(each in line for each in _WAITS)

    def _count(self, frame: FrameType, name: str) -> None:
        self._left -= 1
        if self._left == 0:
            self.where = f"{frame.f_code.co_filename}:{frame.f_lineno} before {name}"
            raise self._kind(self.where)
