"""Messages between the stages: a small msgpack header frame, then raw payload frames.

Encoding and decoding only; nothing here touches a socket. Payload frames are never decoded element
by element: whoever needs numbers views them with `numpy.frombuffer`. Decoding checks every field
and every length against its frame, so a message that decodes is safe to use; one that does not
raises `FrameError` and harms nobody. `docs/bus.md` describes every message.

The classes of messages come first, then how they become frames and back; `frames` knows the header.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, Final, get_args

import msgpack

from tallybus.common.batch import Batch, ExtraCounts
from tallybus.common.buffers import EMPTY, Buffer, size
from tallybus.common.bus.frames import FIELD_CHECKS, shown, unpack_header
from tallybus.common.bus.frames import FrameError as FrameError
from tallybus.common.protocol import PROTOCOL_VERSION
from tallybus.common.record import ENTRY_SIZE, FAILURE_SIZE, PARAMS_SIZE, RECORD_SIZE

TOPIC_STATUS: Final = b"s"
TOPIC_ACKNOWLEDGE: Final = b"sa"
TOPIC_EVENT: Final = b"e"
TOPIC_METRICS: Final = b"m"
"""First frame of a broadcast. Gateways subscribe to `s` and `e`, and to `m` where they have a page.
A predecessor subscribes to `sa` alone, the statuses that acknowledge. So a status that only clients
wait for does not wake it."""


@dataclass(slots=True)
class Request:
    """Gateway → sequencer: operations to be put in order. Its link id is `request`.

    `oldest` is the lowest request number that the gateway still keeps: lower ones never come again.
    `told` is the first id that a client was told already, 0 for none: it gets exactly this one, or
    it is lost. `tell` asks for the ids to be announced at once: a client waits for nothing more.
    `term` is the one that the gateway knew when it sent this: what it has told since depends on it.
    With `registers` its one record registers the function that `names` holds, and `binary` is the
    module, or empty to unregister it. `counts`: how many of the records belong to each submit that
    was joined in it, where calls of functions are among them; empty: all are of one submit.
    """

    kind: ClassVar[str] = "request"
    payloads: ClassVar[tuple[str, ...]] = ("records", "params", "binary")
    optional: ClassVar[int] = 1
    gateway: int
    request: int
    count: int
    records: Buffer
    params: Buffer = EMPTY
    names: list[str] = field(default_factory=list)
    oldest: int = 0
    told: int = 0
    tell: bool = False
    term: int = 0
    registers: bool = False
    binary: Buffer = EMPTY
    counts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Sequenced:
    """Sequencer → transactor: operations with their ids, time and term, otherwise as requested."""

    kind: ClassVar[str] = "sequenced"
    payloads: ClassVar[tuple[str, ...]] = ("records", "params", "binary")
    optional: ClassVar[int] = 1
    term: int
    incarnation: int
    first: int
    count: int
    timestamp: int
    gateway: int
    request: int
    records: Buffer
    params: Buffer = EMPTY
    names: list[str] = field(default_factory=list)
    registers: bool = False
    binary: Buffer = EMPTY
    counts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Executed:
    """Transactor → log → snapshotter: records with their outcome, and what stands behind them.

    `extras` holds `links` u64, then `params` i64 words, then `entries` of 16 bytes, as in a log
    block. `binary` is what a registration that succeeded has the log stage write to a file before
    the record; the snapshotter does not get it.
    """

    kind: ClassVar[str] = "executed"
    payloads: ClassVar[tuple[str, ...]] = ("records", "extras", "binary")
    optional: ClassVar[int] = 1
    term: int
    incarnation: int
    first: int
    count: int
    timestamp: int
    gateway: int
    request: int
    records: Buffer
    extras: Buffer = EMPTY
    links: int = 0
    params: int = 0
    entries: int = 0
    binary: Buffer = EMPTY

    @classmethod
    def of(cls, batch: Batch, incarnation: int, binary: Buffer = EMPTY) -> Executed:
        """The message in which the stage of this incarnation hands a batch on."""
        records, extras = batch.to_frames()
        return cls(
            term=batch.term,
            incarnation=incarnation,
            first=batch.first_id,
            count=batch.count,
            timestamp=batch.timestamp_ns,
            gateway=batch.gateway,
            request=batch.request,
            records=records,
            extras=extras,
            links=len(batch.links),
            params=len(batch.params),
            entries=len(batch.entries),
            binary=binary,
        )

    def batch(self) -> Batch:
        """What it carries, as views of its frames; `Batch.check` has not been called."""
        return Batch.from_frames(
            self.first,
            self.records,
            self.extras,
            ExtraCounts(self.links, self.params, self.entries),
            term=self.term,
            timestamp_ns=self.timestamp,
            gateway=self.gateway,
            request=self.request,
        )


@dataclass(slots=True)
class StageStatus:
    """Every stage's broadcast: acknowledgement, heartbeat and rewind request in one.

    `index` is the last transaction that has this stage's guarantee, `next` the id it expects next
    from its predecessor, `durable` the highest id it knows to be on disk. `gap` asks for a rewind
    at once; `full` says that nothing is taken for now. `peer` is the predecessor's incarnation that
    it takes data from (0: none yet). `start` is the first id of the sequencer's term, and the first
    one that this transactor has executed. `gateways` maps a gateway's incarnation to the request
    expected next. `sharers`: how many gateways share the transactor's time now.
    """

    kind: ClassVar[str] = "status"
    payloads: ClassVar[tuple[str, ...]] = ()
    stage: str
    term: int
    incarnation: int
    index: int
    next: int
    durable: int
    gap: bool = False
    full: bool = False
    peer: int = 0
    start: int = 0
    retained: int = 0
    gateways: dict[int, int] = field(default_factory=dict)
    sharers: int = 0


@dataclass(slots=True)
class Presence:
    """Every stage's broadcast about its process, once a second; `started` is Unix time in ns."""

    kind: ClassVar[str] = "presence"
    payloads: ClassVar[tuple[str, ...]] = ()
    stage: str
    incarnation: int
    pid: int
    started: int
    cpu: str
    wait: str


