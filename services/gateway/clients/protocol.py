"""The client protocol, seen from the gateway: requests in, replies out. `docs/protocol.md` is its
text.

Decoding trusts nothing. Whatever a client sends becomes a checked request, or raises `BadRequest`
with the id to answer to, where one could be read. It guesses nothing either: a key that a request
does not have is refused by its name. A client learns from `REVISION` which newer keys this gateway
has. ADR 0020 says why requests are strict, and how the protocol grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgpack
import numpy as np
from crc32c import crc32c

from tallybus.common.buffers import EMPTY, Buffer, size
from tallybus.common.bus.frames import FrameError, shown, unpack_header
from tallybus.common.bus.submitted import RecordFault, count_calls
from tallybus.common.functions.names import MAX_BINARY_BYTES, NAME_RULE, is_function_name
from tallybus.common.functions.registry import UNREGISTERED
from tallybus.common.protocol import MAX_PENDING, PROTOCOL_VERSION, ErrorCode
from tallybus.common.record import MAX_U64, PARAMS_SIZE, RECORD_DTYPE, RECORD_SIZE, Kind, Level

if TYPE_CHECKING:
    from tallybus.common.security.keys import Grant
    from tallybus.services.gateway.clients.usage import Usage

MAX_NAMES: Final = 4096
MAX_NAMES_BYTES: Final = 65_536
"""All names of a request together, so that a batch of several still has a short header."""
MAX_KEY_SHOWN: Final = 64

Details = dict[str, int | str | None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request that is well formed is not taken; nothing was done about it."""

    code: ErrorCode
    message: str
    details: Details


