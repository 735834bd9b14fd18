"""Requests and replies of the client protocol: encoding, and decoding that trusts nothing.

Pure functions over bytes: no sockets, no clock. A reply that breaks the protocol in any way raises
`ProtocolError` and nothing else. Each kind of request is one class: it knows its header fields and
payload frames, and how to make the caller's value out of its reply. `docs/protocol.md` describes
the frames.
"""

from __future__ import annotations

import reprlib
import struct
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Generic, TypeAlias, TypeVar

import msgpack
import numpy as np
from numpy.typing import NDArray

from tallybus.common.protocol import MAX_HEADER_BYTES, PROTOCOL_VERSION, ErrorCode
from tallybus.common.record import (
    MAX_U64,
    REASON_MASK,
    STATUS_DTYPE,
    STATUS_SIZE,
    Level,
    Stage,
)
from tallybus.errors import ProtocolError
from tallybus.operations import (
    Balance,
    Balances,
    TransactionStatus,
    TransactionStatuses,
    transaction_status,
)
from tallybus.pipeline import GatewayInfo, PipelineIndex, ServiceInfo

MAX_MESSAGE_CHARS: Final = 1000
"""How much of a gateway's error text is shown."""

T = TypeVar("T")
Header: TypeAlias = dict[str, Any]
Payload: TypeAlias = Any
"""One payload frame: an object with the buffer protocol, whose bytes nobody changes any more."""

_U64: Final = struct.Struct("<Q")
_I64: Final = struct.Struct("<q")
_STATUS: Final = struct.Struct("<BB4xBxQ")


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A gateway's error reply: code, text, and `details` (a map, possibly empty)."""

    code: ErrorCode
    message: str
    details: Header


class Request(ABC, Generic[T]):
    """One request of a caller; sent again it is encoded anew, under another id."""

    __slots__ = ()
    op: ClassVar[str]
    reads: ClassVar[bool] = True
    """True if the request changes nothing, so that sending it again is always safe."""
    count: int = 1
    level: Level | None = None
    newer: ClassVar[Mapping[str, int]] = {}
    """Header fields that came after revision 1 of the protocol, each with the revision that has it.
    A request with one of them is sent only to a gateway that has told to have come that far
    (ADR 0020)."""
    committed_tx_id: int | None = None
    """Of a request that completes another one: the transaction that is on disk already."""

    def fields(self) -> Header:
        """Header fields besides v, op, id and timeout_ms."""
        return {}

    def fields_again(self) -> Header:
        """The same for a sending after one that was lost."""
        return self.fields()

    def newest(self) -> tuple[int, str]:
        """The revision of the protocol that a gateway needs for this request, and the field that it
        needs it for."""
        used = [(self.newer[name], name) for name in self.fields() if name in self.newer]
        return max(used, default=(0, ""))

    def payload(self) -> Sequence[Payload]:
        """Payload frames, in order."""
        return ()

    def resendable(self) -> bool:
        """Whether sending again cannot do anything twice."""
        return self.reads

    def retry_safe(self) -> bool:
        """Whether the caller, too, may ask for the same again without doing anything twice."""
        return self.resendable()

    def unknown(self) -> tuple[str, str]:
        """For an unknown outcome: what may have happened, and what the caller does about it."""
        advice = (
            "every operation has a user_ref, so sending the same ones again cannot apply any twice"
            if self.resendable()
            else "at least one has no user_ref, so sending them again could apply it twice; "
            "read the balances before you do"
        )
        return f"the {self.count} submitted operations were executed", advice

    @abstractmethod
    def decode(self, header: Header, payload: Sequence[bytes]) -> T | Request[T]:
        """The caller's value of a reply, or the request whose answer has it.

        Raises ProtocolError, or another TallybusError that the request documents.
        """

    def decode_again(self, header: Header, payload: Sequence[bytes]) -> T | Request[T]:
        """The same for the reply to a sending after one that was lost."""
        return self.decode(header, payload)


def encode(request: Request[Any], request_id: int, timeout_ms: int, again: bool) -> list[Payload]:
    """The frames of a request."""
    header = {"v": PROTOCOL_VERSION, "op": request.op, "id": request_id, "timeout_ms": timeout_ms}
    header.update(request.fields_again() if again else request.fields())
    return [msgpack.packb(header), *request.payload()]