@dataclass(slots=True)
class StageMetrics:
    """Every stage's broadcast of its numbers, once a second, where a page is to show them.

    `incarnation` is 0 while the stage has none yet, `time` Unix time in ns, `reasons` why it is not
    ready, in words. `samples` is for `common.metrics.packed`, and not looked into here.
    """

    kind: ClassVar[str] = "metrics"
    payloads: ClassVar[tuple[str, ...]] = ("samples",)
    stage: str
    incarnation: int
    time: int
    reasons: list[str] = field(default_factory=list)
    samples: Buffer = EMPTY


@dataclass(slots=True)
class Assigned:
    """Sequencer → gateways: rows of gateway, request, first id (0: lost), count."""

    kind: ClassVar[str] = "assigned"
    payloads: ClassVar[tuple[str, ...]] = ()
    term: int
    batches: list[list[int]]


@dataclass(slots=True)
class Results:
    """Transactor → gateways: outcomes of the contiguous range `first` … `first + count - 1`.

    `batches` has rows of gateway, request, first id, count, number of failures; `failures` holds
    the FAILURE_DTYPE rows of all batches in order, each with offsets from its own batch's first id.
    `work`: with the last part of a batch that calls functions, the nanoseconds that the calls of
    each of its submits took.
    """

    kind: ClassVar[str] = "results"
    payloads: ClassVar[tuple[str, ...]] = ("failures",)
    term: int
    incarnation: int
    first: int
    count: int
    batches: list[list[int]]
    failures: Buffer = EMPTY
    work: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ResultsQuery:
    """Gateway → transactor: broadcast results were missed from `first` to `last`; send them
    again."""

    kind: ClassVar[str] = "results_query"
    payloads: ClassVar[tuple[str, ...]] = ()
    first: int
    last: int


@dataclass(slots=True)
class ResultsGone:
    """Transactor → gateway: results before `oldest` are no longer held; the log has them."""

    kind: ClassVar[str] = "results_gone"
    payloads: ClassVar[tuple[str, ...]] = ()
    oldest: int


@dataclass(slots=True)
class Prepare:
    """Gateway → transactor: could this module be registered under this name? It is validated and
    compiled before anything is sequenced.

    The question is repeated until it is answered. `client` tells clients of a gateway apart: they
    are served in turn.
    """

    kind: ClassVar[str] = "prepare"
    payloads: ClassVar[tuple[str, ...]] = ("binary",)
    query: int
    name: str
    binary: Buffer = EMPTY
    client: str = ""


@dataclass(slots=True)
class Prepared:
    """Transactor → gateway: the module of this query can be registered, or why it cannot."""

    kind: ClassVar[str] = "prepared"
    payloads: ClassVar[tuple[str, ...]] = ()
    query: int
    refused: bool = False
    reason: str = ""
    busy: bool = False
    """It was not even looked at: there is no room for it now."""


@dataclass(slots=True)
class FunctionsQuery:
    """Gateway → transactor: which functions are live, and what have they done?"""

    kind: ClassVar[str] = "functions_query"
    payloads: ClassVar[tuple[str, ...]] = ()
    query: int


