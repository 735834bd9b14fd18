"""The table of settings: what one setting is, and how a value given for it is read and checked.

`common/settings/sections.py` fills the table; whoever wants a setting's value looks there. A
section is a frozen dataclass whose fields are made with `setting`, so that its names, types,
defaults, limits and help stand in one place. Nothing here reads a file, the environment or the
network.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from tallybus.common.errors import SettingsError
from tallybus.common.functions.names import is_function_name
from tallybus.common.settings.endpoints import MAX_IPC_PATH_BYTES, socket_path

Value = int | str | Path | None
"""A setting's value. `None` stands for a path that is derived from other settings."""
Kind = Literal["integer", "text", "path"]
S = TypeVar("S")

ENVIRONMENT_PREFIX: Final = "TALLYBUS_"
MAX_CPU: Final = 4095
MAX_FUEL: Final = 10**12
"""Of one call: some minutes, in which nothing else is executed."""

_ROW: Final = "setting"
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table: what a setting is called, may hold, and means."""

    section: str
    name: str
    kind: Kind
    default: Value
    help: str
    minimum: int = 0
    maximum: int = 0
    choices: tuple[str, ...] = ()
    check: Callable[[str], object] | None = None
    settle: Callable[[str], str] | None = None
    """Makes a text mean the same to every process, wherever it runs."""

    @property
    def key(self) -> str:
        """The dotted name: `ledger.max_accounts`."""
        return f"{self.section}.{self.name}"

    @property
    def variable(self) -> str:
        """The name in the environment: `TALLYBUS_LEDGER_MAX_ACCOUNTS`."""
        return f"{ENVIRONMENT_PREFIX}{self.section}_{self.name}".upper()

    @property
    def limits(self) -> str:
        """What is allowed, in words for people: `2 to 4294967296`, `ipc, tcp or inproc`."""
        if self.choices:
            return either(self.choices)
        if self.kind == "integer":
            return f"{self.minimum} to {self.maximum}"
        return ""

    def parse(self, value: object, origin: str, name: str = "") -> Value:
        """`value` as given by the environment, a file or a caller, checked and in its own type.

        Integers may be given as text. Raises SettingsError, which calls the setting `name`.
        """

        def refuse(reason: str) -> SettingsError:
            return SettingsError(name or self.key, origin, reason)

        if self.kind == "integer":
            number = _integer(value)
            if number is None:
                raise refuse(f"{value!r} is not a whole number; give {self.limits}")
            if not self.minimum <= number <= self.maximum:
                raise refuse(f"{number} is out of range; give {self.limits}")
            return number
        if value is None and self.default is None:
            return None
        if isinstance(value, Path) and self.kind == "path":
            value = str(value)
        if not isinstance(value, str):
            raise refuse(f"{value!r} is not text")
        if _CONTROL.search(value):
            raise refuse(f"{value!r} has control characters")
        if self.kind == "path" or value.startswith("ipc:"):
            try:
                os.fsencode(value)
            except UnicodeEncodeError:
                raise refuse(
                    f"{value!a} cannot be a path in the encoding of this process "
                    f"({sys.getfilesystemencoding()}); start it with LC_ALL=C.UTF-8"
                ) from None
        if self.kind == "path":
            if value:
                return Path(value)
            if self.default is None:
                return None
            raise refuse("the path is empty; name a folder")
        if self.choices and value not in self.choices:
            raise refuse(f"{value!r} is not one of {either(self.choices)}")
        if self.check is not None:
            try:
                value = value if self.settle is None else self.settle(value)
                self.check(value)
            except ValueError as error:
                raise refuse(str(error)) from None
        return value


def _integer(value: object) -> int | None:
    """An integer, or text that holds one (digits may be grouped: `10_000_000`); else None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", value.strip()):
        digits = value.strip()
        return int(digits) if len(digits) <= 40 else None
    return None


def either(names: Iterable[str]) -> str:
    """Names as a choice in words: `ipc, tcp or inproc`."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPU numbers of a list like `0,2-3`, in order and once each; empty text gives none.

    Raises ValueError with what is wrong.
    """
    numbers: set[int] = set()
    for part in text.split(",") if text else []:
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None:
            raise ValueError(f"{text!r} is not a list of CPUs; write numbers and ranges: 0,2-3")
        first = int(match[1])
        last = int(match[2] or first)
        if first > last:
            raise ValueError(f"{text!r} has the range {first}-{last}, which ends before it starts")
        if last > MAX_CPU:
            raise ValueError(f"{text!r} names CPU {last}; the highest is {MAX_CPU}")
        numbers.update(range(first, last + 1))
    return tuple(sorted(numbers))