class BadRequest(Exception):
    """A client's message that cannot be served. Fields: `request_id` or None, `code`, `details`."""

    def __init__(
        self,
        message: str,
        request_id: int | None = None,
        code: ErrorCode = ErrorCode.INVALID_REQUEST,
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
    """The client in whose name it takes a place for requests: a key, or without keys a
    connection."""
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
    """Is this still the gateway that holds these requests, and what may its client ask for?"""

    pending: list[int]
    grant: Grant | None = None
    """What a client was given that may not do everything."""


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
        header = unpack_header(frames[0], unique=True)
    except FrameError as error:
        raise BadRequest(error.reason) from error
    raw_id = header.get("id")
    request_id = raw_id if _is_int(raw_id, 0, MAX_U64) else None
    version = header.get("v")
    if not _is_int(version, PROTOCOL_VERSION, PROTOCOL_VERSION):
        raise BadRequest(
            f"protocol version {shown(version)} is not spoken here, use {PROTOCOL_VERSION}",
            request_id,
            ErrorCode.UNSUPPORTED_VERSION,
            supported=PROTOCOL_VERSION,
        )
    if request_id is None:
        raise BadRequest(
            f"field id must be a whole number from 0 to 2^64-1, not {shown(raw_id)}", field="id"
        )
    return _Message(client, request_id, header, frames, limits).request()


class _Message:
    """A message of a client while it is looked at. `refusal` makes what is raised about it."""

    __slots__ = ("client", "frames", "header", "id", "limits", "timeout_ms")

    def __init__(
        self,
        client: bytes,
        request_id: int,
        header: dict[str, Any],
        frames: Sequence[Buffer],
        limits: Limits,
    ) -> None:
        self.client = client
        self.id = request_id
        self.header = header
        self.frames = frames
        self.limits = limits
        self.timeout_ms: int | None = None

    def request(self) -> ClientRequest:
        header = self.header
        name = header.get("op")
        operation = _OPERATIONS.get(name) if isinstance(name, str) else None
        if operation is None:
            raise self.refusal(
                f"field op must be one of {', '.join(_OPERATIONS)}, not {shown(name)}", "op"
            )
        if not header.keys() <= operation.keys:
            key = next(key for key in header if key not in operation.keys)
            raise self.refusal(
                f"a {name} request has no field {shown(key)}; its fields are "
                f"{', '.join(sorted(operation.keys))}",
                key[:MAX_KEY_SHOWN] if isinstance(key, str) else shown(key),
            )
        if "timeout_ms" in header:
            self.timeout_ms = self.number("timeout_ms")
        least, most = operation.payloads
        if not least <= len(self.frames) - 1 <= most:
            wanted = str(least) if least == most else f"{least} to {most}"
            raise self.refusal(
                f"{len(self.frames) - 1} payload frames, a {name} request has {wanted}", "payload"
            )
        return operation.decode(self)

    def refusal(self, message: str, field: str, **details: int) -> BadRequest:
        """An `invalid_request` about this field."""
        return BadRequest(message, self.id, ErrorCode.INVALID_REQUEST, field=field, **details)

    def number(self, name: str) -> int:
        """A field that must be there."""
        value = self.header.get(name)
        if not _is_int(value, 0, MAX_U64):
            raise self.refusal(
                f"field {name} must be a whole number from 0 to 2^64-1, not {shown(value)}", name
            )
        assert isinstance(value, int)
        return value

    def optional(self, name: str) -> int:
        """A field that may be left out; then it is 0."""
        return self.number(name) if name in self.header else 0

    def level(self) -> Level:
        """The field `wait`, which must be there."""
        value = self.header.get("wait")
        if not _is_int(value, Level.NONE, Level.SNAPSHOT):
            raise self.refusal(
                "field wait must be there and say what to wait for, from 0 to 3 (none, computed, "
                f"committed, snapshot), not {shown(value)}",
                "wait",
            )
        assert isinstance(value, int)
        return Level(value)


def _submit(message: _Message) -> Submit:
    count = message.number("count")
    most = message.limits.max_batch
    if not 1 <= count <= most:
        raise message.refusal(
            f"a request holds 1 to {most} operations, not {count}", "count", max_batch=most
        )
    _, records, *rest = message.frames
    if size(records) != count * RECORD_SIZE:
        raise message.refusal(
            f"{size(records)} bytes of records, {count} operations take {count * RECORD_SIZE}",
            "records",
        )
    params = rest[0] if rest else EMPTY
    names = _names(message) if "names" in message.header else []
    try:
        calls = count_calls(records, count, len(names))
    except RecordFault as fault:
        why = str(fault)
        raise message.refusal(why, fault.field, index=fault.index, value=fault.value) from fault
    if size(params) != calls * PARAMS_SIZE or len(rest) != bool(calls):
        wanted = f"take {calls * PARAMS_SIZE}" if calls else "come without that frame"
        raise message.refusal(
            f"{size(params)} bytes in a frame of parameters, {calls} function calls {wanted}",
            "params",
        )
    level = message.level()
    return Submit(
        message.client, message.id, message.timeout_ms, level, count, records, params, names
    )


def _names(message: _Message) -> list[str]:
    names = message.header["names"]
    if not isinstance(names, list) or len(names) > MAX_NAMES:
        raise message.refusal(
            f"field names must be a list of at most {MAX_NAMES} names", "names", max_names=MAX_NAMES
        )
    for index, name in enumerate(names):
        if not is_function_name(name):
            raise message.refusal(
                f"name {index} must be {NAME_RULE}, not {shown(name)}", "names", index=index
            )
    length = sum(map(len, names))  # of ASCII characters
    if length > MAX_NAMES_BYTES:
        raise message.refusal(
            f"field names has {length} bytes of names, at most {MAX_NAMES_BYTES} are allowed",
            "names",
            max_bytes=MAX_NAMES_BYTES,
        )
    return names


def _read(message: _Message) -> Read:
    what = message.header["op"]
    frame = message.frames[1]
    length, most = size(frame), message.limits.max_reads
    if length % 8 or not 8 <= length <= most * 8:
        raise message.refusal(
            f"{length} bytes of keys, 1 to {most} numbers of 8 bytes are allowed",
            "keys",
            max_reads=most,
        )
    keys = np.frombuffer(frame, "<u8")
    if what == "balances":
        highest, accounts = int(keys.max()), message.limits.max_accounts
        if highest >= accounts:
            raise message.refusal(
                f"account {highest} does not exist: this ledger has the accounts 0 to "
                f"{accounts - 1}",
                "account",
                account=highest,
                max_accounts=accounts,
            )
    least = message.optional("min_tx_id")
    return Read(message.client, message.id, message.timeout_ms, what, keys, least)


def _transaction(message: _Message) -> Read:
    keys = np.array([message.number("tx_id")], "<u8")
    least = message.optional("min_tx_id")
    return Read(message.client, message.id, message.timeout_ms, "transaction", keys, least)


def _register(message: _Message) -> Register:
    binary = message.frames[1]
    if not 1 <= size(binary) <= MAX_BINARY_BYTES:
        raise message.refusal(
            f"a module of {size(binary)} bytes; 1 to {MAX_BINARY_BYTES} are allowed",
            "binary",
            max_bytes=MAX_BINARY_BYTES,
        )
    if crc32c(binary) == UNREGISTERED:
        raise message.refusal(
            "the module's CRC-32C is 0, which says `unregistered` in the log; add a byte to one of "
            "its custom sections",
            "binary",
        )
    return _registration(message, binary)


def _unregister(message: _Message) -> Register:
    return _registration(message, EMPTY)


def _registration(message: _Message, binary: Buffer) -> Register:
    name = message.header.get("name")
    if not is_function_name(name):
        raise message.refusal(f"field name must be {NAME_RULE}, not {shown(name)}", "name")
    override = message.header.get("override", False)
    if not isinstance(override, bool):
        raise message.refusal(
            f"field override must be true or false, not {shown(override)}", "override"
        )
    record = np.zeros(1, RECORD_DTYPE)
    record["kind"] = Kind.FUNCTION_REGISTERED
    record["function"] = crc32c(binary)
    record["user_ref"] = message.optional("user_ref")
    record["account"] = override
    level = message.level()
    return Register(
        message.client,
        message.id,
        message.timeout_ms,
        level,
        1,
        record.tobytes(),
        EMPTY,
        [str(name)],
        binary=binary,
    )


def _wait(message: _Message) -> Wait:
    tx_id = message.number("tx_id")
    return Wait(message.client, message.id, message.timeout_ms, tx_id, message.level())


def _ping(message: _Message) -> Ping:
    pending = message.header.get("pending", [])
    if (
        not isinstance(pending, list)
        or len(pending) > MAX_PENDING
        or not all(_is_int(item, 0, MAX_U64) for item in pending)
    ):
        raise message.refusal(
            f"field pending must be a list of at most {MAX_PENDING} request ids",
            "pending",
            max_pending=MAX_PENDING,
        )
    return Ping(message.client, message.id, message.timeout_ms, pending)


def _index(message: _Message) -> IndexRead:
    return IndexRead(message.client, message.id, message.timeout_ms)


def _clock(message: _Message) -> ClockRead:
    return ClockRead(message.client, message.id, message.timeout_ms)


def _accept_clock(message: _Message) -> AcceptClock:
    return AcceptClock(message.client, message.id, message.timeout_ms)


def _services(message: _Message) -> ServicesRead:
    return ServicesRead(message.client, message.id, message.timeout_ms)


def _functions(message: _Message) -> FunctionsRead:
    return FunctionsRead(message.client, message.id, message.timeout_ms)


@dataclass(frozen=True, slots=True)
class _Operation:
    """What reads an `op`, the keys that its header may have, and its least and most payloads."""

    decode: Callable[[_Message], ClientRequest]
    keys: frozenset[str]
    payloads: tuple[int, int]


def _operation(
    decode: Callable[[_Message], ClientRequest], *keys: str, payloads: tuple[int, int] = (0, 0)
) -> _Operation:
    return _Operation(decode, frozenset(("v", "op", "id", "timeout_ms", *keys)), payloads)


_OPERATIONS: Final[Mapping[str, _Operation]] = {
    "submit": _operation(_submit, "wait", "count", "names", payloads=(1, 2)),
    "register": _operation(_register, "name", "override", "user_ref", "wait", payloads=(1, 1)),
    "unregister": _operation(_unregister, "name", "user_ref", "wait"),
    "functions": _operation(_functions),
    "transaction": _operation(_transaction, "tx_id", "min_tx_id"),
    "balances": _operation(_read, "min_tx_id", payloads=(1, 1)),
    "status": _operation(_read, "min_tx_id", payloads=(1, 1)),
    "index": _operation(_index),
    "services": _operation(_services),
    "clock": _operation(_clock),
    "accept_clock": _operation(_accept_clock),
    "wait": _operation(_wait, "tx_id", "wait"),
    "ping": _operation(_ping, "pending"),
}
"""What a client may ask for. A key that came later than revision 1 is told in `docs/protocol.md`
with the revision that has it."""


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
    request_id: int | None, code: ErrorCode, message: str, details: Details | None = None
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
