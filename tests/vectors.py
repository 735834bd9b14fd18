"""Test vectors: every message of the protocol as it stands on the wire, made by the real code.

`docs/vectors/*.hex` is for those who write a client in another language. A test compares the files
with what the client library and the gateway make today; `python -m tests.vectors` writes them anew
after a change that was meant. The text of a file is read by `read`, which knows nothing of the code
that made it.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack
import numpy as np

from tallybus import Deposit, Function, Transfer, WaitLevel, Withdrawal
from tallybus.client.clock import AcceptClock, ReadClock
from tallybus.client.codec import (
    AskGateway,
    Payload,
    ReadBalances,
    ReadIndex,
    ReadServices,
    ReadStatuses,
    Request,
    WaitFor,
    encode,
    encode_ping,
)
from tallybus.client.registration import ListFunctions, RegisterFunction, UnregisterFunction
from tallybus.client.submit import SubmitBatch
from tallybus.client.transaction import ReadTransaction
from tallybus.common.bus import messages as bus
from tallybus.common.protocol import ErrorCode
from tallybus.common.record import (
    ENTRY_DTYPE,
    FAILURE_DTYPE,
    RECORD_DTYPE,
    STATUS_DTYPE,
    Kind,
    Level,
    Stage,
    Status,
)
from tallybus.common.security.keys import Grant, Role
from tallybus.operations import Operation, encode_operations
from tallybus.services.gateway.clients import protocol
from tallybus.services.gateway.clients.quotas import Quotas
from tests.support.folders import DOCS
from tests.unit.services.gateway.rig import MS, FunctionRig

FOLDER: Final = DOCS / "vectors"
WIDTH: Final = 32
"""Bytes in a line of hex."""
MODULE: Final = bytes.fromhex("0061736d01000000")
"""The shortest WebAssembly module: no function could be made of it, but messages may carry it."""
CLIENT: Final = b"c"
KEY: Final = b"k" * 40
TIME: Final = 1_790_000_000_123_456_789


@dataclass(frozen=True)
class Vector:
    """One message. `to`: who takes it. `header` is what is in the first frame."""

    name: str
    to: str
    means: str
    header: Any
    frames: tuple[bytes, ...]


def vector(name: str, to: str, means: str, frames: Sequence[Payload]) -> Vector:
    parts = tuple(bytes(part) for part in frames)
    header = msgpack.unpackb(parts[0], strict_map_key=False)
    return Vector(name, to, means, json.loads(json.dumps(header)), parts)


# -- the text of a file ----------------------------------------------------------------------------


def render(about: str, vectors: Iterable[Vector]) -> str:
    lines = [f"# {line}" for line in textwrap.wrap(about, 97)]
    for each in vectors:
        lines += ["", f"[{each.name}]", f"to: {each.to}"]
        lines += textwrap.wrap(
            f"means: {each.means}", 99, subsequent_indent="  ", break_long_words=False
        )
        lines.append(f"header: {json.dumps(each.header)}")
        for number, frame in enumerate(each.frames):
            lines.append(f"frame {number}: {len(frame)} bytes")
            rows = range(0, len(frame), WIDTH)
            lines += [f"  {frame[at : at + WIDTH].hex(' ')}" for at in rows]
    return "\n".join(lines) + "\n"


def read(text: str) -> list[Vector]:
    """The vectors of a file, as a program in any language would read it."""
    found: list[dict[str, Any]] = []
    field = ""
    for line in text.splitlines():
        if line.startswith("#") or not line:
            continue
        if line.startswith("["):
            found.append({"name": line[1:-1], "frames": [], "lengths": []})
        elif match := re.fullmatch(r"frame (\d+): (\d+) bytes", line):
            assert int(match[1]) == len(found[-1]["frames"]), line
            found[-1]["frames"].append(b"")
            found[-1]["lengths"].append(int(match[2]))
            field = "frame"
        elif line.startswith("  ") and field == "frame":
            found[-1]["frames"][-1] += bytes.fromhex(line)
        elif line.startswith("  "):
            found[-1][field] += " " + line.strip()
        else:
            field, _, value = line.partition(": ")
            found[-1][field] = value
    for each in found:
        assert [len(frame) for frame in each["frames"]] == each.pop("lengths"), each["name"]
        each["header"] = json.loads(each["header"])
        each["frames"] = tuple(each["frames"])
    return [Vector(**each) for each in found]


# -- what clients and the gateway say to one another -----------------------------------------------


@dataclass(frozen=True)
class Exchange:
    """A request of the client library, and the gateway's reply to it."""

    op: str
    request: Request[Any]
    asked: Vector
    answered: Vector