def encode_ping(request_id: int, pending: list[int]) -> list[Payload]:
    """The frames of a ping that asks whether the gateway still holds the requests `pending`."""
    header = {"v": PROTOCOL_VERSION, "op": "ping", "id": request_id, "pending": pending}
    return [msgpack.packb(header)]


def read_header(frames: Sequence[bytes]) -> Header:
    """The header map of a message."""
    if not frames:
        raise ProtocolError("the gateway sent a message without frames")
    if len(frames[0]) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"the gateway sent a header of {len(frames[0])} bytes, the limit is {MAX_HEADER_BYTES}"
        )
    try:
        # Maps inside may have other keys than texts: a function's failures by status.
        header = msgpack.unpackb(frames[0], strict_map_key=False)
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as error:
        raise ProtocolError("the gateway sent a header that is not msgpack") from error
    if not isinstance(header, dict):
        raise ProtocolError(f"the gateway sent a header that is a {type(header).__name__}, no map")
    return header


def reply_id(header: Header) -> int | None:
    """The id of the request that a reply belongs to; None in an error reply to an unreadable
    request.
    """
    if "id" not in header:
        raise ProtocolError("the gateway sent a reply without an id")
    if header["id"] is None and "error" in header:
        return None
    return u64_field(header, "id")


def read_answer(
    request: Request[T], header: Header, payload: Sequence[bytes], again: bool
) -> T | Request[T] | ErrorReply:
    """What a reply to `request` says; raises what its `decode` does. `again`: an earlier sending
    was lost.
    """
    _check_version(header)
    if "error" in header:
        return read_error(header)
    return request.decode_again(header, payload) if again else request.decode(header, payload)


def read_error(header: Header) -> ErrorReply:
    """The fields of an error reply; raises ProtocolError."""
    _check_version(header)
    code, text, details = header["error"], header.get("message"), header.get("details", {})
    if not isinstance(text, str):
        raise bad_field("message", text, "a text")
    if not isinstance(details, dict):
        raise bad_field("details", details, "a map")
    if not isinstance(code, str):
        raise bad_field("error", code, "a text")
    try:
        known = ErrorCode(code)
    except ValueError:
        raise ProtocolError(
            f"the gateway answered with the unknown error {_short(code)}: {_short(text)}"
        ) from None
    return ErrorReply(known, text[:MAX_MESSAGE_CHARS], details)


def read_pong(header: Header, payload: Sequence[bytes]) -> tuple[GatewayInfo, list[int]]:
    """What a ping's reply says: about the gateway, and which ids it does not hold."""
    _check_version(header)
    check_frames(payload, 0)
    unknown = header.get("unknown")
    if not isinstance(unknown, list) or not all(_is_u64(item) for item in unknown):
        raise bad_field("unknown", unknown, "a list of ids")
    return _gateway_info(header), unknown


def _gateway_info(header: Header) -> GatewayInfo:
    # What a gateway of an earlier revision does not tell keeps its default.
    added: dict[str, Any] = {
        name: u64_field(header, name)
        for name in ("revision", "max_reads", "max_request_wait_ms")
        if name in header
    }
    if "role" in header:
        added["role"] = text_field(header, "role")
    limits = header.get("limits", {})
    if not isinstance(limits, dict) or not all(
        isinstance(name, str) and _is_u64(value) for name, value in limits.items()
    ):
        raise bad_field("limits", limits, "a map of names to numbers")
    return GatewayInfo(
        u64_field(header, "incarnation"),
        u64_field(header, "protocol"),
        u64_field(header, "max_batch"),
        u64_field(header, "max_accounts"),
        limits=limits,
        **added,
    )


