"""What a client does, without doing any I/O: requests, deadlines, pings, lost requests, retries.

A shell (`sync`, `aio`) owns the socket and the clock, and drives one `Core`:

1. `start` a request; `Call.done` tells when it is over.
2. While `next_message` gives frames, send them without blocking; after each one that the socket
   took, call `message_sent`. If the socket takes none, call `message_refused` and try again when it
   can. If an exception came in between and neither is known, go on with `resumed`.
3. Hand every message that arrives to `receive`, and tell how handshakes went: see `access`.
4. Call `tick` at the time that `next_wake` gives, or later.
5. After each of these, hand the calls in `finished` to those who wait for them, and clear it. Set
   their `request` to None: a batch is large, and callers may keep its call.

Times are integer nanoseconds of a monotonic clock; `random` gives floats in [0, 1). Not
thread-safe.

Each sending of a request has its own id, greater than all before it, and answers to earlier
sendings are ignored. So a ping's answer can only speak of sendings that were made before the ping.
ADR 0004 says why clients ping, ADR 0019 what interruptions leave half done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, Generic, TypeVar, cast

from tallybus.client.access import Access, Handshake, Refusal
from tallybus.client.codec import (
    MAX_MESSAGE_CHARS,
    ErrorReply,
    Payload,
    Request,
    encode,
    encode_ping,
    read_answer,
    read_error,
    read_header,
    read_pong,
    reply_id,
)
from tallybus.common.protocol import MAX_PENDING, ErrorCode
from tallybus.common.times import NEVER_NS
from tallybus.errors import (
    AccessDenied,
    ClientClosed,
    InvalidFunction,
    InvalidRequest,
    LostTransaction,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    ServerError,
    TallybusError,
    Timeout,
    Unavailable,
    Unreachable,
)
from tallybus.pipeline import GatewayInfo

T = TypeVar("T")

MILLISECOND: Final = 1_000_000
SECOND: Final = 1_000_000_000
MAX_TIMEOUT_SECONDS: Final = 10 * 365 * 86_400
MAX_HINT_MS: Final = 86_400_000


@dataclass(frozen=True, slots=True)
class CoreSettings:
    """Times of a core, in nanoseconds."""

    ping_after: int = 250 * MILLISECOND
    """A request without an answer for so long is asked for by a ping, which repeats as often."""
    first_backoff: int = 5 * MILLISECOND
    """Longest pause before the first retry after a refusal; each later one may be twice as long."""
    max_backoff: int = 500 * MILLISECOND
    answer_margin: int = 100 * MILLISECOND
    """How long before the deadline the gateway is asked to give up, at most a tenth of the time
    that is left. So its answer, which can name the transaction, comes in time.
    """


class Call(Generic[T]):
    """One request on its way. `value` or `error` is set once `done` is True. `owner` is the
    shell's.
    """

    __slots__ = (
        "abandoned",
        "at_large",
        "attempts",
        "deadline",
        "done",
        "error",
        "owner",
        "refusal",
        "request",
        "retry_at",
        "seconds",
        "sent_at",
        "sent_id",
        "unsure",
        "value",
    )

    def __init__(self, request: Request[T], seconds: float, deadline: int) -> None:
        self.request: Request[T] | None = request
        self.seconds = seconds
        self.deadline = deadline
        self.done = False
        self.value: T | None = None
        self.error: TallybusError | None = None
        self.owner: Any = None
        self.attempts = 0
        self.unsure = False
        """An earlier sending was lost: what it did is not known."""
        self.sent_id = 0
        self.sent_at = 0
        self.refusal: ErrorReply | None = None
        self.retry_at = NEVER_NS
        self.at_large = False
        """A sending may be out that nothing has been heard of: it could have any effect."""
        self.abandoned = False
        """Whoever asked has been interrupted, and waits no more."""

    def result(self) -> T:
        """The value of a call that is done; raises its error."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)