class Scene(FunctionRig):
    """A gateway whose pipeline is played by hand and is at transaction `at`, and one request."""

    def __init__(
        self, request: Request[Any], request_id: int, at: int = 0, timeout_ms: int = 30_000
    ) -> None:
        super().__init__(heard=False)
        self.hear(at)
        self.request = request
        self.frames = [bytes(part) for part in encode(request, request_id, timeout_ms, False)]

    def take(self) -> None:
        self.core.on_client(CLIENT, self.frames, self.now)

    def reply(self) -> list[Any]:
        """The frames of the only answer."""
        self.core.tick(self.now)
        ((client, frames),) = self.core.desk.answers
        assert client == CLIENT
        self.core.desk.answers.clear()
        return frames


def submit(level: WaitLevel, *operations: Operation) -> SubmitBatch:
    encoded = encode_operations(operations)
    records, params = encoded.records.tobytes(), bytes(encoded.params)
    return SubmitBatch(records, len(operations), level, encoded.names, params)


def failures(*rows: tuple[int, int, int, int, int]) -> bytes:
    """Rows of offset, status, original status, reason, duplicate of."""
    table = np.zeros(len(rows), FAILURE_DTYPE)
    for row, values in zip(table, rows, strict=True):
        for name, value in zip(
            ("offset", "status", "original_status", "reason", "duplicate_of"), values, strict=True
        ):
            row[name] = value
    return table.tobytes()