class _Balances(Request[T]):
    """What reads of one and of many balances share."""

    __slots__ = ("count", "min_tx_id")
    op = "balances"
    count: int

    def __init__(self, count: int, min_tx_id: int | None) -> None:
        self.count = count
        self.min_tx_id = min_tx_id

    def fields(self) -> Header:
        return {} if self.min_tx_id is None else {"min_tx_id": self.min_tx_id}

    def _read(self, header: Header, payload: Sequence[bytes]) -> int:
        count, snapshot = u64_field(header, "count"), u64_field(header, "snapshot")
        if count != self.count:
            raise bad_field("count", count, f"{self.count}, the number of accounts asked for")
        if self.min_tx_id is not None and snapshot < self.min_tx_id:
            raise bad_field("snapshot", snapshot, f"at least {self.min_tx_id}, as asked for")
        check_frames(payload, 1)
        check_size(payload[0], count, _I64.size)
        return snapshot


class ReadBalance(_Balances[Balance]):
    """Reads the balance of one account."""

    __slots__ = ("account",)

    def __init__(self, account: int, min_tx_id: int | None = None) -> None:
        super().__init__(1, min_tx_id)
        self.account = account

    def payload(self) -> Sequence[Payload]:
        return (_U64.pack(self.account),)

    def decode(self, header: Header, payload: Sequence[bytes]) -> Balance:
        snapshot = self._read(header, payload)
        return Balance(self.account, _I64.unpack(payload[0])[0], snapshot)


class ReadBalances(_Balances[Balances]):
    """Reads the balances of `accounts` u64[n], an array that nobody changes any more."""

    __slots__ = ("accounts",)

    def __init__(self, accounts: NDArray[np.uint64], min_tx_id: int | None = None) -> None:
        super().__init__(len(accounts), min_tx_id)
        self.accounts = accounts

    def payload(self) -> Sequence[Payload]:
        return (self.accounts.tobytes(),)

    def decode(self, header: Header, payload: Sequence[bytes]) -> Balances:
        snapshot = self._read(header, payload)
        return Balances(self.accounts, np.frombuffer(payload[0], "<i8"), snapshot)


class _Statuses(Request[T]):
    """What status reads of one and of many transactions share."""

    __slots__ = ("count", "min_tx_id")
    op = "status"
    count: int

    def __init__(self, count: int, min_tx_id: int | None) -> None:
        self.count = count
        self.min_tx_id = min_tx_id

    def fields(self) -> Header:
        return {} if self.min_tx_id is None else {"min_tx_id": self.min_tx_id}

    def _read(self, header: Header, payload: Sequence[bytes]) -> bytes:
        count = u64_field(header, "count")
        if count != self.count:
            raise bad_field("count", count, f"{self.count}, the number of ids asked for")
        check_frames(payload, 1)
        check_size(payload[0], count, STATUS_SIZE)
        return payload[0]


class ReadStatus(_Statuses[TransactionStatus]):
    """Reads the status of one transaction."""

    __slots__ = ("tx_id",)

    def __init__(self, tx_id: int, min_tx_id: int | None = None) -> None:
        super().__init__(1, min_tx_id)
        self.tx_id = tx_id

    def payload(self) -> Sequence[Payload]:
        return (_U64.pack(self.tx_id),)

    def decode(self, header: Header, payload: Sequence[bytes]) -> TransactionStatus:
        stage, status, reason, first = _STATUS.unpack(self._read(header, payload))
        if stage > max(Stage):
            raise bad_field("stage", stage, "a stage")
        return transaction_status(self.tx_id, stage, status, first, reason)


class ReadStatuses(_Statuses[TransactionStatuses]):
    """Reads the statuses of `tx_ids` u64[n], an array that nobody changes any more."""

    __slots__ = ("tx_ids",)

    def __init__(self, tx_ids: NDArray[np.uint64], min_tx_id: int | None = None) -> None:
        super().__init__(len(tx_ids), min_tx_id)
        self.tx_ids = tx_ids

    def payload(self) -> Sequence[Payload]:
        return (self.tx_ids.tobytes(),)

    def decode(self, header: Header, payload: Sequence[bytes]) -> TransactionStatuses:
        rows = np.frombuffer(self._read(header, payload), STATUS_DTYPE)
        if (rows["stage"] > max(Stage)).any():
            raise ProtocolError("the gateway sent a status with an unknown stage")
        return TransactionStatuses(
            self.tx_ids,
            np.ascontiguousarray(rows["stage"]),
            np.ascontiguousarray(rows["status"]),
            np.ascontiguousarray(rows["duplicate_of"]),
            rows["reason"] & np.uint8(REASON_MASK),
        )


