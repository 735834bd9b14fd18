"""A call of a function as the log recorded it, with the balances that it found: to make it again.

Everything is read from a data folder, and nothing in it is written or locked: the ledger may run,
and go on writing. Balances come from the newest snapshot before the transaction and the log behind
it, so what stands in the log after the transaction is never looked at. Functions are not run here.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.batch import Batch, segment_of
from tallybus.common.errors import ServiceError
from tallybus.common.files import Storage
from tallybus.common.functions.binaries import BinaryDamaged, read_binary
from tallybus.common.functions.registry import FunctionRegistry, FunctionVersion, registrations
from tallybus.common.memory import lazy_zeros
from tallybus.common.record import FIRST_USER_STATUS, Kind, Reason, Status
from tallybus.common.snapshot.balances import chunk_count, load_latest_snapshot
from tallybus.common.wal.block import MAX_ID, InvalidBlock, find_evidence, parse_header
from tallybus.common.wal.check import read_layout
from tallybus.common.wal.find import find_transaction
from tallybus.common.wal.reader import (
    BlockScanner,
    DamagedLog,
    KernelPolicy,
    LogEndsEarly,
    Progress,
    chain_at,
    open_segment,
    read_log,
    refusal,
)
from tallybus.common.wal.replay import replay_balances
from tallybus.errors import TallybusError
from tallybus.functions import Trial
from tallybus.operations import status_of
from tallybus.transactions import Entry, entry_of

ATTEMPTS: Final = 4
PAUSE_SECONDS: Final = 0.05

_NOT_EXECUTED: Final = (Status.NOT_RUN, Status.SUSPENDED)


class NoRecordedCall(TallybusError):
    """There is no such transaction in the log, or it is no call that can be made again.

    Fields: `tx_id`, and `reason`, which says what it is instead.
    """

    def __init__(self, tx_id: int, reason: str) -> None:
        super().__init__(f"transaction {tx_id} cannot be called again: {reason}")
        self.tx_id = tx_id
        self.reason = reason


@dataclass(frozen=True, slots=True, eq=False)
class RecordedCall:
    """A call as the log has it: its function, its parameters, the balances, and how it ended.

    `function` is the version that ran, and `crc32c` that of its binary; where none ran they are
    None and 0. `balances` int64[max_accounts] are those that the call found. `status` is a plain
    number where an older ledger let a function return a reserved one; `reason` is 0 then. It is 0
    as well where the status says it all.
    """

    folder: Path
    tx_id: int
    function: FunctionVersion | None
    crc32c: int
    params: tuple[int, ...]
    status: Status | int
    reason: Reason | int
    entries: tuple[Entry, ...]
    balances: NDArray[np.int64]

    @property
    def executed(self) -> bool:
        """Whether the function ran to an end of its own: neither not at all nor interrupted."""
        return self.function is not None and self.status not in _NOT_EXECUTED

    def binary(self) -> bytes:
        """The module that ran. Raises NoRecordedCall where none did, BinaryMissing."""
        ran = self.function
        if ran is None:
            why = "no function of that name was registered then"
            if self.status in _NOT_EXECUTED:
                why = f"the ledger did not run it ({_name(self.status)})"
            raise NoRecordedCall(self.tx_id, f"{why}. Give a module to see what it would have done")
        try:
            return read_binary(self.folder, ran.name, ran.version, ran.crc32c)
        except BinaryDamaged as error:
            raise BinaryMissing(self.tx_id, ran, error) from error


class BinaryMissing(ServiceError):
    """The module that a call ran is not in the data folder as it was. Fields: `tx_id`, `path`."""

    exit_code = BinaryDamaged.exit_code
    restart = False

    def __init__(self, tx_id: int, ran: FunctionVersion, error: BinaryDamaged) -> None:
        super().__init__(
            f"transaction {tx_id} ran {ran.name} version {ran.version}, CRC-32C {ran.crc32c:08x}, "
            f"but {error.path} {error.reason}. Restore the file from a backup, or give the module "
            "itself"
        )
        self.tx_id = tx_id
        self.path = error.path


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which a call differs from the log. `what` is status, reason or entries."""

    what: str
    recorded: object
    now: object


def recorded_call(
    folder: Path, tx_id: int, max_accounts: int, progress: Progress | None = None
) -> RecordedCall:
    """The call that transaction `tx_id` was, with the balances that it found.

    `max_accounts` is that of the ledger. `progress` is told the bytes of the log that were read.
    Raises NoRecordedCall; LogRefused, SnapshotError, ReplayError and StorageError where the folder
    cannot be read.
    """
    storage = Storage()
    for attempt in range(ATTEMPTS):
        try:
            opening = _opening(storage, folder, tx_id)
            call = _find(storage, folder, tx_id, *opening)
            break
        except (LogEndsEarly, DamagedLog):
            # A ledger that runs may have begun another segment between two looks.
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(PAUSE_SECONDS)
    record = call.records[0]
    _check_kind(tx_id, record, call)
    balances, functions = _state_before(storage, folder, tx_id, opening, max_accounts, progress)
    crc, registration = int(record["function"]), int(record["account"])
    ran = functions.resolve(registration, crc, tx_id) if crc else None
    if crc and ran is None:
        raise NoRecordedCall(
            tx_id,
            f"it ran the binary with the CRC-32C {crc:08x}, registered by transaction "
            f"{registration}, and no such registration was live then",
        )
    code, reason = int(record["status"]), int(record["reason"])
    with suppress(ValueError):  # a later version's
        reason = Reason(reason)
    return RecordedCall(
        folder=folder,
        tx_id=tx_id,
        function=ran,
        crc32c=crc,
        params=tuple(call.params.tolist()),
        status=code if is_old_own_status(code, reason) else status_of(code),
        reason=reason,
        entries=tuple(entry_of(int(account), int(amount)) for account, amount in call.entries),
        balances=balances,
    )