def submitted(
    op: str, request: SubmitBatch, request_id: int, first: int, rows: bytes, asks: str, answers: str
) -> Exchange:
    scene = Scene(request, request_id, first - 1)
    scene.take()
    (message,) = scene.sent()
    last = first + request.count - 1
    batch = [scene_id(scene), message.request, first, request.count]
    if request.level is Level.NONE:
        scene.core.on_assigned(bus.Assigned(1, [batch]))
    else:
        told = [[*batch, len(rows) // FAILURE_DTYPE.itemsize]]
        life = scene.lives["transactor"]
        scene.core.on_results(bus.Results(1, life, first, request.count, told, rows))
        scene.status("wal", last)
        scene.status("snapshotter", last)
    return exchange(op, scene, asks, answers)


def scene_id(scene: Scene) -> int:
    return scene.core.incarnation


def exchange(op: str, scene: Scene, asks: str, answers: str) -> Exchange:
    return Exchange(
        op,
        scene.request,
        vector(f"{op}: request", "gateway", asks, scene.frames),
        vector(f"{op}: reply", "client", answers, scene.reply()),
    )


def submits() -> list[Exchange]:
    none = failures()
    return [
        submitted(
            "submit a transfer",
            submit(WaitLevel.COMMITTED, Transfer(1, 2, 300, 42)),
            7,
            1001,
            none,
            "A transfer of 300 from account 1 to account 2 with the user_ref 42, answered when it "
            "is on disk. The request has the id 7 and 30 seconds.",
            "It is transaction 1001, on disk, and succeeded.",
        ),
        submitted(
            "submit without waiting",
            submit(WaitLevel.NONE, Deposit(2**64 - 1, 2**63 - 1, 2**64 - 1)),
            2**64 - 1,
            2**63,
            none,
            "The largest numbers: a deposit of 2^63-1 to account 2^64-1 with the user_ref 2^64-1, "
            "answered when it has its id. The request's id is 2^64-1.",
            "It is transaction 2^63; how it ends is not known yet.",
        ),
        submitted(
            "submit operations of each kind",
            submit(
                WaitLevel.SNAPSHOT,
                Deposit(1, 100, 50),
                Withdrawal(1, 400, 51),
                Transfer(1, 2, 30, 52),
                Function("fee", (1, 2, -5), 53),
                Function("tax", (), 50),
                Function("fee"),
            ),
            8,
            2000,
            failures(
                (1, Status.INSUFFICIENT_FUNDS, 0, 0, 0),
                (3, 130, 0, 0, 0),
                (4, Status.DUPLICATE, Status.NONE, 0, 2000),
                (5, Status.INVALID_OPERATION, 0, 2, 0),
            ),
            "A deposit, a withdrawal, a transfer, and three calls of two functions with their "
            "parameters, answered when reads of balances see them.",
            "Transactions 2000 to 2005. The withdrawal lacked funds; the first call ended with the "
            "function's own status 130; the second one's user_ref is the deposit's, which is "
            "transaction 2000 and had succeeded; of the third one's name no function is "
            "registered (reason 2).",
        ),
    ]


def registrations() -> list[Exchange]:
    scene = Scene(RegisterFunction("fee", MODULE, True, 99), 9, 1005)
    scene.take()
    scene.prepared()
    (message,) = scene.sent()
    scene.results(message.request, 1006, 1)
    scene.status("wal", 1006)
    register = exchange(
        "register",
        scene,
        "Register a module of 8 bytes as the function fee, in place of one of that name.",
        "It is transaction 1006. Which version it made is read from that transaction.",
    )
    scene = Scene(UnregisterFunction("fee", 100), 10, 1006)
    scene.take()
    (message,) = scene.sent()
    scene.results(message.request, 1007, 1, [(0, Status.INVALID_OPERATION)])
    scene.status("wal", 1007)
    unregister = exchange(
        "unregister",
        scene,
        "End the function fee.",
        "Transaction 1007: there was no such function.",
    )
    scene = Scene(ListFunctions(), 11)
    scene.take()
    (question,) = scene.questions()
    assert isinstance(question, bus.FunctionsQuery)
    row = {
        "name": "fee",
        "version": 2,
        "crc32c": 0xE2A1D3F0,
        "registered": 1006,
        "calls": 2**40,
        "failures": {1: 5, 130: 7},
        "fuel": 2**42,
        "fuel_limit": 1_000_000,
        "mean_ns": 120.5,
    }
    scene.core.on_functions(bus.FunctionsAnswer(question.query, [row]))
    functions = exchange(
        "functions",
        scene,
        "Which functions are registered?",
        "One: 2^40 calls, of which 5 ended with status 1 and 7 with 130. The keys of `failures` "
        "are integers (JSON has them as texts).",
    )
    return [register, unregister, functions]


def transactions() -> list[Exchange]:
    found = []
    record = np.zeros(1, RECORD_DTYPE)
    entries = np.zeros(2, ENTRY_DTYPE)
    entries[0], entries[1] = (1, -300), (2, 300)
    for field, value in (("kind", 3), ("user_ref", 42), ("account", 1), ("counterparty", 2)):
        record[field] = value
    record["amount"], record["entry_count"] = 300, 2
    plain = {"timestamp": TIME, "term": 3, "params": 0, "duplicate_of": 0, "name": ""}
    call = np.zeros(1, RECORD_DTYPE)
    for field, value in (("kind", 4), ("status", 5), ("reason", 1), ("function", 0xE2A1D3F0)):
        call[field] = value
    call["account"] = 1006
    values = (
        (
            "transaction: a transfer",
            1001,
            (
                "The transfer of 300 that was submitted above, with its two entries: account 1 "
                "lost 300, account 2 got them."
            ),
            plain,
            record.tobytes() + entries.tobytes(),
        ),
        (
            "transaction: a call that trapped",
            1010,
            (
                "A call of version 2 of fee with the parameters 1, 2 and -5, which trapped: status "
                "5, reason 1, no entries. The record has the CRC-32C of the binary, and as its "
                "account the transaction that registered it."
            ),
            plain | {"params": 3, "function": "fee", "version": 2},
            call.tobytes() + np.array([1, 2, -5], "<i8").tobytes(),
        ),
        (
            "transaction: not there",
            5000,
            "The read side has come to transaction 2005, and there is no transaction 5000.",
            {},
            b"",
        ),
    )
    for number, (name, tx_id, means, details, value) in enumerate(values):
        scene = Scene(ReadTransaction(tx_id), 20 + number, 2005)
        scene.take()
        (query,) = scene.queries()
        scene.core.on_answer(bus.Answer(query.query, 2005, details=details, values=value))
        found.append(exchange(name, scene, f"Read transaction {tx_id}.", means))
    return found


def reads() -> list[Exchange]:
    scene = Scene(ReadBalances(np.array([1, 2, 999], "<u8"), 1001), 12, 1001)
    scene.take()
    (query,) = scene.queries()
    values = np.array([-300, 300, 0], "<i8").tobytes()
    scene.core.on_answer(bus.Answer(query.query, 1003, values=values))
    balances = exchange(
        "balances",
        scene,
        "The balances of accounts 1, 2 and 999, not before transaction 1001 is in them.",
        "-300, 300 and 0, all as of transaction 1003.",
    )
    scene = Scene(ReadStatuses(np.array([1, 1005, 1006, 1007], "<u8")), 13, 1005)
    scene.sequencer(1006)
    scene.take()
    (query,) = scene.queries()
    rows = np.zeros(2, STATUS_DTYPE)
    rows["stage"] = Stage.ON_SNAPSHOT, Stage.ERROR
    rows["status"][1] = Status.DUPLICATE
    rows["duplicate_of"][1] = 1001
    scene.core.on_answer(bus.Answer(query.query, 1005, values=rows.tobytes()))
    status = exchange(
        "status",
        scene,
        "How far have the transactions 1, 1005, 1006 and 1007 come?",
        "1 succeeded and is readable; 1005 is a duplicate of 1001; 1006 has its id and is not "
        "executed yet; 1007 does not exist.",
    )
    scene = Scene(ReadIndex(), 14, 1005)
    scene.sequencer(1006)
    scene.take()
    index = exchange(
        "index",
        scene,
        "How far has each stage come?",
        "1006 is sequenced, the others have come to 1005, in term 1.",
    )
    scene = Scene(WaitFor(1005, WaitLevel.SNAPSHOT), 15, 1005)
    scene.take()
    wait = exchange(
        "wait", scene, "Until transaction 1005 is readable.", "It is (level 3, SNAPSHOT)."
    )
    scene = Scene(ReadServices(), 16, 1005)
    scene.core.on_presence(bus.Presence("wal", scene.lives["wal"], 4242, TIME, "2", "spin"))
    scene.take()
    services = exchange(
        "services",
        scene,
        "What was last heard of each service?",
        "Five services; only the log stage (wal) has told its process yet.",
    )
    return [balances, status, index, wait, services, *clocks()]


def clocks() -> list[Exchange]:
    found = []
    for request_id, request, asks, answer, answers in (
        (
            *(20, ReadClock(), "The ledger's time."),
            bus.ClockAnswer(1, TIME, TIME + 3_600 * 10**9, True),
            "The wall clock is an hour ahead, which is a jump, and not followed.",
        ),
        (
            *(21, AcceptClock(), "The wall clock is right."),
            bus.ClockAnswer(1, TIME + 3_600 * 10**9, TIME + 3_600 * 10**9),
            "The ledger's time follows it.",
        ),
    ):
        scene = Scene(request, request_id, 1005)
        scene.take()
        scene.core.on_clock(answer)
        found.append(exchange(request.op, scene, asks, answers))
    return found


def pings() -> list[Exchange]:
    scene = Scene(AskGateway(), 17)
    scene.core.access.grants = {KEY: Grant("till", KEY, Role.SUBMIT, "", max_rate=5_000)}
    scene.core.on_client(CLIENT, scene.frames, scene.now, KEY)
    alone = exchange(
        "ping",
        scene,
        "Who is there?",
        "A gateway of revision 1 of the protocol. This client's key has the role submit, and may "
        "ask for 5,000 operations and reads a second; 0 is no limit of its own.",
    )
    scene = Scene(AskGateway(), 18)
    scene.frames = [bytes(part) for part in encode_ping(18, [3, 2**64 - 1])]
    scene.take()
    return [
        alone,
        exchange(
            "ping for requests",
            scene,
            "Does the gateway hold the requests 3 and 2^64-1 of this client?",
            "It holds neither: each was lost, or its answer has come before this one.",
        ),
    ]


def exchanges() -> list[Exchange]:
    return [*submits(), *registrations(), *transactions(), *reads(), *pings()]


# -- errors ----------------------------------------------------------------------------------------


def errors() -> list[Vector]:
    """Each error of the gateway, with the details that it may have."""
    found: list[Vector] = []

    def add(code: str, case: str, means: str, frames: Sequence[Any]) -> None:
        assert msgpack.unpackb(frames[0])["error"] == code
        found.append(vector(f"{code}: {case}", "client", means, frames))

    def refused(code: str, case: str, means: str, *frames: bytes) -> None:
        scene = Scene(ReadIndex(), 1)
        scene.core.on_client(CLIENT, frames, 0)
        add(code, case, means, scene.reply())

    def header(**fields: Any) -> bytes:
        return bytes(msgpack.packb({"v": 1, "id": 5, **fields}))

    deposit = bytes(encode_operations([Deposit(1, 5)]).records.tobytes())
    odd = bytearray(deposit)
    odd[24] = 77
    code = ErrorCode.INVALID_REQUEST
    refused(code, "unreadable", "The header is not msgpack; so the id is nil.", b"\xc1")
    refused(
        code,
        "no level",
        "A submit without `wait`.",
        header(op="submit", count=1),
        deposit,
    )
    refused(
        code,
        "an unknown field",
        "A submit with the field `wiat`.",
        header(op="submit", count=1, wiat=2),
        deposit,
    )
    refused(
        code,
        "a record",
        "The second record is a deposit with the counterparty 77: `index` counts from 0.",
        header(op="submit", count=2, wait=2),
        deposit + bytes(odd),
    )
    refused(
        code,
        "too much",
        "51 operations where a request may have 50.",
        header(op="submit", count=51, wait=2),
        deposit * 51,
    )
    refused(
        code,
        "an account",
        "The balance of an account that the ledger does not have.",
        header(op="balances"),
        np.array([1000], "<u8").tobytes(),
    )
    refused(
        ErrorCode.UNSUPPORTED_VERSION,
        "true",
        "`v` was true, which is not the integer 1.",
        header(op="index", v=True),
    )
    add(*_invalid_function())
    for case in (_forbidden_role(), _forbidden_revoked(), _over_rate(), _over_in_flight()):
        add(*case)
    add(*_too_much_in_one())
    add(*_pipeline_full())
    add(
        ErrorCode.UNAVAILABLE,
        "no stage",
        "A stage that is needed is not up. Kept for gateways that do not wait for it.",
        protocol.error_reply(5, ErrorCode.UNAVAILABLE, "the sequencer is not up"),
    )
    for timeout in (_timeout_of_a_submit(), _timeout_of_a_read()):
        add(*timeout)
    for lost in (_lost(), _outcome_unknown()):
        add(*lost)
    add(*_internal())
    return found


Error = tuple[str, str, str, list[Any]]


def _limited(limits: dict[str, int], case: str, means: str, code: str) -> Error:
    scene = Scene(submit(WaitLevel.COMMITTED, *[Deposit(1, 5)] * 3), 5)
    scene.core.quotas = Quotas(**limits)
    scene.take()
    if not scene.core.desk.answers:
        scene.sent()
        scene.frames = [bytes(part) for part in encode(scene.request, 6, 30_000, False)]
        scene.take()
    return code, case, means, scene.reply()


def _over_rate() -> Error:
    return _limited(
        {"rate": 1},
        "rate",
        "The client may ask for one operation a second and has asked for three: again after "
        "`retry_ms`.",
        ErrorCode.OVERLOADED,
    )


def _over_in_flight() -> Error:
    return _limited(
        {"in_flight": 5},
        "in flight",
        "Three operations of this client are under way, three more would be more than 5.",
        ErrorCode.OVERLOADED,
    )


def _too_much_in_one() -> Error:
    return _limited(
        {"in_flight": 2},
        "never taken",
        "One request with three operations of a client that may have 2 under way: to try it again "
        "is of no use.",
        ErrorCode.INVALID_REQUEST,
    )


def _pipeline_full() -> Error:
    scene = Scene(submit(WaitLevel.COMMITTED, Deposit(1, 5)), 5)
    for number in range(2):
        scene.submit(100 + number, 50)
    scene.sent()
    scene.take()
    means = "Too much is on its way for everybody; no `retry_ms`."
    return ErrorCode.OVERLOADED, "full", means, scene.reply()


def _invalid_function() -> Error:
    scene = Scene(RegisterFunction("fee", MODULE, False, 99), 5)
    scene.take()
    scene.prepared("it exports no function execute")
    means = "The module cannot be a function."
    return ErrorCode.INVALID_FUNCTION, "a module", means, scene.reply()


def _forbidden_role() -> Error:
    scene = Scene(submit(WaitLevel.COMMITTED, Deposit(1, 5)), 5)
    scene.core.access.grants = {KEY: Grant("reports", KEY, Role.READ, "")}
    scene.core.on_client(CLIENT, scene.frames, 0, KEY)
    return ErrorCode.FORBIDDEN, "role", "The key may only read.", scene.reply()


def _forbidden_revoked() -> Error:
    scene = Scene(ReadIndex(), 5)
    revoked = Grant("reports", KEY, Role.READ, "", "2026-01-01T00:00:00Z")
    scene.core.access.grants = {KEY: revoked}
    scene.core.on_client(CLIENT, scene.frames, 0, KEY)
    return ErrorCode.FORBIDDEN, "revoked", "The key was revoked.", scene.reply()


def _timeout_of_a_submit() -> Error:
    scene = Scene(submit(WaitLevel.COMMITTED, Deposit(1, 5)), 5, 1000, 250)
    scene.take()
    (message,) = scene.sent()
    scene.results(message.request, 1001, 1)
    scene.status("transactor", 1001)
    scene.now = 251 * MS
    means = "It is executed as transaction 1001, and was not on disk in time. It may still be."
    return ErrorCode.TIMEOUT, "a submit", means, scene.reply()


def _timeout_of_a_read() -> Error:
    scene = Scene(ReadBalances(np.array([1], "<u8"), 2**63), 5, 0, 0)
    scene.take()
    means = "A read that was to wait for a transaction, with a `timeout_ms` of 0."
    return ErrorCode.TIMEOUT, "a read", means, scene.reply()


def _lost() -> Error:
    scene = Scene(submit(WaitLevel.COMMITTED, Deposit(1, 5)), 5, 1000)
    scene.take()
    (message,) = scene.sent()
    scene.results(message.request, 1001, 1)
    scene.new_term(1001, expected=message.request + 1)
    means = "It had the id 1001, which was lost before it was on disk: it had no effect."
    return ErrorCode.LOST, "a submit", means, scene.reply()


def _outcome_unknown() -> Error:
    scene = Scene(submit(WaitLevel.COMMITTED, Deposit(1, 5)), 5, 1000)
    scene.take()
    (message,) = scene.sent()
    scene.assign((message.request, 1001, 1))
    scene.core.on_results_gone(bus.ResultsGone(1002))
    means = "The gateway has missed how transaction 1001 ended; its status can be asked for."
    return ErrorCode.OUTCOME_UNKNOWN, "a submit", means, scene.reply()


def _internal() -> Error:
    scene = Scene(ReadTransaction(4), 5, 1000)
    scene.take()
    (query,) = scene.queries()
    where = {"tx_id": 4, "path": "/var/lib/tallybus/wal_000001.bin"}
    error = "/var/lib/tallybus/wal_000001.bin, offset 4096: the block's checksum is wrong"
    scene.core.on_answer(bus.Answer(query.query, 1000, error=error, details=where))
    means = "The log cannot be read at a place, which an operator has to look at."
    return ErrorCode.INTERNAL, "damage", means, scene.reply()


# -- what stages say to one another ----------------------------------------------------------------


def messages() -> list[tuple[str, bus.Message, str]]:
    """From whom to whom, the message, and what it means."""
    encoded = encode_operations([Transfer(1, 2, 300, 42), Function("fee", (1, 2), 43)])
    records, params = encoded.records.tobytes(), bytes(encoded.params)
    registration = np.zeros(1, RECORD_DTYPE)
    registration["kind"] = Kind.FUNCTION_REGISTERED
    registration["function"], registration["user_ref"] = 0x12345678, 99
    done = encoded.records.copy()
    done["entry_count"][0] = 2
    done["status"][1], done["reason"][1], done["function"][1] = 5, 2, 0
    done["amount"][1] = 2
    extras = np.array([1, 2], "<i8").tobytes()
    entries = np.zeros(2, ENTRY_DTYPE)
    entries[0], entries[1] = (1, -300), (2, 300)
    failed = failures((1, 5, 0, 2, 0))
    row = {"name": "fee", "version": 2, "calls": 7, "failures": {1: 5}}
    samples = bytes(msgpack.packb([["tallybus_index", {}, 1001]]))
    return [
        (
            "gateway to sequencer",
            bus.Request(7, 31, 2, records, params, ["fee"], 30, term=3),
            "Request 31 of gateway 7: a transfer and a call.",
        ),
        (
            "gateway to sequencer",
            bus.Request(
                7, 32, 1, registration.tobytes(), names=["fee"], registers=True, binary=MODULE
            ),
            "Request 32: a registration, with its module as last frame.",
        ),
        (
            "sequencer to transactor",
            bus.Sequenced(3, 11, 1001, 2, TIME, 7, 31, records, params, ["fee"]),
            "The two operations are transactions 1001 and 1002.",
        ),
        (
            "transactor to wal, wal to snapshotter",
            bus.Executed(
                3,
                12,
                1001,
                2,
                TIME,
                7,
                31,
                done.tobytes(),
                extras + entries.tobytes(),
                params=2,
                entries=2,
            ),
            (
                "The transfer succeeded with two entries, the call's function was not there; it "
                "keeps two of its parameters."
            ),
        ),
        (
            "sequencer to all",
            bus.StageStatus(
                "sequencer", 3, 11, 1002, 1003, 1000, start=900, retained=2, gateways={7: 32}
            ),
            "The sequencer has given ids up to 1002, and expects request 32 of gateway 7.",
        ),
        (
            "wal to all",
            bus.StageStatus("wal", 3, 13, 1002, 1003, 1002, gap=True, full=True, peer=12),
            "The log has 1002 on disk, misses something, and takes nothing for now.",
        ),
        (
            "wal to all",
            bus.Presence("wal", 13, 4242, TIME, "2", "spin"),
            "The log stage is process 4242, bound to processor 2, and waits spinning.",
        ),
        (
            "wal to gateways with a page",
            bus.StageMetrics("wal", 13, TIME, ["it has not recovered"], samples),
            "The numbers of the log stage, and why it is not ready.",
        ),
        (
            "sequencer to gateways",
            bus.Assigned(3, [[7, 31, 1001, 2], [7, 30, 0, 1]]),
            "Request 31 got the ids 1001 and 1002; request 30 was passed over.",
        ),
        (
            "transactor to gateways",
            bus.Results(3, 12, 1001, 2, [[7, 31, 1001, 2, 1]], failed),
            "Of request 31 the second operation failed: status 5, reason 2.",
        ),
        ("gateway to transactor", bus.ResultsQuery(1001, 1002), "Tell the outcomes again."),
        ("transactor to gateway", bus.ResultsGone(1500), "Those before 1500 are not held here."),
        (
            "gateway to transactor",
            bus.Prepare(1, "fee", MODULE),
            "Could this module be registered as fee?",
        ),
        ("transactor to gateway", bus.Prepared(1), "It could."),
        (
            "transactor to gateway",
            bus.Prepared(2, True, "it exports no function execute"),
            "It could not.",
        ),
        ("gateway to transactor", bus.FunctionsQuery(3), "Which functions are live?"),
        (
            "transactor to gateway",
            bus.FunctionsAnswer(3, [row]),
            "One: some of its fields (all are in the reply to a client).",
        ),
        ("gateway to sequencer", bus.ClockQuery(4, True), "The wall clock is right."),
        (
            "sequencer to gateway",
            bus.ClockAnswer(4, TIME, TIME + 5, False),
            "The ledger's time follows it.",
        ),
        (
            "transactor to wal",
            bus.Hello("transactor", 12, 3, True),
            "A transactor has started, and asks the log to keep the term 3.",
        ),
        (
            "wal to transactor",
            bus.Welcome("wal", 13, 12, 3, 1003, 1002, 2**63, {7: 32}),
            "It may go on with transaction 1003.",
        ),
        (
            "wal to transactor",
            bus.Refused("wal", 12, 4, "a newer transactor is here"),
            "It is fenced off by term 4.",
        ),
        (
            "gateway to snapshotter",
            bus.Query(5, "balances", 1001, np.array([1, 2], "<u8").tobytes()),
            "The balances of accounts 1 and 2, not before 1001.",
        ),
        (
            "snapshotter to gateway",
            bus.Answer(5, 1003, values=np.array([-300, 300], "<i8").tobytes()),
            "-300 and 300, as of 1003.",
        ),
        (
            "snapshotter to gateway",
            bus.Answer(
                6,
                1003,
                "account 2000 is out of range: accounts go from 0 to 999",
                details={"account": 2000, "max_accounts": 1000},
            ),
            "A query that cannot be answered.",
        ),
    ]


def bus_vectors() -> list[Vector]:
    found: list[Vector] = []
    for way, message, means in messages():
        number = 1 + sum(each.name.startswith(f"{message.kind} ") for each in found)
        name = f"{message.kind} {number}"
        found.append(vector(name, way.split(" to ", 1)[1], f"({way}) {means}", bus.encode(message)))
    return found


# -- the files -------------------------------------------------------------------------------------


def files() -> dict[str, str]:
    """The text of each file by its name."""
    pairs = [each for one in exchanges() for each in (one.asked, one.answered)]
    return {
        "requests.hex": render(
            "Requests of clients and the gateway's replies to them. Every frame of a message is "
            "given in hex; `header` is the first one, msgpack, as JSON. See protocol.md.",
            pairs,
        ),
        "errors.hex": render(
            "Error replies of the gateway. Messages are text for people and may change; codes and "
            "details do not.",
            errors(),
        ),
        "bus.hex": render(
            "What stages say to one another, see bus.md. On `index` a topic frame comes before it.",
            bus_vectors(),
        ),
    }


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
