"""Registering, unregistering and listing functions: frames, and what their replies mean.

Pure functions over bytes, a part of the codec. A registration is answered like a submit of one
operation. Its `user_ref` is chosen here once per call, so that it applies once however often it is
sent. The version that it made is read from its transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from tallybus.client.codec import (
    Header,
    Payload,
    Request,
    bad_field,
    check_frames,
    text_field,
    u64_field,
)
from tallybus.client.submit import read_result
from tallybus.client.transaction import TransactionRequest
from tallybus.common.checksum import crc32c
from tallybus.common.record import MAX_U64, Kind, Level, Reason, Status, status_of
from tallybus.errors import (
    AlreadyExists,
    InvalidFunction,
    NotRegistered,
    ProtocolError,
    TallybusError,
)
from tallybus.functions import FunctionInfo, FunctionUsage, FunctionVersion
from tallybus.operations import Result

MAX_CRC: Final = 2**32 - 1


class _Registration(Request[FunctionVersion]):
    """What registering and unregistering share."""

    __slots__ = ("name", "user_ref")
    reads = False
    count = 1
    level: Level = Level.COMMITTED

    def __init__(self, name: str, user_ref: int) -> None:
        self.name = name
        self.user_ref = user_ref

    def fields(self) -> Header:
        return {"name": self.name, "user_ref": self.user_ref, "wait": int(self.level)}

    def resendable(self) -> bool:
        return True

    def retry_safe(self) -> bool:
        return False  # the caller's next call has another reference

    def decode(self, header: Header, payload: Sequence[bytes]) -> Request[FunctionVersion]:
        # Nobody else has this reference: a duplicate is one of an earlier sending, whether this
        # client knows of that or the gateway sent the request again.
        result = read_result(header, payload, self.level, again=True)
        if result.status != Status.NONE:
            raise self.rejected(result)
        return _ReadVersion(self.name, self.crc32c(), result.tx_id)

    def crc32c(self) -> int:
        """What the record of a success has as CRC-32C."""
        return 0

    def rejected(self, result: Result) -> TallybusError:
        """What a rejected registration raises."""
        return InvalidFunction(
            f"the ledger rejected transaction {result.tx_id}, the {self.op} of function "
            f"{self.name}, with status {result.status}",
            name=self.name,
            reason=f"status {result.status}",
        )


class RegisterFunction(_Registration):
    """Registers `binary` as the next version of function `name`."""

    __slots__ = ("binary", "override")
    op = "register"

    def __init__(self, name: str, binary: bytes, override: bool, user_ref: int) -> None:
        super().__init__(name, user_ref)
        self.binary = binary
        self.override = override

    def fields(self) -> Header:
        return super().fields() | {"override": self.override}

    def payload(self) -> Sequence[Payload]:
        return (self.binary,)

    def crc32c(self) -> int:
        return int(crc32c(self.binary))

    def unknown(self) -> tuple[str, str]:
        return (
            f"function {self.name} was registered",
            "list_functions tells; registering the same again makes at most one version more",
        )

    def rejected(self, result: Result) -> TallybusError:
        if result.status == Status.INVALID_OPERATION and not self.override:
            return AlreadyExists(
                f"function {self.name} is registered already (transaction {result.tx_id} was "
                "rejected); register it with override to replace it",
                name=self.name,
                tx_id=result.tx_id,
            )
        return super().rejected(result)


class UnregisterFunction(_Registration):
    """Unregisters function `name`."""

    __slots__ = ()
    op = "unregister"

    def unknown(self) -> tuple[str, str]:
        return f"function {self.name} was unregistered", "list_functions tells"

    def rejected(self, result: Result) -> TallybusError:
        if result.status == Status.INVALID_OPERATION:
            return NotRegistered(
                f"there is no function {self.name} (transaction {result.tx_id} was rejected)",
                name=self.name,
                tx_id=result.tx_id,
            )
        return super().rejected(result)


class _ReadVersion(TransactionRequest[FunctionVersion]):
    """Reads from a registration that succeeded which version it made."""

    __slots__ = ("committed_tx_id", "crc32c", "name")
    committed_tx_id: int | None

    def __init__(self, name: str, crc32c: int, tx_id: int) -> None:
        super().__init__(tx_id, tx_id)
        self.committed_tx_id = tx_id
        self.name = name
        self.crc32c = crc32c

    def decode(self, header: Header, payload: Sequence[bytes]) -> FunctionVersion:
        found = self.read(header, payload)
        version, crc32c = found.function_version, found.function_crc32c
        if (
            found.kind is not Kind.FUNCTION_REGISTERED
            or (found.function_name, crc32c) != (self.name, self.crc32c)
            or version is None
        ):
            raise ProtocolError(
                f"the gateway sent transaction {self.tx_id} as another one than the registration "
                f"of function {self.name} with CRC-32C {self.crc32c:08x}"
            )
        return FunctionVersion(self.name, version, self.crc32c, self.tx_id)


class ListFunctions(Request[list[FunctionInfo]]):
    """Reads the registered functions and their statistics."""

    __slots__ = ()
    op = "functions"

    def decode(self, header: Header, payload: Sequence[bytes]) -> list[FunctionInfo]:
        check_frames(payload, 0)
        rows = header.get("functions")
        if not isinstance(rows, list):
            raise bad_field("functions", rows, "a list")
        return [_info(row) for row in rows]


_TOTALS: Final = (
    *("binaries_bytes", "binaries_limit", "code_bytes", "code_limit"),
    *("compile_ms", "compile_limit_ms", "waiting"),
)


class ReadFunctionUsage(Request[FunctionUsage]):
    """Reads what all functions take together."""

    __slots__ = ()
    op = "functions"

    def decode(self, header: Header, payload: Sequence[bytes]) -> FunctionUsage:
        check_frames(payload, 0)
        told = header.get("totals", {})
        if not isinstance(told, dict):
            raise bad_field("totals", told, "a map")
        found = dict.fromkeys(_TOTALS, 0) | told  # an older gateway tells none
        return FunctionUsage(
            binaries_bytes=u64_field(found, "binaries_bytes"),
            binaries_limit=u64_field(found, "binaries_limit"),
            code_bytes=u64_field(found, "code_bytes"),
            code_limit=u64_field(found, "code_limit"),
            compile_seconds=u64_field(found, "compile_ms") / 1_000,
            compile_limit=u64_field(found, "compile_limit_ms") / 1_000,
            waiting=u64_field(found, "waiting"),
        )


def _info(row: Any) -> FunctionInfo:
    if not isinstance(row, dict):
        raise bad_field("functions", row, "a list of maps")
    failures = row.get("failures")
    if not isinstance(failures, dict) or not all(
        type(status) is int and 0 < status < 256 and type(count) is int and 0 <= count <= MAX_U64
        for status, count in failures.items()
    ):
        raise bad_field("failures", failures, "a map from statuses to numbers")
    reasons = row.get("reasons", {})
    if not isinstance(reasons, dict) or not all(
        type(reason) is int and type(count) is int and 0 <= count <= MAX_U64
        for reason, count in reasons.items()
    ):
        raise bad_field("reasons", reasons, "a map from reasons to numbers")
    known = Reason._value2member_map_
    seconds = row.get("compile_seconds", 0.0)
    if type(seconds) not in (int, float):
        raise bad_field("compile_seconds", seconds, "a number")
    crc = u64_field(row, "crc32c")
    if crc > MAX_CRC:
        raise bad_field("crc32c", crc, "an unsigned 32-bit integer")
    return FunctionInfo(
        name=text_field(row, "name"),
        version=u64_field(row, "version"),
        crc32c=crc,
        tx_id=u64_field(row, "registered"),
        calls=u64_field(row, "calls"),
        failures={status_of(status): count for status, count in sorted(failures.items())},
        fuel_total=u64_field(row, "fuel"),
        fuel_limit=u64_field(row, "fuel_limit"),
        mean_ns=_nanoseconds(row, "mean_ns"),
        p99_ns=_nanoseconds(row, "p99_ns"),
        work_ns=u64_field(row, "work_ns") if "work_ns" in row else 0,
        reasons={Reason(r): n for r, n in sorted(reasons.items()) if r in known},
        suspended=row.get("suspended") is True,
        compile_seconds=float(seconds),
        code_bytes=u64_field(row, "code_bytes") if "code_bytes" in row else 0,
        start_fuel=u64_field(row, "start_fuel") if "start_fuel" in row else 0,
        unusable=text_field(row, "unusable") if "unusable" in row else "",
    )


def _nanoseconds(row: Header, name: str) -> float | None:
    value = row.get(name)
    if value is not None and type(value) not in (int, float):
        raise bad_field(name, value, "a number, or nil")
    return None if value is None else float(value)
