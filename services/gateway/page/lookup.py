"""Look-ups of the page: a balance or a transaction, asked of the gateway's core as a client asks.

A thread that serves a browser calls `Lookups.look_up` and waits. What it asks goes through a queue
to the gateway's loop, which hands it to the core as a request of the client `PAGE_CLIENT`, and the
core's answer to that client comes back here. At most `MAX_LOOKUPS` questions are with the core at a
time; one that nobody waits for any more is forgotten, and its answer dropped. Answers of the core
become JSON objects in which every integer is a text: JavaScript's numbers end at 2^53.
ADR 0014 says why the page is a client of the core.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final

import msgpack
import numpy as np

from tallybus.common.buffers import Buffer
from tallybus.common.protocol import PROTOCOL_VERSION, ErrorCode
from tallybus.common.record import (
    ENTRY_DTYPE,
    RECORD_DTYPE,
    STATUS_DTYPE,
    Kind,
    Stage,
    Status,
    json_name,
    status_of,
)
from tallybus.common.times import utc_text

PAGE_CLIENT: Final = b""
"""The page's routing id. No client on the network can have it: libzmq itself makes up an id of five
bytes for a peer that names none, or names this one, and every other id has at least one byte."""
MAX_LOOKUPS: Final = 16
ANSWER_MS: Final = 2_000
"""How long the core may take for one question."""
READABLE_MS: Final = 500
"""How long a transaction that is not readable yet is waited for."""
LOOP_S: Final = 3.0
"""How long the gateway's loop may take for a question, whatever it says: then it does not turn."""
LOOK_S: Final = 0.1
"""How often a waiting thread looks whether its browser has gone."""

Json = dict[str, Any]
Reply = tuple[int, Json]
"""HTTP status and the object to answer with."""
Gone = Callable[[], bool]


@dataclass(slots=True, eq=False)
class _Question:
    """A question with the core. `answer`: the header and payloads of its reply."""

    id: int
    frames: list[Buffer]
    answer: tuple[Json, Sequence[Buffer]] | None = None
    wanted: bool = field(default=True)


class _Unanswered(Exception):
    """There is no answer, and this is what to say instead. Fields: `status`, `message`."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class Lookups:
    """Asks for browsers. `wake` ends the wait of the gateway's loop, which calls `take_questions`
    and `answered`; `look_up` is called by threads, which wait in it.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._changed = threading.Condition()
        self._new: deque[_Question] = deque()
        self._open: dict[int, _Question] = {}
        self._last = 0
        self._closed = False

    # -- for the gateway's loop ------------------------------------------------------------------

    def take_questions(self) -> list[list[Buffer]]:
        """Messages of `PAGE_CLIENT` that the core has not seen yet."""
        if not self._new:
            return []
        with self._changed:
            found = [question for question in self._new if question.wanted]
            for question in self._new:
                if not question.wanted:
                    del self._open[question.id]
            self._new.clear()
        return [question.frames for question in found]

    def answered(self, frames: Sequence[Buffer]) -> None:
        """An answer of the core to `PAGE_CLIENT`."""
        header: Json = msgpack.unpackb(frames[0], strict_map_key=False)
        with self._changed:
            question = self._open.pop(header.get("id", 0), None)
            if question is not None:
                question.answer = header, frames[1:]
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing is asked any more, and whoever waits is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # -- for threads that serve browsers ---------------------------------------------------------

    def look_up(self, what: str, number: int, gone: Gone) -> Reply | None:
        """The balance of an account (`what` is "balance") or a transaction ("transaction").

        None: `gone` says that nobody waits for it any more.
        """
        try:
            if what == "balance":
                return self._balance(number, gone)
            return self._transaction(number, gone)
        except _Unanswered as error:
            return error.status, {"error": error.message}
        except _Left:
            return None

    def _balance(self, account: int, gone: Gone) -> Reply:
        keys = np.array([account], "<u8").tobytes()
        header, payloads = self._ask(gone, "balances", {}, keys)
        return HTTPStatus.OK, {
            "account": str(account),
            "balance": str(int.from_bytes(payloads[0], "little", signed=True)),
            "last_snapshot_tx_id": str(header["snapshot"]),
        }

    def _transaction(self, tx_id: int, gone: Gone) -> Reply:
        # Its status first: the gateway knows that of what is not readable yet by itself.
        _, payloads = self._ask(gone, "status", {}, np.array([tx_id], "<u8").tobytes())
        stage = Stage(int(np.frombuffer(payloads[0], STATUS_DTYPE)["stage"][0]))
        if stage is Stage.UNKNOWN:
            return _missing(tx_id, stage)
        fields: Json = {"tx_id": tx_id}
        wait_ms = ANSWER_MS
        if stage not in (Stage.ON_SNAPSHOT, Stage.ERROR):
            fields["min_tx_id"] = tx_id
            wait_ms = READABLE_MS
        try:
            header, payloads = self._ask(gone, "transaction", fields, wait_ms=wait_ms)
        except _Unanswered as error:
            if error.status == HTTPStatus.GATEWAY_TIMEOUT and "min_tx_id" in fields:
                return _missing(tx_id, stage)
            raise
        if not header["found"]:
            return _missing(tx_id, stage)
        return HTTPStatus.OK, transaction_json(header, payloads)

    def _ask(
        self,
        gone: Gone,
        operation: str,
        fields: Json,
        *payloads: bytes,
        wait_ms: int = ANSWER_MS,
    ) -> tuple[Json, Sequence[Buffer]]:
        question = self._put(operation, fields, payloads, wait_ms)
        limit = time.monotonic() + wait_ms / 1000 + LOOP_S
        with self._changed:
            while question.answer is None:
                if self._closed:
                    raise _Unanswered(HTTPStatus.SERVICE_UNAVAILABLE, "the gateway is stopping")
                if gone():
                    question.wanted = False
                    raise _Left
                if time.monotonic() > limit:
                    question.wanted = False
                    raise _Unanswered(
                        HTTPStatus.GATEWAY_TIMEOUT,
                        "the gateway does not answer: its loop is busy or stands still",
                    )
                self._changed.wait(LOOK_S)
            header, answer = question.answer
        if "error" in header:
            raise _Unanswered(*_refusal(header))
        return header, answer

    def _put(
        self, operation: str, fields: Json, payloads: Sequence[bytes], wait_ms: int
    ) -> _Question:
        with self._changed:
            if self._closed:
                raise _Unanswered(HTTPStatus.SERVICE_UNAVAILABLE, "the gateway is stopping")
            if len(self._open) >= MAX_LOOKUPS:
                raise _Unanswered(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    f"{MAX_LOOKUPS} look-ups wait for the ledger already; try again",
                )
            self._last += 1
            header = {
                "v": PROTOCOL_VERSION,
                "op": operation,
                "id": self._last,
                "timeout_ms": wait_ms,
                **fields,
            }
            question = _Question(self._last, [msgpack.packb(header), *payloads])
            self._open[question.id] = question
            self._new.append(question)
        self._wake()
        return question


