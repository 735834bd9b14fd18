"""A gateway between clients and a pipeline, both played by hand."""

from collections.abc import Sequence
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from tallybus.common.buffers import as_buffer
from tallybus.common.bus.messages import (
    Assigned,
    Message,
    Prepare,
    Prepared,
    Query,
    Request,
    Results,
    ResultsQuery,
    StageStatus,
)
from tallybus.common.record import FAILURE_DTYPE, RECORD_DTYPE, STATUS_DTYPE, Kind, Level
from tallybus.services.gateway.clients.protocol import Limits
from tallybus.services.gateway.core import GatewayCore

ME = 77
OTHER = 78
MS = 1_000_000
MAX_BATCH = 50
MAX_WAIT_MS = 10_000
BINARY = b"\0asm\x01\0\0\0 a module"
Failure = tuple[int, int] | tuple[int, int, int, int]


class Rig:
    """A gateway, its clients, and the four stages as this test plays them."""

    def __init__(self, *, heard: bool = True, capacity: int = 100) -> None:
        self.core = GatewayCore(
            ME,
            capacity,
            100 * MS,
            Limits(max_batch=MAX_BATCH, max_reads=20, max_accounts=1000),
            MAX_WAIT_MS,
        )
        self.now = 0
        self.term = 1
        self.start = 1
        self.lives = {"sequencer": 11, "transactor": 12, "wal": 13, "snapshotter": 14}
        self.expected = 1
        """What the sequencer expects next of this gateway."""
        if heard:
            self.hear()

    def hear(self, index: int = 0) -> None:
        """Every stage is up and at `index`."""
        self.sequencer(index)
        for stage in ("wal", "transactor", "wal", "snapshotter"):
            self.status(stage, index)

    def status(self, stage: str, index: int, *, term: int | None = None) -> None:
        term = self.term if term is None else term
        message = StageStatus(stage, term, self.lives[stage], index, index + 1, index)
        if stage == "wal":
            message.peer = self.lives["transactor"]
        self.core.on_status(message, self.now)

    def sequencer(self, index: int = 0) -> None:
        message = StageStatus(
            "sequencer",
            self.term,
            self.lives["sequencer"],
            index,
            index + 1,
            0,
            start=self.start,
            gateways={ME: self.expected},
        )
        self.core.on_status(message, self.now)

    def new_term(self, start: int, *, expected: int) -> None:
        """Another sequencer goes on at `start`."""
        self.term += 1
        self.lives["sequencer"] += 100
        self.start = start
        self.expected = expected
        self.sequencer(start - 1)

    # -- clients ---------------------------------------------------------------------------------

    def ask(
        self, op: str, request: int, *payload: bytes, client: bytes = b"c", **fields: Any
    ) -> None:
        header = {"v": 1, "op": op, "id": request} | fields
        self.core.on_client(client, [msgpack.packb(header), *payload], self.now)

    def submit(
        self, request: int, count: int = 1, level: int = 1, *, client: bytes = b"c", **fields: Any
    ) -> None:
        self.ask(
            "submit",
            request,
            deposits(count).tobytes(),
            client=client,
            count=count,
            wait=level,
            **fields,
        )

    def sent(self) -> list[Request]:
        """A turn; what it sends to the sequencer."""
        self.core.tick(self.now)
        requests = []
        while (message := self.core.next_data()) is not None:
            assert isinstance(message, Request)
            requests.append(message)
            self.core.data_sent(self.now)
        if requests:
            self.expected = max(self.expected, requests[-1].request + 1)
        return requests

    def answers(self) -> list[dict[str, Any]]:
        """Headers of the answers since the last call, with "client" and "payload" added."""
        self.core.tick(self.now)
        found = []
        for client, frames in self.core.desk.answers:
            header = msgpack.unpackb(frames[0])
            assert header["v"] == 1
            found.append(header | {"client": client, "payload": [bytes(f) for f in frames[1:]]})
        self.core.desk.answers.clear()
        return found

    def answer(self) -> dict[str, Any]:
        (only,) = self.answers()
        return only

    # -- the pipeline ----------------------------------------------------------------------------

    def assign(self, *rows: Sequence[int], term: int | None = None) -> None:
        """Rows of request, first id, count."""
        batches = [[ME, *row] for row in rows]
        self.core.on_assigned(Assigned(self.term if term is None else term, batches))

    def results(
        self,
        request: int,
        first: int,
        count: int,
        failures: Sequence[Failure] = (),
        *,
        gateway: int = ME,
        term: int | None = None,
    ) -> None:
        rows = failure_rows(failures)
        self.core.on_results(
            Results(
                self.term if term is None else term,
                self.lives["transactor"],
                first,
                count,
                [[gateway, request, first, count, len(rows)]],
                as_buffer(rows),
            )
        )

    def queries(self) -> list[Query]:
        self.core.tick(self.now)
        queries = list(self.core.reads.queries)
        self.core.reads.queries.clear()
        return queries

    def asked_again(self) -> list[tuple[int, int]]:
        asked = [(m.first, m.last) for m in self.core.requests if isinstance(m, ResultsQuery)]
        self.core.requests.clear()
        return asked