def parse_fuel_by_name(text: str) -> dict[str, int]:
    """Fuel by function of a list like `rates=5000000, audit=200000`; empty text gives none.

    Raises ValueError with what is wrong.
    """
    found: dict[str, int] = {}
    for part in text.split(",") if text.strip() else []:
        name, separator, number = (piece.strip() for piece in part.partition("="))
        if not separator or not is_function_name(name):
            raise ValueError(f"{part.strip()!r} is not a function's name, '=' and its fuel")
        if not re.fullmatch(r"[0-9]{1,13}", number) or not 1 <= int(number) <= MAX_FUEL:
            raise ValueError(f"the fuel of {name} is {number!r}; give 1 to {MAX_FUEL}")
        if name in found:
            raise ValueError(f"{name} is there twice")
        found[name] = int(number)
    return found


def check_endpoint(text: str) -> None:
    """Raise ValueError unless `text` is a ZeroMQ endpoint that services and clients can use."""
    scheme, separator, address = text.partition("://")
    if not separator or scheme not in ("tcp", "ipc", "inproc") or not address:
        raise ValueError(f"{text!r} is not an endpoint; write tcp://host:port or ipc://path")
    if scheme == "tcp":
        host, _, port = address.rpartition(":")
        if not host or not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
            raise ValueError(f"{text!r} needs a host and a port from 1 to 65535: tcp://host:port")
    elif scheme == "ipc":
        if socket_path(text) is None:
            raise ValueError(
                f"{text!r} is a socket without a file, which every user of the machine could "
                "reach; write ipc:// and a path"
            )
        check_ipc_path(address)


def check_ipc_path(path: str) -> None:
    """Raise ValueError when the path of a socket is too long for the system."""
    size = len(os.fsencode(path))
    if size > MAX_IPC_PATH_BYTES:
        raise ValueError(
            f"the socket path {path!r} has {size} bytes, {MAX_IPC_PATH_BYTES} are allowed; "
            "use a shorter one"
        )


def check_optional_endpoint(text: str) -> None:
    """As `check_endpoint`, and empty text is right too."""
    if text:
        check_endpoint(text)


def check_host(text: str) -> None:
    """Raise ValueError unless `text` may be a host, which may hold `{stage}`."""
    if not re.fullmatch(r"[A-Za-z0-9.:*_%{}\[\]-]+", text) or "{" in text.replace("{stage}", ""):
        raise ValueError(f"{text!r} is not a host; give a name or an address")


def check_optional_host(text: str) -> None:
    """As `check_host`, and empty text is right too."""
    if text:
        check_host(text)


def check_listen_address(text: str) -> None:
    """Raise ValueError unless `text` is empty, or a name or an IPv4 or IPv6 address to listen on,
    without a port. An IPv6 address may stand in brackets."""
    ipv6 = r"(?=[^:]*:[^:]*:)[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?"
    if not re.fullmatch(rf"[A-Za-z0-9._-]*|{ipv6}|\[{ipv6}\]", text):
        raise ValueError(f"{text!r} is not an address; give one without a port: 127.0.0.1")


def check_optional_host_and_port(text: str) -> None:
    """Raise ValueError unless `text` is empty, or an address to listen on with a port."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if text and not (host and re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise ValueError(f"{text!r} needs an address and a port from 1 to 65535: 127.0.0.1:5580")
    if text and ":" in host and bare == host:
        raise ValueError(f"{text!r} is not an address; an IPv6 one stands in brackets: [::1]:5580")
    check_listen_address(bare)


UNPROTECTED: Final = ("clients", "bus", "metrics", "page")
"""What may be told to listen beyond this machine without keys."""


def parse_unprotected(text: str) -> frozenset[str]:
    """Names of a list like `bus, metrics`; empty text gives none. Raises ValueError."""
    names = [part.strip() for part in text.split(",")] if text.strip() else []
    for name in names:
        if name not in UNPROTECTED:
            raise ValueError(f"{name!r} is not one of {either(UNPROTECTED)}")
    return frozenset(names)


def check_name(text: str) -> None:
    """Raise ValueError unless `text` is empty or fit for a part of an address."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,64}", text):
        raise ValueError(f"{text!r} is not a name; use up to 64 letters, digits, '-' and '_'")


def setting(
    default: S,
    text: str,
    *,
    kind: Kind | None = None,
    minimum: int = 0,
    maximum: int = 0,
    choices: tuple[str, ...] = (),
    check: Callable[[str], object] | None = None,
    settle: Callable[[str], str] | None = None,
) -> S:
    """A field of a section, together with its row of the table."""
    if kind is None:
        kind = "integer" if isinstance(default, int) else "text"
    row: dict[str, Any] = {
        "kind": kind,
        "default": default,
        "help": text,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "check": check,
        "settle": settle,
    }
    value: S = field(default=default, metadata={_ROW: row})
    return value


@dataclass(frozen=True, slots=True)
class Section:
    """A section checks its own values, however it was made: a wrong one cannot exist."""

    def __post_init__(self) -> None:
        for row in rows(type(self), ""):
            value = row.parse(getattr(self, row.name), "code", row.name)
            object.__setattr__(self, row.name, value)


def rows(section: type[Section], name: str) -> Iterator[Setting]:
    """The table's rows of a section class that is called `name`, in order."""
    for entry in dataclasses.fields(section):
        yield Setting(section=name, name=entry.name, **entry.metadata[_ROW])
