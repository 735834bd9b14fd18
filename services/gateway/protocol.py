"""The client protocol, seen from the gateway: requests in, replies out. `docs/protocol.md` is its
text.

Decoding trusts nothing: whatever a client sends either becomes a checked request or raises
`BadRequest`, which carries the id to answer to where one could be read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from crc32c import crc32c

from tallybus.common.frames import (
    EMPTY,
    MAX_U64,
    PARAMS_SIZE,
    PROTOCOL_VERSION,
    Buffer,
    FrameError,
    shown,
    size,
    unpack_header,
)
from tallybus.common.function_names import MAX_BINARY_BYTES, NAME_RULE, is_function_name
from tallybus.common.functions import UNREGISTERED
from tallybus.common.record import RECORD_DTYPE, RECORD_SIZE, Kind, Level

if TYPE_CHECKING:
    from tallybus.services.gateway.quotas import Usage

_FUNCTION: Final = np.uint8(Kind.FUNCTION)
"""Of the column's own type: a plain number would have the whole column converted first."""
MAX_NAMES: Final = 4096
MAX_NAME_BYTES: Final = 256
MAX_NAMES_BYTES: Final = 65_536
"""All names of a request together, so that a batch of several still has a short header."""
MAX_PENDING: Final = 10_000

INVALID_REQUEST: Final = "invalid_request"
UNSUPPORTED_VERSION: Final = "unsupported_version"
OVERLOADED: Final = "overloaded"
TIMEOUT: Final = "timeout"
LOST: Final = "lost"
OUTCOME_UNKNOWN: Final = "outcome_unknown"
INVALID_FUNCTION: Final = "invalid_function"
UNAVAILABLE: Final = "unavailable"
FORBIDDEN: Final = "forbidden"
INTERNAL: Final = "internal"

