"""Clients that remember what was acknowledged, and the comparison of that with the log on disk."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus import BatchResult, Client, ClientClosed, TallybusError, WaitLevel
from tallybus.common.record import RECORD_DTYPE, Kind, Status
from tallybus.common.security.keys import ClientKey
from tallybus.common.settings.sections import Settings
from tallybus.common.wal.block import BlockHeader, InvalidBlock, parse_header
from tallybus.common.wal.check import check_log
from tests.processes.pipeline import PATIENCE_S, Replayed, eventually, replay

ACCOUNTS: Final = 40
MAX_BATCH: Final = 12
LARGEST_AMOUNT: Final = 500


def random_batch(random_: np.random.Generator, owner: int) -> NDArray[Any]:
    """1 to `MAX_BATCH` operations of all kinds; with an owner (not 0) each has a reference."""
    count = int(random_.integers(1, MAX_BATCH + 1))
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = random_.choice([Kind.DEPOSIT, Kind.TRANSFER, Kind.WITHDRAWAL], count)
    records["account"] = random_.integers(1, ACCOUNTS, count)
    others = random_.integers(1, ACCOUNTS, count)
    records["counterparty"] = np.where(records["kind"] == Kind.TRANSFER, others, 0)
    records["amount"] = random_.integers(1, LARGEST_AMOUNT, count)
    if owner:
        records["user_ref"] = random_.integers(1, 2**56, count) * 8 + owner
    return records


@dataclass
class Acknowledged:
    """A batch of which a client was told that it is COMMITTED, and how it ended."""

    batch: NDArray[Any]
    result: BatchResult


class Load:
    """Two clients, one with references and one without, that submit small batches all the time.

    What was not acknowledged is counted by the name of its error: nothing is known of it.
    """

    def __init__(
        self,
        endpoint: str,
        seed: int,
        *,
        timeout: float = PATIENCE_S,
        key: ClientKey | None = None,
    ) -> None:
        self.acknowledged: list[Acknowledged] = []
        self.errors: list[TallybusError] = []
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._clients = [Client(endpoint, timeout=timeout, key=key) for _ in range(2)]
        self._threads = [
            threading.Thread(target=self._run, args=(client, number, seed))
            for number, client in enumerate(self._clients)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.break_off()

    def finish(self) -> None:
        """Let every client get the answer that it waits for."""
        self._stopping.set()
        self._join()

    def break_off(self) -> None:
        """Stop at once; what has no answer yet gets none."""
        self._stopping.set()
        for client in self._clients:
            client.close(wait=False)
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a client hangs"
        if self.failure is not None:
            raise self.failure

    def goes_on(self, batches: int = 3) -> None:
        """So many batches more are acknowledged."""
        target = len(self.acknowledged) + batches
        eventually(
            lambda: self.failure or len(self.acknowledged) >= target,
            "clients get their answers",
        )
        if self.failure is not None:
            raise self.failure

    def _run(self, client: Client, number: int, seed: int) -> None:
        random_ = np.random.default_rng([seed, number])
        try:
            while not self._stopping.is_set():
                batch = random_batch(random_, number)
                try:
                    result = client.submit_batch(batch, WaitLevel.COMMITTED)
                except ClientClosed:
                    return
                except TallybusError as error:
                    self.errors.append(error)
                    continue
                assert result.level >= WaitLevel.COMMITTED
                self.acknowledged.append(Acknowledged(batch, result))
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self.failure = error


def last_on_disk(settings: Settings) -> int:
    """The last id of the log as it is now, which must be whole but for a torn tail."""
    state = check_log(settings.ledger.data, settings.ledger.transactions_per_segment)
    return state.chain.next_id - 1


def assert_all_on_disk(settings: Settings, *loads: Load) -> Replayed:
    """The log is one history, right by the oracle, with all that was acknowledged, once."""
    last = last_on_disk(settings)
    log = replay(settings, last)
    for load in loads:
        for each in list(load.acknowledged):
            ids = np.asarray(each.result.tx_ids, np.int64)
            assert ids.min() >= 1
            assert ids.max() <= last, f"{ids.max()} was acknowledged, the log ends at {last}"
            logged = log.records[ids - 1]
            for name in ("kind", "account", "counterparty", "amount", "user_ref"):
                assert (logged[name] == each.batch[name]).all(), (name, ids)
            assert (logged["status"] == each.result.statuses).all(), ids
    if last:
        refs = log.records["user_ref"]
        refs = refs[(refs != 0) & (log.records["status"] != Status.DUPLICATE)]
        assert len(np.unique(refs)) == len(refs), "a reference was executed twice"
    blocks = blocks_of(settings)
    terms = [block.term for block in blocks]
    assert terms == sorted(terms), "a lower term wrote behind a higher one"
    return log


def blocks_of(settings: Settings) -> list[BlockHeader]:
    """Headers of all whole blocks of the log, in order."""
    folder = settings.ledger.data
    found: list[BlockHeader] = []
    for path in [*sorted(folder.glob("wal_*.bin")), folder / "wal.bin"]:
        data = memoryview(path.read_bytes()) if path.exists() else memoryview(b"")
        offset = 0
        while offset < len(data):
            try:
                header = parse_header(data, offset)
            except InvalidBlock:  # the torn tail
                break
            if header.end > len(data):
                break
            found.append(header)
            offset = header.end
    return found


def terms_of(settings: Settings) -> list[int]:
    """The terms that wrote transactions, in the order in which they did."""
    terms = [block.term for block in blocks_of(settings) if not block.is_marker]
    return [term for at, term in enumerate(terms) if at == 0 or terms[at - 1] != term]