class ReadIndex(Request[PipelineIndex]):
    """Reads how far each stage has come."""

    __slots__ = ()
    op = "index"

    def decode(self, header: Header, payload: Sequence[bytes]) -> PipelineIndex:
        check_frames(payload, 0)
        names = ("sequenced", "computed", "committed", "snapshot", "term")
        return PipelineIndex(*(u64_field(header, name) for name in names))


class ReadServices(Request[tuple[ServiceInfo, ...]]):
    """Reads what the gateway last heard of each service."""

    __slots__ = ()
    op = "services"

    def decode(self, header: Header, payload: Sequence[bytes]) -> tuple[ServiceInfo, ...]:
        check_frames(payload, 0)
        rows = header.get("services")
        if not isinstance(rows, list):
            raise bad_field("services", rows, "a list")
        return tuple(_service(row) for row in rows)


def _service(row: object) -> ServiceInfo:
    if not isinstance(row, dict):
        raise bad_field("services", row, "a list of maps")
    values: dict[str, Any] = {}
    for field in fields(ServiceInfo):
        if field.type == "str":
            values[field.name] = text_field(row, field.name)
        else:
            values[field.name] = u64_field(row, field.name)
    return ServiceInfo(**values)


class WaitFor(Request[Level]):
    """Waits until the index of `level` has reached `tx_id`."""

    __slots__ = ("level", "tx_id")
    op = "wait"
    level: Level

    def __init__(self, tx_id: int, level: Level) -> None:
        self.tx_id = tx_id
        self.level = level

    def fields(self) -> Header:
        return {"tx_id": self.tx_id, "wait": int(self.level)}

    def decode(self, header: Header, payload: Sequence[bytes]) -> Level:
        check_frames(payload, 0)
        return level_field(header, self.level)


class AskGateway(Request[GatewayInfo]):
    """Asks the gateway who it is; the reply to a ping without pending requests."""

    __slots__ = ()
    op = "ping"

    def fields(self) -> Header:
        return {"pending": []}

    def decode(self, header: Header, payload: Sequence[bytes]) -> GatewayInfo:
        info, unknown = read_pong(header, payload)
        if unknown:
            raise bad_field("unknown", unknown, "empty, as nothing was asked for")
        return info


def _check_version(header: Header) -> None:
    version = header.get("v")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"the gateway speaks version {_short(version)} of the protocol, this client speaks "
            f"{PROTOCOL_VERSION}; use a client of the gateway's release"
        )


def _is_u64(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_U64


def u64_field(header: Header, name: str) -> int:
    """A header field that must be an unsigned 64-bit integer."""
    value = header.get(name)
    if type(value) is int and 0 <= value <= MAX_U64:
        return value
    raise bad_field(name, value, "an unsigned 64-bit integer")


def text_field(header: Header, name: str) -> str:
    """A header field that must be a text."""
    value = header.get(name)
    if isinstance(value, str):
        return value
    raise bad_field(name, value, "a text")


def level_field(header: Header, asked: Level) -> Level:
    """The level that a reply says was reached, which must not be below the one asked for."""
    value = u64_field(header, "level")
    if not asked <= value <= Level.SNAPSHOT:
        raise bad_field("level", value, f"a level from {int(asked)} up")
    return Level(value)


def check_frames(payload: Sequence[bytes], count: int) -> None:
    """A reply must have exactly `count` payload frames."""
    if len(payload) != count:
        raise ProtocolError(f"the gateway sent {len(payload)} payload frames, expected {count}")


def check_size(frame: bytes, count: int, item_size: int) -> None:
    """A payload frame must hold exactly `count` items."""
    if len(frame) != count * item_size:
        raise ProtocolError(
            f"the gateway sent a payload of {len(frame)} bytes, expected {count} x {item_size}"
        )


def bad_field(name: str, value: object, expected: str) -> ProtocolError:
    """The error for a header field that is missing or not what it must be."""
    return ProtocolError(
        f"the gateway sent a reply whose {name} is {_short(value)}, expected {expected}"
    )


def _short(value: object) -> str:
    return reprlib.repr(value)