@dataclass(slots=True)
class FunctionsAnswer:
    """Transactor → gateway: a row per live function, with the keys of `docs/protocol.md`."""

    kind: ClassVar[str] = "functions_answer"
    payloads: ClassVar[tuple[str, ...]] = ()
    query: int
    functions: list[dict[str, Any]]
    totals: dict[str, int | str] = field(default_factory=dict)
    """What all of them take together, and may take."""


@dataclass(slots=True)
class ClockQuery:
    """Gateway → sequencer: what is the ledger's time? With `accept` it is told first that the wall
    clock is right.

    The question is repeated until it is answered.
    """

    kind: ClassVar[str] = "clock_query"
    payloads: ClassVar[tuple[str, ...]] = ()
    query: int
    accept: bool = False


@dataclass(slots=True)
class ClockAnswer:
    """Sequencer → gateway: the ledger's time and the wall clock, Unix time in ns. `held`: the wall
    clock has jumped ahead, and is not followed until it is accepted."""

    kind: ClassVar[str] = "clock_answer"
    payloads: ClassVar[tuple[str, ...]] = ()
    query: int
    time: int
    wall: int
    held: bool = False


@dataclass(slots=True)
class Hello:
    """A starting stage → its successor: fence older incarnations off and tell where to go on.

    `term` is the one that the greeting stage knows, 0 at its start. A sequencer with 0 asks for a
    new term. A transactor that `asks` names the term that it is about to grant, one more than it
    knows, and the log keeps it before it answers.
    """

    kind: ClassVar[str] = "hello"
    payloads: ClassVar[tuple[str, ...]] = ()
    stage: str
    incarnation: int
    term: int = 0
    asks: bool = False


@dataclass(slots=True)
class Welcome:
    """Answer to `Hello`: go on at `next` in `term`; `gateways` maps incarnations to next requests.

    To a sequencer, `stamp` is the last one in the ledger, 0 for none, and `elapsed` the nanoseconds
    since the transactor was given it; 0 where it was read from the log.
    """

    kind: ClassVar[str] = "welcome"
    payloads: ClassVar[tuple[str, ...]] = ()
    stage: str
    incarnation: int
    peer: int
    term: int
    next: int
    durable: int
    cluster: int
    gateways: dict[int, int] = field(default_factory=dict)
    stamp: int = 0
    elapsed: int = 0


@dataclass(slots=True)
class Refused:
    """Answer to `Hello` from a stage that already serves a newer peer or term."""

    kind: ClassVar[str] = "refused"
    payloads: ClassVar[tuple[str, ...]] = ()
    stage: str
    peer: int
    term: int
    reason: str


@dataclass(slots=True)
class Query:
    """Gateway → snapshotter: `what` is "balances" (u64 accounts), "status" (u64 ids) or
    "transaction" (one u64 id). The answer waits until the snapshot index has reached `least`, so
    that no client sees less than it was told before."""

    kind: ClassVar[str] = "query"
    payloads: ClassVar[tuple[str, ...]] = ("keys",)
    query: int
    what: str
    least: int = 0
    keys: Buffer = EMPTY


@dataclass(slots=True)
class Answer:
    """Snapshotter → gateway: i64 balances, STATUS_DTYPE rows or a transaction (as
    `common.bus.transaction` has it), as of `index`; or an error, with `overloaded` one that another
    try may not meet."""

    kind: ClassVar[str] = "answer"
    payloads: ClassVar[tuple[str, ...]] = ("values",)
    query: int
    index: int
    error: str = ""
    overloaded: bool = False
    details: dict[str, int | str] = field(default_factory=dict)
    values: Buffer = EMPTY


Message = (
    Request
    | Sequenced
    | Executed
    | StageStatus
    | Presence
    | StageMetrics
    | Assigned
    | Results
    | ResultsQuery
    | ResultsGone
    | Prepare
    | Prepared
    | FunctionsQuery
    | FunctionsAnswer
    | ClockQuery
    | ClockAnswer
    | Hello
    | Welcome
    | Refused
    | Query
    | Answer
)
MESSAGE_TYPES: Final[dict[str, type[Any]]] = {cls.kind: cls for cls in get_args(Message)}
"""Every message by what its header calls it."""
_REQUIRED: Final[dict[str, tuple[str, ...]]] = {}
_OPTIONAL: Final[dict[str, tuple[str, ...]]] = {}
_OMITTED: Final[dict[str, int]] = {}
"""How many payload frames, counted from the last, are left out where they are empty."""
_CHECKS: Final[dict[str, Any]] = {}