class FunctionRig(Rig):
    """A gateway, and what it asks the transactor about functions."""

    def register(
        self, request: int, binary: bytes = BINARY, level: int = Level.COMMITTED, **fields: Any
    ) -> None:
        fields = {"name": "pay", "user_ref": 9, "wait": int(level)} | fields
        self.ask("register", request, binary, **fields)

    def questions(self) -> list[Message]:
        self.core.tick(self.now)
        asked = list(self.core.registrations.questions)
        self.core.registrations.questions.clear()
        return asked

    def prepared(self, reason: str = "") -> None:
        """The transactor answers the only question about a module."""
        (question,) = [each for each in self.questions() if isinstance(each, Prepare)]
        self.core.on_prepared(Prepared(question.query, bool(reason), reason))


def deposits(count: int) -> NDArray[np.void]:
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.DEPOSIT
    records["account"] = 1
    records["amount"] = 1
    return records


def failure_rows(failures: Sequence[Failure]) -> NDArray[np.void]:
    """Rows of offset, status and, of duplicates, the first and how it ended."""
    rows = np.zeros(len(failures), FAILURE_DTYPE)
    for row, failure in zip(rows, failures, strict=True):
        row["offset"], row["status"] = failure[:2]
        if len(failure) == 4:
            row["duplicate_of"], row["original_status"] = failure[2:]
    return rows


def failed(answer: dict[str, Any]) -> list[tuple[int, int]]:
    rows = np.frombuffer(answer["payload"][0], FAILURE_DTYPE)
    assert answer["failures"] == len(rows)
    return [(int(row["offset"]), int(row["status"])) for row in rows]


def told(answer: dict[str, Any]) -> tuple[int, int, int, int]:
    return answer["id"], answer["first"], answer["count"], answer["level"]


def keys(*numbers: int) -> bytes:
    return np.array(numbers, "<u8").tobytes()


def stages(answer: dict[str, Any]) -> list[tuple[int, int, int]]:
    rows = np.frombuffer(answer["payload"][0], STATUS_DTYPE)
    assert answer["count"] == len(rows)
    return [(int(r["stage"]), int(r["status"]), int(r["duplicate_of"])) for r in rows]


def snapshot_rows(*rows: tuple[int, int, int]) -> memoryview:
    array = np.zeros(len(rows), STATUS_DTYPE)
    for place, (stage, status, duplicate) in enumerate(rows):
        array[place] = (stage, status, (0, 0, 0, 0), 0, 0, duplicate)
    return as_buffer(array)


def another_transactor(rig: Rig, start: int, index: int) -> None:
    """The log follows another one, which has executed up to `index`, from `start` on itself."""
    rig.lives["transactor"] += 100
    rig.status("wal", start - 1)
    message = StageStatus(
        "transactor", rig.term, rig.lives["transactor"], index, index + 1, 0, start=start
    )
    rig.core.on_status(message, rig.now)


def running_submit(rig: Rig, level: Level, count: int = 4) -> None:
    rig.submit(1, count, level)
    (request,) = rig.sent()
    rig.sequencer(count)
    rig.assign((request.request, 1, count))
