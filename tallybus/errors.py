"""The typed exceptions of clients and of the embedded ledger.

Every exception carries what a program needs to react as fields, and a message that says what
happened, where, and what to do. A transaction that the ledger rejected is a result with a status
and never one of these. What keeps a `Ledger` from opening is a `ServiceError`.
"""

from __future__ import annotations

from tallybus.common.errors import TallybusError as TallybusError
from tallybus.common.record import Level


class InvalidRequest(TallybusError, ValueError):
    """The request cannot be sent, or the gateway refused it; nothing was sequenced.

    `field` names the offending field or argument (None when the gateway refused the request as a
    whole), `value` is what was given, `index` the position of the operation in its batch (None
    outside one). Of a request that is larger than it may be, `limit` names what it is beyond
    ("max_batch", "in_flight", "message_bytes") and `allowed` says how much it may be, else None.
    """

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        index: int | None = None,
        limit: str | None = None,
        allowed: int | None = None,
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.index = index
        self.limit = limit
        self.allowed = allowed


class Timeout(TallybusError, TimeoutError):
    """The deadline passed before the answer came. A submitted transaction may still be executed.

    `request` is the protocol's name of the operation ("submit", "balances", ...), `level` the level
    that was waited for (None for reads), `seconds` the time the caller allowed, `first_tx_id` the
    id of the first submitted transaction where the gateway could tell it, else None: `wait_for` and
    `get_status` take it from there.
    """

    def __init__(
        self,
        message: str,
        *,
        request: str,
        level: Level | None,
        seconds: float,
        first_tx_id: int | None = None,
    ) -> None:
        super().__init__(message)
        self.request = request
        self.level = level
        self.seconds = seconds
        self.first_tx_id = first_tx_id


class Unreachable(TallybusError, ConnectionError):
    """There was no connection to the gateway until the deadline; nothing was sent.

    `request` is the protocol's name of the operation, `endpoint` where the gateway should be,
    `seconds` the time the caller allowed.
    """

    def __init__(self, message: str, *, request: str, endpoint: str, seconds: float) -> None:
        super().__init__(message)
        self.request = request
        self.endpoint = endpoint
        self.seconds = seconds


class Overloaded(TallybusError):
    """The ledger took no more requests until the deadline; nothing was sequenced, retry later.

    `request` is the protocol's name of the operation, `attempts` how often it was sent. Where this
    client's own limit was the reason, `limit` names it ("in_flight", "rate") and `allowed` says how
    much it is; `retry_ms` is after how many milliseconds the ledger says that trying again is of
    use. None: not told.
    """

    def __init__(
        self,
        message: str,
        *,
        request: str,
        attempts: int,
        limit: str | None = None,
        allowed: int | None = None,
        retry_ms: int | None = None,
    ) -> None:
        super().__init__(message)
        self.request = request
        self.attempts = attempts
        self.limit = limit
        self.allowed = allowed
        self.retry_ms = retry_ms


class Unavailable(TallybusError):
    """A service that the request needs was down until the deadline; nothing was sequenced.

    `request` is the protocol's name of the operation, `attempts` how often it was sent.
    """

    def __init__(self, message: str, *, request: str, attempts: int) -> None:
        super().__init__(message)
        self.request = request
        self.attempts = attempts


class OutcomeUnknown(TallybusError):
    """A submit was lost on its way, so its transactions may or may not have been executed.

    `count` is the number of operations. `retry_safe` is True if every one of them has a `user_ref`:
    then sending the very same operations again cannot apply any of them twice (as long as their
    references are within the ledger's duplicate window). With False, a retry could apply an
    operation twice. `first_tx_id` is the id that the first operation had been given, where it is
    known."""

    def __init__(
        self, message: str, *, count: int, retry_safe: bool, first_tx_id: int | None = None
    ) -> None:
        super().__init__(message)
        self.count = count
        self.retry_safe = retry_safe
        self.first_tx_id = first_tx_id