def encode(message: Message) -> list[Buffer]:
    """Frames of a message: the header, then its payload frames, which are passed on as they are."""
    kind = message.kind
    header: dict[str, Any] = {"v": PROTOCOL_VERSION, "t": kind}
    for name in _REQUIRED[kind]:
        header[name] = getattr(message, name)
    for name in _OPTIONAL[kind]:
        value = getattr(message, name)
        if value:
            header[name] = value
    frames: list[Buffer] = [msgpack.packb(header)]
    for name in message.payloads:
        frames.append(getattr(message, name))
    if _OMITTED[kind] and not size(frames[-1]):
        frames.pop()
    return frames


def decode(frames: Sequence[Buffer]) -> Message:
    """The message in these frames. Raises `FrameError`; never returns a half-checked message."""
    if not frames:
        raise FrameError("no frames")
    header = unpack_header(frames[0])
    version = header.get("v")
    if type(version) is not int or version != PROTOCOL_VERSION:
        raise FrameError(f"version {shown(version)}, this service speaks {PROTOCOL_VERSION}")
    kind = header.get("t")
    cls = MESSAGE_TYPES.get(kind) if isinstance(kind, str) else None
    if cls is None or not isinstance(kind, str):
        raise FrameError(f"unknown message type {shown(kind)}")
    if not 0 <= 1 + len(cls.payloads) - len(frames) <= _OMITTED[kind]:
        raise FrameError(f"{len(frames)} frames, {1 + len(cls.payloads)} belong to it", kind)
    values: dict[str, Any] = {}
    checks = _CHECKS[kind]
    for name, value in header.items():
        if name in ("v", "t"):
            continue
        check = checks.get(name)
        if check is None:
            raise FrameError(f"unknown field {shown(name)}", kind)
        if not check(value):
            raise FrameError(f"field {name} has the value {shown(value)}", kind)
        values[name] = value
    for name, payload in zip(cls.payloads, frames[1:], strict=False):
        values[name] = payload
    try:
        message: Message = cls(**values)
    except TypeError as error:
        missing = [name for name in _REQUIRED[kind] if name not in values]
        raise FrameError(f"missing fields {missing}", kind) from error
    _check_lengths(message)
    return message


def _check_lengths(message: Message) -> None:
    kind = message.kind
    if isinstance(message, Request | Sequenced | Executed) and (
        message.count < 1 or size(message.records) != message.count * RECORD_SIZE
    ):
        raise FrameError(f"{size(message.records)} bytes for {message.count} records", kind)
    if isinstance(message, Request | Sequenced):
        if size(message.params) % PARAMS_SIZE:
            raise FrameError(f"{size(message.params)} bytes of parameters", kind)
        if message.counts and (sum(message.counts) != message.count or 0 in message.counts):
            raise FrameError(f"submits of {sum(message.counts)} of {message.count} records", kind)
        if message.registers and (message.count != 1 or len(message.names) != 1):
            raise FrameError("a registration has one record and one name", kind)
    if isinstance(message, Executed):
        expected = (message.links + message.params) * 8 + message.entries * ENTRY_SIZE
        if size(message.extras) != expected:
            raise FrameError(
                f"{size(message.extras)} bytes of extras, header says {expected}", kind
            )
    if isinstance(message, Results):
        rows = 0
        following = message.first
        for row in message.batches:
            if len(row) != 5 or row[2] != following or row[3] < 1 or row[4] > row[3]:
                raise FrameError(f"batch row {row} does not follow id {following - 1}", kind)
            following += row[3]
            rows += row[4]
        if following != message.first + message.count:
            raise FrameError(f"batches cover {following - message.first} of {message.count}", kind)
        if size(message.failures) != rows * FAILURE_SIZE:
            raise FrameError(f"{size(message.failures)} bytes for {rows} failures", kind)
    if isinstance(message, Assigned) and any(len(row) != 4 for row in message.batches):
        raise FrameError("batch row without four numbers", kind)
    if isinstance(message, Query) and size(message.keys) % 8:
        raise FrameError(f"{size(message.keys)} bytes of keys", kind)


def _prepare() -> None:
    for kind, cls in MESSAGE_TYPES.items():
        plain = [f for f in fields(cls) if f.name not in cls.payloads]
        _OMITTED[kind] = getattr(cls, "optional", 0)
        _REQUIRED[kind] = tuple(
            f.name for f in plain if f.default is MISSING and f.default_factory is MISSING
        )
        _OPTIONAL[kind] = tuple(f.name for f in plain if f.name not in _REQUIRED[kind])
        _CHECKS[kind] = {f.name: FIELD_CHECKS[str(f.type)] for f in plain}


_prepare()