class _Left(Exception):
    """The browser has gone."""


def _refusal(header: Json) -> tuple[int, str]:
    """The HTTP status and the words for an error reply of the core."""
    statuses = {
        ErrorCode.INVALID_REQUEST: HTTPStatus.BAD_REQUEST,
        ErrorCode.TIMEOUT: HTTPStatus.GATEWAY_TIMEOUT,
        ErrorCode.OVERLOADED: HTTPStatus.SERVICE_UNAVAILABLE,
        ErrorCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    }
    status = statuses.get(header["error"], HTTPStatus.INTERNAL_SERVER_ERROR)
    words = str(header["message"])
    if status is HTTPStatus.GATEWAY_TIMEOUT:
        words = f"the ledger does not answer: {words}"
    return status, words


def _missing(tx_id: int, stage: Stage) -> Reply:
    words = {
        Stage.UNKNOWN: f"there is no transaction {tx_id} yet",
        Stage.PENDING: f"transaction {tx_id} has its number and is not executed yet",
        Stage.COMPUTED: f"transaction {tx_id} is executed and not on disk yet",
        Stage.COMMITTED: f"transaction {tx_id} is on disk and not readable yet",
    }
    text = words.get(stage, f"transaction {tx_id} failed and is not readable yet")
    return HTTPStatus.NOT_FOUND, {"error": text, "stage": stage.name}


def transaction_json(header: Json, payloads: Sequence[Buffer]) -> Json:
    """The reply to a client's `transaction` that was found, as the page shows it.

    The facts and names of `tallybus tx TX_ID --json`, and `stage` and `time` (UTC) beside them.
    """
    record = np.frombuffer(payloads[0], RECORD_DTYPE)[0]
    entries = np.frombuffer(payloads[1], ENTRY_DTYPE)
    status = int(record["status"])
    return {
        "tx_id": str(header["tx_id"]),
        "timestamp_ns": str(header["timestamp"]),
        "time": utc_text(header["timestamp"]),
        "term": str(header["term"]),
        "stage": (Stage.ERROR if status else Stage.ON_SNAPSHOT).name,
        "kind": _kind_name(int(record["kind"])),
        "status": json_name(status_of(status, int(record["reason"]))),
        "user_ref": str(int(record["user_ref"])),
        **_subject(record, header),
        "entries": [
            {
                "account": str(account),
                "direction": "DEBIT" if amount > 0 else "CREDIT",
                "amount": str(abs(amount)),
            }
            for account, amount in entries.tolist()
        ],
        "duplicate_of": str(header["duplicate_of"]) if header["duplicate_of"] else None,
        "last_snapshot_tx_id": str(header["snapshot"]),
    }


def _subject(record: Any, header: Json) -> Json:
    """What a record is about, by its kind; null where it has no such thing."""
    kind, succeeded = int(record["kind"]), int(record["status"]) == Status.NONE
    account, other = str(int(record["account"])), str(int(record["counterparty"]))
    crc32c = int(record["function"])
    found: Json = dict.fromkeys(
        ("account", "source", "target", "amount", "function", "version", "crc32c")
    )
    found["params"] = []
    if kind in (Kind.DEPOSIT, Kind.WITHDRAWAL):
        found |= {"account": account, "amount": str(int(record["amount"]))}
    elif kind == Kind.TRANSFER:
        found |= {"source": account, "target": other, "amount": str(int(record["amount"]))}
    elif kind == Kind.FUNCTION:
        ran = header["function"] or {}
        found["function"] = ran.get("name")
        found["version"] = str(ran["version"]) if ran else None
        found["crc32c"] = f"{crc32c:08x}" if crc32c else None
        found["params"] = [str(each) for each in header["params"]]
    elif kind == Kind.FUNCTION_REGISTERED:
        found["function"] = header["name"]
        if succeeded:
            found |= {"version": account, "crc32c": f"{crc32c:08x}"}
    return found


def _kind_name(kind: int) -> str:
    return Kind(kind).name if kind in Kind._value2member_map_ else str(kind)