class AccessDenied(TallybusError):
    """The ledger does not let this client in, or not do this; the request had no effect.

    `request` is the protocol's name of the operation that was refused, None when the connection
    was. `reason`: "key" (the ledger does not take this client's key), "encryption" (it asks for a
    key and none was given, or the other way round, or it is not the ledger that the key was made
    for), "revoked" (the key was good when the connection was made), "role" (the key may do less
    than this). A client that was refused may go on being used: each later call tries again.
    """

    def __init__(self, message: str, *, request: str | None, reason: str) -> None:
        super().__init__(message)
        self.request = request
        self.reason = reason


class LostTransaction(TallybusError):
    """Transactions were sequenced and lost with their sequencer before execution: they had no
    effect.

    `request` is the protocol's name of the operation, `tx_id` the (first) lost id where it is
    known. Submitting them again, under new ids, is safe.
    """

    def __init__(self, message: str, *, request: str, tx_id: int | None) -> None:
        super().__init__(message)
        self.request = request
        self.tx_id = tx_id


class ProtocolError(TallybusError):
    """What the peer sent is not a reply of this protocol version. What a submit did is then not
    known.
    """


class ServerError(TallybusError):
    """The gateway failed on its own account (code "internal"). What a submit did is then not known.

    `request` is the protocol's name of the operation, `code` the gateway's error code.
    """

    def __init__(self, message: str, *, request: str, code: str) -> None:
        super().__init__(message)
        self.request = request
        self.code = code


class TooManyOpenFiles(TallybusError):
    """The process may not open as many files as another client or ledger needs; nothing was made.

    `limit` is how many it may have open at a time.
    """

    def __init__(self, message: str, *, limit: int) -> None:
        super().__init__(message)
        self.limit = limit


class MissingExtra(TallybusError, ImportError):
    """What was asked for needs packages that a client does not have: `pip install
    'tallybus[server]'`.

    `extra` is what to install, `missing` the packages that cannot be imported.
    """

    def __init__(self, message: str, *, extra: str, missing: tuple[str, ...]) -> None:
        super().__init__(message)
        self.extra = extra
        self.missing = missing


class ForkedProcess(TallybusError):
    """This object belongs to the process from which this one was forked. Nothing was done.

    A `Ledger` is open in the process that opened it. A batch, or a client over inproc, belongs to
    the process that began it. A `Client` or `AsyncClient` connects anew in the child by itself.
    """


class WrongEventLoop(TallybusError, RuntimeError):
    """An AsyncClient was used on another event loop than the one that it belongs to; nothing was
    sent.
    """


class ClientClosed(TallybusError):
    """The client was closed before or while this was called; a request that reads was given up."""


class TransactionNotFound(TallybusError, LookupError):
    """The read side has no transaction `tx_id`; `last_snapshot_tx_id` is how far it has come."""

    def __init__(self, message: str, *, tx_id: int, last_snapshot_tx_id: int) -> None:
        super().__init__(message)
        self.tx_id = tx_id
        self.last_snapshot_tx_id = last_snapshot_tx_id


class AlreadyExists(TallybusError):
    """A function of this name is registered, and `override` was off; it is still what it was.

    `name` is the function's; `tx_id` is the registration that was rejected.
    """

    def __init__(self, message: str, *, name: str, tx_id: int) -> None:
        super().__init__(message)
        self.name = name
        self.tx_id = tx_id


class NotRegistered(TallybusError):
    """There is no function of this name to unregister.

    `name` is what was asked for; `tx_id` is the transaction that was rejected.
    """

    def __init__(self, message: str, *, name: str, tx_id: int) -> None:
        super().__init__(message)
        self.name = name
        self.tx_id = tx_id


class InvalidFunction(TallybusError, ValueError):
    """The ledger does not take this binary as a function; nothing was registered.

    `name` is the function's; `reason` says what is wrong with the binary.
    """

    def __init__(self, message: str, *, name: str, reason: str) -> None:
        super().__init__(message)
        self.name = name
        self.reason = reason