class Core:
    """The state machine of one client."""

    def __init__(
        self,
        random: Callable[[], float],
        settings: CoreSettings | None = None,
        access: Access | None = None,
    ) -> None:
        self.finished: list[Call[Any]] = []
        self.access = access or Access("", None, 0)
        """Whether there is to be a connection, and what is to be found out about it."""
        self._random = random
        self._settings = settings or CoreSettings()
        self._calls: dict[Call[Any], None] = {}
        self._queue: deque[Call[Any]] = deque()
        self._sent: dict[int, Call[Any]] = {}
        self._next_id = 1
        self._wake = NEVER_NS  # no deadline or retry is earlier; the next one may be later
        self._ping_at = NEVER_NS
        self._ping_due = False
        self._pings: list[int] = []
        self._heard_at: int | None = None
        self._pinging = False
        """Whether the last `next_message` was a ping."""
        self._revision: int | None = None
        """Of the protocol, as the gateway told it over this connection."""
        self._asking = False
        """The next request waits until a ping has told the revision."""

    @property
    def outstanding(self) -> tuple[Call[Any], ...]:
        """The calls that are not done, in the order of their begin."""
        return tuple(self._calls)

    @property
    def has_message(self) -> bool:
        """Whether `next_message` may have something."""
        return (bool(self._queue) and not self._asking) or self._ping_due

    def begin(self, call: Call[Any], now: int) -> None:
        """Takes a call that `new_call` has made."""
        refusal = self.access.refusal(now)
        if refusal is not None:
            self._fail(call, refusal.error())
            return
        self._calls[call] = None
        self._queue.append(call)
        self._wake = min(self._wake, call.deadline)

    def resumed(self, access: Access, why: str, now: int) -> Core:
        """A core that goes on with these calls over a new connection, after this one was left in
        the middle of a step by an exception that came from outside (`why`).

        Whatever this core holds may be half done, but for what each call says of itself. What may
        have been sent is sent again where that cannot apply anything twice, else its outcome is
        unknown. Calls that nobody waits for are dropped.
        """
        core = Core(self._random, self._settings, access)
        # The gateway knows the new connection by another name, but ids are never used twice.
        core._next_id = self._next_id + 1
        core._heard_at = self._heard_at
        core.finished = [call for call in self.finished if call.done]
        for call in list(self._calls):
            if not call.done and not call.abandoned:
                core._adopt(call, why, now)
        return core

    def _adopt(self, call: Call[Any], why: str, now: int) -> None:
        call.error = None
        self._calls[call] = None
        self._wake = min(self._wake, call.deadline)
        if call.at_large:
            call.at_large = False
            if not self._take_loss(call, why):
                return
            if not call.attempts:
                call.attempts = 1
        if call.refusal is not None and call.retry_at != NEVER_NS:
            self._wake = min(self._wake, call.retry_at)
        else:
            self._enqueue(call)

    def next_message(self, now: int) -> list[Payload] | None:
        """Frames to send next, or None. The same again until `message_sent`."""
        self._pinging = False
        asking = False
        while self._queue:
            call = self._queue[0]
            request = call.request
            if request is not None and not call.done:
                asking = bool(request.newer) and self._must_ask(call, request)
                if asking:
                    break
                if not call.done:
                    self._asking = False
                    # Before the first byte: whoever is interrupted while sending cannot tell.
                    call.at_large = True
                    return encode(request, self._next_id, self._time_left(call, now), call.unsure)
            self._queue.popleft()
        self._ping_due = self._ping_due or (asking and not self._asking)
        self._asking = asking
        if self._ping_due:
            pending = list(islice(self._sent, MAX_PENDING))
            if pending or asking:
                self._pinging = True
                return encode_ping(self._next_id, pending)
            self._ping_due = False
        return None

    def message_refused(self) -> None:
        """The socket has taken nothing of the frames of `next_message`."""
        if self._queue:
            self._queue[0].at_large = False

    def message_sent(self, now: int) -> None:
        """The socket has taken the frames of `next_message`."""
        if self.access.is_stalled:
            self.access.calm()
        if not self._pinging:
            call = self._queue.popleft()
            call.sent_id = self._next_id
            call.sent_at = now
            call.attempts += 1
            call.at_large = True
            self._sent[self._next_id] = call
            if self._ping_at == NEVER_NS:
                self._ping_at = now + self._settings.ping_after
        else:
            self._ping_due = False
            self._pings.append(self._next_id)
            self._ping_at = now + self._settings.ping_after
        self._next_id += 1

    def receive(self, frames: Sequence[bytes], now: int) -> None:
        """Takes one message from the gateway."""
        try:
            header = read_header(frames)
            request_id = reply_id(header)
            if request_id is None:
                error = read_error(header)
                raise ProtocolError(
                    f"the gateway could not read a request of this client: {error.message} "
                    f"({error.code})"
                )
            call = self._sent.pop(request_id, None)
            if call is None and request_id in self._pings:
                self._heard_at = now
                self._take_pong(request_id, header, frames[1:])
        except ProtocolError as failure:
            # It cannot be told which request this answers, and a peer that does not speak the
            # protocol will answer none of the others either.
            for other in list(self._calls):
                self._fail(other, ProtocolError(failure.message))
            return
        self._heard_at = now
        if call is None or call.request is None:
            return
        try:
            answer = read_answer(call.request, header, frames[1:], call.unsure)
        except TallybusError as failure:
            self._fail(call, failure)
            return
        if isinstance(answer, ErrorReply):
            self._take_error(call, answer, now)
        elif isinstance(answer, Request):
            # The answer is known, and what is left to ask for has not been sent before.
            call.request = answer
            call.unsure = False
            call.at_large = False
            self._enqueue(call)
        else:
            if isinstance(answer, GatewayInfo):
                self._learn(answer)
            call.value = answer
            self._finish(call)

    def tick(self, now: int) -> None:
        """Does what time alone asks for: deadlines, retries, pings, attempts to connect."""
        access = self.access
        if access.is_stalled or access.connection is None:
            access.tick(now)
        if now >= self._wake:
            self._wake = NEVER_NS
            for call in list(self._calls):
                if now >= call.deadline:
                    self._expire(call, now)
                    continue
                if now >= call.retry_at:
                    self._enqueue(call)
                self._wake = min(self._wake, call.deadline, call.retry_at)
        if now >= self._ping_at:
            self._plan_ping(now)

    def next_wake(self) -> int | None:
        """When to call `tick` next, or None while nothing is outstanding."""
        if not self._calls:
            return None
        wake = min(self._wake, self._ping_at)
        access = self.access
        if access.is_stalled or access.connection is None:
            wake = min(wake, access.wake())
        return wake

    def handshake(self, seen: Handshake, now: int) -> None:
        """How the handshake of the connection ended; a refusal ends every call."""
        # Another connection, perhaps to a gateway of another release.
        self._revision = None
        self._deny(self.access.handshake(seen, now))

    def looked(self, seen: Handshake, now: int) -> None:
        """What the look has found so far that `access.look` asks for."""
        self._deny(self.access.looked(seen, now))

    def forget(self, call: Call[Any]) -> None:
        """Nobody waits for this call any more: its answer will be ignored."""
        if not call.done:
            self._fail(call, ClientClosed("the caller gave the request up"))

    def close(self) -> None:
        """Fails what is left: OutcomeUnknown for submits that were sent, else ClientClosed."""
        for call in list(self._calls):
            request = call.request
            if request is not None and not request.reads and (call.attempts or call.at_large):
                self._fail(call, _outcome_unknown(request, "the client was closed"))
            else:
                self._fail(
                    call, ClientClosed("the client was closed before the request was answered")
                )
        self._queue.clear()

    def _deny(self, refusal: Refusal | None) -> None:
        """Ends all calls, as this client is not let in. What was sent over a connection before
        this one was lost with it."""
        if refusal is None:
            return
        for call in list(self._calls):
            request = cast(Request[Any], call.request)
            error = refusal.error(_committed(request))
            if self._sent.get(call.sent_id) is call and not request.reads:
                why = "the connection was lost after sending, and the next one refused"
                unknown = _outcome_unknown(request, f"{why} ({error.message})")
                unknown.__cause__ = error
                self._fail(call, unknown)
            else:
                self._fail_without_effect(call, error)
        self._queue.clear()

    def _enqueue(self, call: Call[Any]) -> None:
        call.retry_at = NEVER_NS
        call.refusal = None
        call.at_large = False
        self._queue.append(call)

    def _time_left(self, call: Call[Any], now: int) -> int:
        left = call.deadline - now
        left -= min(left // 10, self._settings.answer_margin)
        return max(1, left // MILLISECOND)

    def _plan_ping(self, now: int) -> None:
        if self._asking:
            self._ping_due = True
            self._ping_at = now + self._settings.ping_after
            return
        if not self._sent:
            self._ping_at = NEVER_NS
            self._pings.clear()
            return
        oldest = next(iter(self._sent.values())).sent_at + self._settings.ping_after
        if now < oldest:
            self._ping_at = oldest
            return
        # While the socket takes nothing, a ping more would only join the queue.
        self._ping_due = not self._queue
        self._ping_at = now + self._settings.ping_after

    def _take_pong(self, ping_id: int, header: dict[str, Any], payload: Sequence[bytes]) -> None:
        self._pings = [other for other in self._pings if other > ping_id]
        if "error" in header:
            self._take_ping_error(read_error(header))
            return
        info, unknown = read_pong(header, payload)
        self._learn(info)
        for sent_id in unknown:
            if sent_id >= ping_id:
                raise ProtocolError("the gateway's answer to a ping names a request sent after it")
            call = self._sent.pop(sent_id, None)
            if call is not None and self._take_loss(call, "the connection was lost after sending"):
                self._enqueue(call)

    def _take_ping_error(self, reply: ErrorReply) -> None:
        if self._asking and reply.code is ErrorCode.FORBIDDEN and self._queue:
            # The request that waits for this ping would fare no better.
            call, self._asking = self._queue[0], False
            if call.request is not None and not call.done:
                self._fail_without_effect(call, _error_of(call.request, reply, call.seconds))

    def _learn(self, info: GatewayInfo) -> None:
        self._revision = info.revision
        self._asking = False

    def _must_ask(self, call: Call[Any], request: Request[Any]) -> bool:
        """Whether it is not known if the gateway takes the fields of this request. Fails the call
        if it is known that it does not."""
        needed, field = request.newest()
        if not needed or (self._revision is not None and self._revision >= needed):
            return False
        if self._revision is None:
            return True
        error = InvalidRequest(
            f"the gateway does not know the field {field} of the {request.op} request: it speaks "
            f"revision {self._revision} of the protocol, the field came with revision {needed}. "
            "Nothing was sent. Use a gateway of a later release, or leave out what needs the field",
            field=field,
        )
        self._fail_without_effect(call, error)
        return False

    def _take_loss(self, call: Call[Any], why: str, first_tx_id: int | None = None) -> bool:
        """A sending was lost, and nobody can say what it did. True if the call may go on."""
        request = cast(Request[Any], call.request)
        if not request.resendable():
            self._fail(call, _outcome_unknown(request, why, first_tx_id))
            return False
        call.unsure = call.unsure or not request.reads
        return True

    def _take_error(self, call: Call[Any], reply: ErrorReply, now: int) -> None:
        request = cast(Request[Any], call.request)
        match reply.code:
            case ErrorCode.OVERLOADED | ErrorCode.UNAVAILABLE:
                call.refusal = reply
                self._pause(call, now, _retry_hint(reply))
                if call.retry_at >= call.deadline:
                    self._expire(call, now)
            case ErrorCode.OUTCOME_UNKNOWN:
                if self._take_loss(call, reply.message, _first_tx_id(reply)):
                    self._pause(call, now)
            case ErrorCode.LOST if not request.reads and request.resendable():
                self._pause(call, now)
            case ErrorCode.TIMEOUT if request.reads and self._has_time(call, now):
                # The gateway holds no request longer than its own limit, the caller would.
                self._pause(call, now)
            case _:
                error = _error_of(request, reply, call.seconds)
                if isinstance(
                    error, (AccessDenied, InvalidRequest, InvalidFunction, LostTransaction)
                ):
                    self._fail_without_effect(call, error)
                else:
                    self._fail(call, error)

    def _pause(self, call: Call[Any], now: int, at_least: int = 0) -> None:
        """Sends again after a pause; of `at_least` so many nanoseconds, as the gateway asks for."""
        settings = self._settings
        call.at_large = False
        longest = min(settings.first_backoff << min(call.attempts - 1, 30), settings.max_backoff)
        pause = longest // 2 + int(self._random() * (longest - longest // 2))
        if at_least:
            pause = max(pause, at_least + int(self._random() * settings.first_backoff))
        call.retry_at = now + pause
        self._wake = min(self._wake, call.retry_at)

    def _has_time(self, call: Call[Any], now: int) -> bool:
        return call.deadline - now > 2 * self._settings.answer_margin

    def _expire(self, call: Call[Any], now: int) -> None:
        request = cast(Request[Any], call.request)
        refusal = call.refusal
        if refusal is None:
            self._fail(call, self._timeout(call, request, now))
            return
        text = (
            f"the ledger refused the {request.op} request {call.attempts} times within "
            f"{call.seconds:g} s, the last time with: {refusal.message} ({refusal.code}); "
            "nothing was sequenced, try again later"
        )
        error: Overloaded | Unavailable
        if refusal.code is ErrorCode.OVERLOADED:
            limit, allowed = _limit(refusal)
            hint = _retry_hint(refusal) // MILLISECOND
            error = Overloaded(
                text,
                request=request.op,
                attempts=call.attempts,
                limit=limit,
                allowed=allowed,
                retry_ms=hint or None,
            )
        else:
            error = Unavailable(text, request=request.op, attempts=call.attempts)
        self._fail_without_effect(call, error)

    def _timeout(self, call: Call[Any], request: Request[Any], now: int) -> Timeout | Unreachable:
        if not call.attempts:
            where = (
                f"the gateway at {self.access.endpoint}" if self.access.endpoint else "the gateway"
            )
            asked = self._asking and self._pings
            why = f"{where} has not told its revision" if asked else f"no connection to {where}"
            return Unreachable(
                f"{why} within {call.seconds:g} s: the {request.op} request was never sent"
                f"{_committed(request)}",
                request=request.op,
                endpoint=self.access.endpoint,
                seconds=call.seconds,
            )
        if self._heard_at is None:
            why = "nothing has ever been heard from the gateway"
        else:
            why = f"the gateway was last heard {(now - self._heard_at) / SECOND:.3g} s ago"
        if call.attempts and not request.reads:
            why += "; the transactions may still be executed"
        why += _committed(request)
        level = "" if request.level is None else f" to level {request.level.name}"
        return Timeout(
            f"no answer to the {request.op} request{level} within {call.seconds:g} s: {why}",
            request=request.op,
            level=request.level,
            seconds=call.seconds,
            first_tx_id=request.committed_tx_id,
        )

    def _fail_without_effect(self, call: Call[Any], error: TallybusError) -> None:
        """Fails a call whose last sending had no effect; an earlier, lost one may have had one."""
        if not call.unsure or call.request is None:
            self._fail(call, error)
            return
        unknown = _outcome_unknown(
            call.request, f"one sending was lost, and the next one was refused ({error.message})"
        )
        unknown.__cause__ = error
        self._fail(call, unknown)

    def _fail(self, call: Call[Any], error: TallybusError) -> None:
        call.error = error
        self._finish(call)

    def _finish(self, call: Call[Any]) -> None:
        # In this order: a call that is done is in `finished`, wherever an interruption comes.
        self.finished.append(call)
        call.done = True
        self._calls.pop(call, None)
        if not self._calls and self.access.is_stalled:
            self.access.calm()
        self._sent.pop(call.sent_id, None)


def new_call(request: Request[T], now: int, seconds: float) -> Call[T]:
    """A call that may take `seconds` from `now`, for `Core.begin`. Raises InvalidRequest."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise InvalidRequest(
            f"timeout must be a number of seconds, not {type(seconds).__name__}",
            field="timeout",
            value=seconds,
        )
    if not 0 < seconds <= MAX_TIMEOUT_SECONDS:
        raise InvalidRequest(
            f"timeout must be more than 0 and at most {MAX_TIMEOUT_SECONDS} seconds, not {seconds}",
            field="timeout",
            value=seconds,
        )
    return Call(request, seconds, now + int(seconds * SECOND))


def _error_of(request: Request[Any], reply: ErrorReply, seconds: float) -> TallybusError:
    code, text, details = reply.code, reply.message, reply.details
    match code:
        case ErrorCode.INVALID_REQUEST:
            field, index = details.get("field"), details.get("index")
            limit, allowed = _limit(reply)
            return InvalidRequest(
                f"the gateway refused the {request.op} request: {text}",
                field=field if isinstance(field, str) else None,
                value=details.get("value"),
                index=index if type(index) is int else None,
                limit=limit,
                allowed=allowed,
            )
        case ErrorCode.INVALID_FUNCTION:
            name, reason = details.get("name"), details.get("reason")
            reason = reason if isinstance(reason, str) else text
            name = name if isinstance(name, str) else ""
            return InvalidFunction(
                f"the ledger does not take this binary as function {name}: "
                f"{reason[:MAX_MESSAGE_CHARS]}",
                name=name,
                reason=reason[:MAX_MESSAGE_CHARS],
            )
        case ErrorCode.FORBIDDEN:
            revoked = details.get("revoked") is True
            return AccessDenied(
                f"the ledger does not let this client do a {request.op} request: {text}"
                f"{_committed(request)}",
                request=request.op,
                reason="revoked" if revoked else "role",
            )
        case ErrorCode.UNSUPPORTED_VERSION:
            return ProtocolError(
                f"the gateway does not speak this client's version of the protocol: {text}"
            )
        case ErrorCode.TIMEOUT:
            return Timeout(
                f"the gateway gave up the {request.op} request: {text}",
                request=request.op,
                level=request.level,
                seconds=seconds,
                first_tx_id=_first_tx_id(reply) or request.committed_tx_id,
            )
        case ErrorCode.LOST:
            return LostTransaction(
                f"the transactions were sequenced, then lost before execution: {text}; "
                "they had no effect, submit them again",
                request=request.op,
                tx_id=_first_tx_id(reply),
            )
        case _:
            return ServerError(
                f"the gateway failed on the {request.op} request: {text} ({code})",
                request=request.op,
                code=code,
            )


def _committed(request: Request[Any]) -> str:
    """To be added to the text of an error: of a request that completes one, what is done."""
    tx_id = request.committed_tx_id
    return "" if tx_id is None else f"; transaction {tx_id} is committed"


def _retry_hint(reply: ErrorReply) -> int:
    """Nanoseconds after which the gateway says that trying again is of use."""
    hint = reply.details.get("retry_ms")
    return min(hint, MAX_HINT_MS) * MILLISECOND if type(hint) is int and hint > 0 else 0


def _limit(reply: ErrorReply) -> tuple[str | None, int | None]:
    """The limit that a request was beyond, and how much it allows, where the gateway tells it."""
    limit, allowed = reply.details.get("limit"), reply.details.get("allowed")
    if limit is None and type(reply.details.get("max_batch")) is int:
        limit, allowed = "max_batch", reply.details["max_batch"]
    if not isinstance(limit, str) or type(allowed) is not int:
        return None, None
    return limit[:MAX_MESSAGE_CHARS], allowed


def _first_tx_id(reply: ErrorReply) -> int | None:
    first = reply.details.get("first")
    return first if type(first) is int and first > 0 else None


def _outcome_unknown(
    request: Request[Any], why: str, first_tx_id: int | None = None
) -> OutcomeUnknown:
    what, advice = request.unknown()
    return OutcomeUnknown(
        f"it is not known whether {what}: {why}; {advice}",
        count=request.count,
        retry_safe=request.retry_safe(),
        first_tx_id=first_tx_id,
    )