Details = dict[str, int | str | None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request that is well formed is not taken; nothing was done about it."""

    code: str
    message: str
    details: Details


class BadRequest(Exception):
    """A client's message that cannot be served. Fields: `request_id` or None, `code`, `details`."""

    def __init__(
        self,
        message: str,
        request_id: int | None = None,
        code: str = INVALID_REQUEST,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.request_id = request_id
        self.code = code
        self.details: Details = details


@dataclass(slots=True, eq=False)
class ClientRequest:
    """Anything a client asked for that is answered later. `timeout_ms` None: the gateway's
    limit."""

    client: bytes
    id: int
    timeout_ms: int | None
    done: bool = field(default=False, init=False)
    held_ns: int = field(default=0, init=False)
    owner: bytes = field(default=b"", init=False)
    """Whose share of the places for requests it takes: a key, or without keys a connection."""
    usage: Usage | None = field(default=None, init=False)
    """Of a client that has limits: where this counts until it is answered."""


@dataclass(slots=True, eq=False)
class Submit(ClientRequest):
    """Operations to execute. `first` is 0 until ids are known; `failures`: its FAILURE_DTYPE
    rows."""

    level: Level
    count: int
    records: Buffer
    params: Buffer
    names: list[str]
    first: int = 0
    term: int = 0
    failures: Any = ()
    computed: bool = False
    charge: Any = None
    """Of one with calls, until it is executed: what it is expected to take (`work.Charge`)."""

    @property
    def last(self) -> int:
        return self.first + self.count - 1


@dataclass(slots=True, eq=False)
class Register(Submit):
    """A function to register; an empty `binary` unregisters it."""

    binary: Buffer = EMPTY


@dataclass(slots=True, eq=False)
class FunctionsRead(ClientRequest):
    """The live functions and what they have done."""


@dataclass(slots=True, eq=False)
class Read(ClientRequest):
    """Balances of accounts, statuses of transactions, or one transaction: `what` is "balances",
    "status" or "transaction".

    Of a status read, `rows` is the answer so far and `asked` marks what the snapshotter fills in.
    """

    what: str
    keys: Any
    min_tx_id: int
    rows: Any = None
    asked: Any = None


@dataclass(slots=True, eq=False)
class IndexRead(ClientRequest):
    """The pipeline's indexes."""


@dataclass(slots=True, eq=False)
class ServicesRead(ClientRequest):
    """What was last heard of every service."""


@dataclass(slots=True, eq=False)
class ClockRead(ClientRequest):
    """The ledger's time, and whether the wall clock is followed."""


@dataclass(slots=True, eq=False)
class AcceptClock(ClockRead):
    """The same, after the sequencer was told that the wall clock is right."""


@dataclass(slots=True, eq=False)
class Wait(ClientRequest):
    """Until the index of `level` has reached `tx_id`."""

    tx_id: int
    level: Level


@dataclass(slots=True, eq=False)
class Ping(ClientRequest):
    """Is this still the gateway that holds these requests?"""

    pending: list[int]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for."""

    max_batch: int
    max_reads: int
    max_accounts: int


def decode_request(client: bytes, frames: Sequence[Buffer], limits: Limits) -> ClientRequest:
    """The request in these frames (without the routing id). Raises `BadRequest`."""
    if not frames:
        raise BadRequest("a request has at least a header frame")
    try:
        header = unpack_header(frames[0])
    except FrameError as error:
        raise BadRequest(error.reason) from error
    raw_id = header.get("id")
    request_id = raw_id if _is_int(raw_id, 0, MAX_U64) else None
    version = header.get("v")
    if version != PROTOCOL_VERSION:
        raise BadRequest(
            f"protocol version {shown(version)} is not spoken here, use {PROTOCOL_VERSION}",
            request_id,
            UNSUPPORTED_VERSION,
            supported=PROTOCOL_VERSION,
        )
    if request_id is None:
        raise BadRequest(f"field id must be a whole number from 0 to 2^64-1, not {shown(raw_id)}")
    timeout = header.get("timeout_ms")
    if timeout is not None and not _is_int(timeout, 0, MAX_U64):
        raise BadRequest(
            f"field timeout_ms must be a whole number of milliseconds, not {shown(timeout)}",
            request_id,
            field="timeout_ms",
        )
    operation = header.get("op")
    payloads = frames[1:]
    if operation == "submit":
        return _submit(client, request_id, timeout, header, payloads, limits)
    if operation == "balances":
        return _read(client, request_id, timeout, header, payloads, limits, "balances")
    if operation == "status":
        return _read(client, request_id, timeout, header, payloads, limits, "status")
    if operation == "transaction":
        return _transaction(client, request_id, timeout, header, payloads)
    if operation == "register":
        return _register(client, request_id, timeout, header, payloads)
    if operation == "unregister":
        _payloads(payloads, 0, 0, request_id)
        return _registration(client, request_id, timeout, header, EMPTY)
    if operation == "functions":
        _payloads(payloads, 0, 0, request_id)
        return FunctionsRead(client, request_id, timeout)
    if operation == "index":
        _payloads(payloads, 0, 0, request_id)
        return IndexRead(client, request_id, timeout)
    if operation == "services":
        _payloads(payloads, 0, 0, request_id)
        return ServicesRead(client, request_id, timeout)
    if operation in ("clock", "accept_clock"):
        _payloads(payloads, 0, 0, request_id)
        kind = ClockRead if operation == "clock" else AcceptClock
        return kind(client, request_id, timeout)
    if operation == "wait":
        _payloads(payloads, 0, 0, request_id)
        tx_id = _number(header, "tx_id", request_id)
        return Wait(client, request_id, timeout, tx_id, _level(header, request_id))
    if operation == "ping":
        _payloads(payloads, 0, 0, request_id)
        pending = header.get("pending", [])
        if (
            not isinstance(pending, list)
            or len(pending) > MAX_PENDING
            or not all(_is_int(item, 0, MAX_U64) for item in pending)
        ):
            raise BadRequest(
                f"field pending must be a list of at most {MAX_PENDING} request ids",
                request_id,
                field="pending",
            )
        return Ping(client, request_id, timeout, pending)
    raise BadRequest(f"unknown operation {shown(operation)}", request_id, field="op")


def _submit(
    client: bytes,
    request_id: int,
    timeout: int | None,
    header: dict[str, Any],
    payloads: Sequence[Buffer],
    limits: Limits,
) -> Submit:
    _payloads(payloads, 1, 2, request_id)
    count = _number(header, "count", request_id)
    if not 1 <= count <= limits.max_batch:
        raise BadRequest(
            f"a request holds 1 to {limits.max_batch} operations, not {count}",
            request_id,
            field="count",
            max_batch=limits.max_batch,
        )
    records = payloads[0]
    if size(records) != count * RECORD_SIZE:
        raise BadRequest(
            f"{size(records)} bytes of records, {count} operations take {count * RECORD_SIZE}",
            request_id,
            field="records",
        )
    params = payloads[1] if len(payloads) == 2 else EMPTY
    names = header.get("names", [])
    if (
        not isinstance(names, list)
        or len(names) > MAX_NAMES
        or not all(isinstance(n, str) and name_length(n) <= MAX_NAME_BYTES for n in names)
        or sum(name_length(n) for n in names) > MAX_NAMES_BYTES
    ):
        raise BadRequest(
            f"field names must be a list of at most {MAX_NAMES} names of at most "
            f"{MAX_NAME_BYTES} bytes, {MAX_NAMES_BYTES} bytes together",
            request_id,
            field="names",
        )
    kinds = np.frombuffer(records, RECORD_DTYPE, count)["kind"]
    functions = int(np.count_nonzero(kinds == _FUNCTION))
    if size(params) != functions * PARAMS_SIZE:
        raise BadRequest(
            f"{size(params)} bytes of parameters, {functions} function calls take "
            f"{functions * PARAMS_SIZE}",
            request_id,
            field="params",
        )
    level = _level(header, request_id)
    return Submit(client, request_id, timeout, level, count, records, params, names)


def _read(
    client: bytes,
    request_id: int,
    timeout: int | None,
    header: dict[str, Any],
    payloads: Sequence[Buffer],
    limits: Limits,
    what: str,
) -> Read:
    _payloads(payloads, 1, 1, request_id)
    length = size(payloads[0])
    if length % 8 or not 8 <= length <= limits.max_reads * 8:
        raise BadRequest(
            f"{length} bytes of keys, 1 to {limits.max_reads} numbers of 8 bytes are allowed",
            request_id,
            field="keys",
            max_reads=limits.max_reads,
        )
    keys = np.frombuffer(payloads[0], "<u8")
    if what == "balances":
        highest = int(keys.max())
        if highest >= limits.max_accounts:
            raise BadRequest(
                f"account {highest} does not exist: this ledger has the accounts 0 to "
                f"{limits.max_accounts - 1}",
                request_id,
                field="account",
                account=highest,
                max_accounts=limits.max_accounts,
            )
    minimum = _number(header, "min_tx_id", request_id) if "min_tx_id" in header else 0
    return Read(client, request_id, timeout, what, keys, minimum)


def _transaction(
    client: bytes,
    request_id: int,
    timeout: int | None,
    header: dict[str, Any],
    payloads: Sequence[Buffer],
) -> Read:
    _payloads(payloads, 0, 0, request_id)
    keys = np.array([_number(header, "tx_id", request_id)], "<u8")
    minimum = _number(header, "min_tx_id", request_id) if "min_tx_id" in header else 0
    return Read(client, request_id, timeout, "transaction", keys, minimum)


def _register(
    client: bytes,
    request_id: int,
    timeout: int | None,
    header: dict[str, Any],
    payloads: Sequence[Buffer],
) -> Register:
    _payloads(payloads, 1, 1, request_id)
    if not 1 <= size(payloads[0]) <= MAX_BINARY_BYTES:
        raise BadRequest(
            f"a module of {size(payloads[0])} bytes; 1 to {MAX_BINARY_BYTES} are allowed",
            request_id,
            field="binary",
            max_bytes=MAX_BINARY_BYTES,
        )
    if crc32c(payloads[0]) == UNREGISTERED:
        raise BadRequest(
            "the module's CRC-32C is 0, which says `unregistered` in the log; add a byte to one of "
            "its custom sections",
            request_id,
            field="binary",
        )
    return _registration(client, request_id, timeout, header, payloads[0])


def _registration(
    client: bytes, request_id: int, timeout: int | None, header: dict[str, Any], binary: Buffer
) -> Register:
    name = header.get("name")
    if not is_function_name(name):
        raise BadRequest(
            f"field name must be {NAME_RULE}, not {shown(name)}", request_id, field="name"
        )
    override = header.get("override", False)
    if not isinstance(override, bool):
        raise BadRequest(
            f"field override must be true or false, not {shown(override)}",
            request_id,
            field="override",
        )
    record = np.zeros(1, RECORD_DTYPE)
    record["kind"] = Kind.FUNCTION_REGISTERED
    record["function"] = crc32c(binary)
    record["user_ref"] = _number(header, "user_ref", request_id) if "user_ref" in header else 0
    record["account"] = override
    level = _level(header, request_id)
    records = record.tobytes()
    return Register(
        client, request_id, timeout, level, 1, records, EMPTY, [str(name)], binary=binary
    )


def _payloads(payloads: Sequence[Buffer], least: int, most: int, request_id: int) -> None:
    if not least <= len(payloads) <= most:
        wanted = str(least) if least == most else f"{least} to {most}"
        raise BadRequest(
            f"{len(payloads)} payload frames, this operation takes {wanted}", request_id
        )


def _number(header: dict[str, Any], name: str, request_id: int) -> int:
    value = header.get(name)
    if not _is_int(value, 0, MAX_U64):
        raise BadRequest(
            f"field {name} must be a whole number from 0 to 2^64-1, not {shown(value)}",
            request_id,
            field=name,
        )
    assert isinstance(value, int)
    return value


def _level(header: dict[str, Any], request_id: int) -> Level:
    value = header.get("wait", 0)
    if not _is_int(value, Level.NONE, Level.SNAPSHOT):
        raise BadRequest(
            f"field wait must be 0 to 3 (none, computed, committed, snapshot), not {shown(value)}",
            request_id,
            field="wait",
        )
    return Level(value)


def _is_int(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def name_length(name: str) -> int:
    """Bytes of a name, whatever characters it has."""
    return len(name.encode(errors="surrogatepass"))


def reply(request_id: int, fields: dict[str, Any], *payloads: Buffer) -> list[Buffer]:
    """Frames of a successful reply."""
    header: dict[str, Any] = {"v": PROTOCOL_VERSION, "id": request_id}
    header.update(fields)
    return [msgpack.packb(header), *payloads]


def error_reply(
    request_id: int | None, code: str, message: str, details: Details | None = None
) -> list[Buffer]:
    """Frames of an error reply."""
    header = {
        "v": PROTOCOL_VERSION,
        "id": request_id,
        "error": code,
        "message": message,
        "details": details or {},
    }
    return [msgpack.packb(header)]