def is_old_own_status(status: int, reason: int) -> bool:
    """Whether a recorded status is one that functions could return once, and that is reserved."""
    return Status.QUOTA_EXCEEDED < status < FIRST_USER_STATUS and not reason


def differences(recorded: RecordedCall, trial: Trial) -> list[Difference]:
    """In what the trial of a recorded call differs from the log. Empty: it is the same.

    A reason counts only where the log has one, because older ledgers wrote none. Some statuses
    that an older ledger took for the function's own are bad returns now. With such a status the
    outcome is the same if the function returned the same.
    """
    if is_old_own_status(recorded.status, recorded.reason) and trial.returned == recorded.status:
        return []
    found = []
    if recorded.status != trial.status:
        found.append(Difference("status", recorded.status, trial.status))
    elif recorded.reason and recorded.reason != trial.reason:
        found.append(Difference("reason", recorded.reason, trial.reason))
    if recorded.entries != trial.entries:
        found.append(Difference("entries", recorded.entries, trial.entries))
    return found


def _name(status: Status | int) -> str:
    return status.name if isinstance(status, Status) else str(status)


def _opening(storage: Storage, folder: Path, tx_id: int) -> tuple[int, int]:
    """Transactions of a segment, and the cluster id, as the log's first block says."""
    layout = read_layout(folder, storage.list_names(folder))
    if layout.is_empty:
        raise NoRecordedCall(tx_id, f"there is no log in {folder}")
    path, data = open_segment(storage, folder, 1)
    try:
        header = parse_header(data, 0)
    except InvalidBlock as error:
        raise refusal(path, error) from error
    return header.transactions_per_segment, header.cluster_id


def _find(storage: Storage, folder: Path, tx_id: int, segment_size: int, cluster: int) -> Batch:
    if tx_id > MAX_ID:
        raise NoRecordedCall(tx_id, "no log has so many transactions")
    segment = segment_of(tx_id, segment_size)
    try:
        return find_transaction(
            folder,
            tx_id,
            segment_size,
            cluster_id=cluster,
            # How far the log goes is not known: the guess is that this segment is full.
            last_id=segment * segment_size,
            storage=storage,
        )
    except (LogEndsEarly, DamagedLog) as error:
        last = _last_id(storage, folder, segment_size, cluster)
        if last is None or tx_id <= last:
            raise
        raise NoRecordedCall(tx_id, f"the log in {folder} goes up to transaction {last}") from error


def _last_id(storage: Storage, folder: Path, segment_size: int, cluster: int) -> int | None:
    """The last transaction of the log, before a tail that is torn or just being written; None where
    something is damaged that had been durable."""
    layout = read_layout(folder, storage.list_names(folder))
    last = layout.closed * segment_size
    # The active segment may have been closed since the names were read.
    for segment in (layout.closed + 1, layout.closed + 2):
        try:
            _, data = open_segment(storage, folder, segment)
        except LogEndsEarly:
            break
        except DamagedLog:
            return None
        start = chain_at(segment, segment_size, cluster)
        scanner = BlockScanner(data, start, policy=KernelPolicy())
        chain = scanner.chain
        try:
            scanner.skip_to(MAX_ID)
        except InvalidBlock:
            if find_evidence(data, chain.offset, cluster, chain.next_id) is not None:
                return None
        last = chain.next_id - 1
        if not chain.segment_is_full:
            break
    return last


def _check_kind(tx_id: int, record: Any, batch: Batch) -> None:
    kind = int(record["kind"])
    if kind != Kind.FUNCTION:
        name = Kind(kind).name if kind in set(Kind) else f"of the kind {kind}"
        raise NoRecordedCall(tx_id, f"it is no call of a function, it is {name}")
    if int(record["status"]) == Status.DUPLICATE:
        first = int(batch.links[0])
        raise NoRecordedCall(
            tx_id,
            f"it is a duplicate of transaction {first}, and nothing ran. Try that one instead",
        )


def _state_before(
    storage: Storage,
    folder: Path,
    tx_id: int,
    opening: tuple[int, int],
    max_accounts: int,
    progress: Progress | None,
) -> tuple[NDArray[np.int64], FunctionRegistry]:
    segment_size, cluster = opening
    snapshot, _ = load_latest_snapshot(
        folder,
        cluster_id=cluster,
        transactions_per_segment=segment_size,
        max_accounts=max_accounts,
        durable_index=tx_id - 1,
        looking_back=True,
    )
    if snapshot is None:
        first = 1
        balances = lazy_zeros(max_accounts, np.int64)
        touched = np.zeros(chunk_count(max_accounts), np.uint8)
        functions = FunctionRegistry()
    else:
        first = snapshot.fields.last_tx_id + 1
        balances, touched, functions = snapshot.balances, snapshot.touched, snapshot.functions
    for batch in read_log(
        folder,
        first,
        tx_id - 1,
        segment_size,
        cluster_id=cluster,
        storage=storage,
        progress=progress,
    ):
        replay_balances(batch, balances, touched)
        for version in registrations(batch):
            functions.apply(version)
    return balances, functions
