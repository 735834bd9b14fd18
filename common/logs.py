"""Logging: what a service tells its operator, on standard error, and never once per transaction.

`setup` is called once by a process that serves; a library user's own logging is left alone. On a
terminal a line is text for people, elsewhere it is one JSON object. Every line says the time (UTC),
the level, the service and the process. What a message is about stands in fields, not in its words:

    log = logs.get("wal")
    log.info("recovered", extra=fields(segment=3, transactions=21_000_000))

Fields whose names sound secret are never written. Nothing a client sent can break a line: control
characters are escaped. What cannot be written (the disk is full, nobody reads the pipe) is dropped:
a log neither ends nor holds up a service.
"""

from __future__ import annotations

import io
import json
import logging
import math
import re
import select
import sys
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

ROOT: Final = "tallybus"
Format = Literal["auto", "text", "json"]

THROTTLE_LINES: Final = 5
THROTTLE_SECONDS: Final = 10.0

STUCK_MS: Final = 200
"""How long a line waits for a reader; after that lines are dropped until there is one again."""

_FIELDS: Final = "tallybus_fields"
_OWN: Final = frozenset(("time", "level", "stage", "pid", "logger", "message", "exception"))
_SECRET: Final = re.compile(
    r"password|passwd|secret|token|credential|authorization|private", re.IGNORECASE
)
_REDACTED: Final = "[redacted]"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BARE: Final = re.compile(r"[^\s\"'=\x00-\x1f\x7f-\x9f]+")
_COLOURS: Final = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "1;31"}


def get(name: str = "") -> logging.Logger:
    """The logger of a part of the product: `get("wal")`, or `get(__name__)` of a module of ours."""
    if not name or name == ROOT or name.startswith(f"{ROOT}."):
        return logging.getLogger(name or ROOT)
    return logging.getLogger(f"{ROOT}.{name}")


def fields(**values: object) -> dict[str, Any]:
    """Values for `extra=`: `log.info("started", extra=fields(port=5550))`."""
    return {_FIELDS: values}


class Throttle:
    """Keeps what others can cause at will from flooding the log.

    Lets `lines` messages through at once, and later one more for every `seconds` that have passed.
    For one thread; one throttle for each kind of message, so that none hides another.
    """

    def __init__(self, lines: int = THROTTLE_LINES, seconds: float = THROTTLE_SECONDS) -> None:
        self._lines = lines
        self._seconds = seconds
        self._left = float(lines)
        self._looked = -math.inf
        self._held_back = 0

    def passes(self, now: float) -> int | None:
        """None: hold this one back. Else write it, and that so many were held back before it.

        `now` is the time of a monotonic clock in seconds.
        """
        passed = max(0.0, now - self._looked)
        self._left = min(float(self._lines), self._left + passed / self._seconds)
        self._looked = max(self._looked, now)
        if self._left < 1.0:
            self._held_back += 1
            return None
        self._left -= 1.0
        held_back, self._held_back = self._held_back, 0
        return held_back


def setup(
    stage: str,
    *,
    level: str = "info",
    format: Format | str = "auto",  # noqa: A002 (as the setting is called)
    stream: TextIO | None = None,
) -> None:
    """Send all log messages of this process to `stream` (default: standard error).

    `stage` names the service. `level` and `format` are those of the settings `logging.level` and
    `logging.format`. A second call replaces the first. Raises ValueError for an unknown level or
    format.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is not a logging level")
    if format not in ("auto", "text", "json"):
        raise ValueError(f"{format!r} is not a logging format")
    # A process that was started without standard error has none.
    out = stream or sys.stderr or _Nowhere()
    terminal = out.isatty()
    as_text = format == "text" or (format == "auto" and terminal)
    handler = _Handler(out)
    handler.setFormatter(TextFormatter(stage, colour=terminal) if as_text else JsonFormatter(stage))
    root = logging.getLogger()
    teardown()
    root.addHandler(handler)
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger(ROOT).setLevel(number)
    logging.captureWarnings(True)


def teardown() -> None:
    """Undo `setup`. Does nothing when it was not called."""
    root = logging.getLogger()
    for handler in [each for each in root.handlers if isinstance(each, _Handler)]:
        root.removeHandler(handler)
        handler.close()
        root.setLevel(logging.WARNING)
        logging.getLogger(ROOT).setLevel(logging.NOTSET)
        logging.captureWarnings(False)


class _Nowhere(io.StringIO):
    """Keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)


class _Handler(logging.StreamHandler[TextIO]):
    """Ours, told from handlers of others by its type."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._poll: select.poll | None = None
        self._stuck = False
        self._writing = False
        self._late: deque[logging.LogRecord] = deque()
        try:
            descriptor = stream.fileno()
        except (OSError, ValueError):
            return  # in memory
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless nobody takes it: then the service goes on without.

        A line of a signal handler or a finalizer, which may come in the middle of another one of
        the same thread, follows it: streams refuse to be written by those who write them.
        """
        self._late.append(record)
        if self._writing:
            return
        self._writing = True
        try:
            while self._late:
                self._write(self._late.popleft())
        finally:
            self._writing = False

    def _write(self, record: logging.LogRecord) -> None:
        if self._poll is not None:
            self._stuck = not self._poll.poll(0 if self._stuck else STUCK_MS)
            if self._stuck:
                return
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its base calls it so)
        """A disk that is full is no defect of the line; there is nobody to tell it to."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handleError(record)


class JsonFormatter(logging.Formatter):
    """One JSON object per line: `time`, `level`, `stage`, `pid`, `logger`, `message`, the message's
    fields, and `exception` with a traceback where there is one. A field that has one of these
    names is written with `field_` before it."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def format(self, record: logging.LogRecord) -> str:
        values: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "stage": self._stage,
            "pid": record.process,
            "logger": record.name,
            "message": _whole(record.getMessage()),
        }
        for name, value in _fields(record).items():
            values[f"field_{name}" if name in _OWN else name] = value
        trace = _trace(self, record)
        if trace:
            values["exception"] = trace
        return json.dumps(values, separators=(",", ":"))


def _whole(text: str) -> str:
    """Text that any reader takes: of a path that is not UTF-8, the bytes as escapes."""
    if text.isascii():
        return text
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode("utf-8")


class TextFormatter(logging.Formatter):
    """`12:30:01.250 INFO  wal[4711] recovered segment=3`, with a traceback on lines of its own."""

    def __init__(self, stage: str, *, colour: bool = False) -> None:
        super().__init__()
        self._stage = stage
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        clock = _time(record)[11:23]
        level = f"{record.levelname:<7}"
        colour = _COLOURS.get(record.levelname) if self._colour else None
        if colour:
            level = f"\x1b[{colour}m{level}\x1b[0m"
        words = [
            clock,
            level,
            f"{self._stage}[{record.process}]",
            _escape(_whole(record.getMessage())),
        ]
        words += [f"{name}={_quoted(value)}" for name, value in _fields(record).items()]
        trace = _trace(self, record)
        return " ".join(words) + (f"\n{_escape(trace, keep=chr(10))}" if trace else "")


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    values = getattr(record, _FIELDS, None)
    if not isinstance(values, Mapping):
        return {}
    return {
        str(name): _REDACTED if _SECRET.search(str(name)) else _plain(value)
        for name, value in values.items()
    }


def _plain(value: object) -> object:
    """`value` as something that JSON can hold."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _whole(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, Mapping):
        return {
            str(name): _REDACTED if _SECRET.search(str(name)) else _plain(each)
            for name, each in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in value]
    # A number of numpy, which is not imported for this.
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        return _plain(item())
    return _whole(str(value))


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return _whole("\n".join(parts))


def _escape(text: str, keep: str = "") -> str:
    def escaped(match: re.Match[str]) -> str:
        number = ord(match[0])
        if match[0] in keep:
            return match[0]
        return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"

    return _CONTROL.sub(escaped, text)


def _quoted(value: object) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    return value if _BARE.fullmatch(value) else _escape(json.dumps(value, ensure_ascii=False))
