"""The log stage's shell: the log on disk, its committer thread, and sockets around `WalCore`."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Final

import numpy as np

from tallybus.common import logs
from tallybus.common.bus.messages import TOPIC_ACKNOWLEDGE, Executed, Hello, Message, StageStatus
from tallybus.common.functions.registry import registrations_in
from tallybus.common.record import ENTRY_SIZE, RECORD_DTYPE, RECORD_SIZE, Kind
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import data_folder
from tallybus.common.wal.batch import count_extras
from tallybus.services.wal.binaries import keep_binary, remove_unfinished
from tallybus.services.wal.committer import Committer
from tallybus.services.wal.core import WalCore
from tallybus.services.wal.log import Log, LogBatch
from tallybus.services.wal.metrics import WalMeter

IDLE_NS: Final = 50_000_000
"""After this long without a batch a marker records that everything so far is durable."""


class WalService(Shell):
    """One log stage on one data folder, which it locks."""

    stage = "wal"
    core: WalCore

    def prepare(self) -> None:
        self.lock_run_folder()
        ledger = self.settings.ledger
        folder = data_folder(self.settings)
        self.open_publisher()
        started = time.monotonic()
        self._log = Log.open(
            folder,
            self.storage,
            ledger.transactions_per_segment,
            int.from_bytes(os.urandom(8), "little"),
            self.report_progress("verifying the log"),
        )
        remove_unfinished(self.storage, folder)
        if self._log.torn is not None:
            self.log.warning("cut off a torn tail", extra=logs.fields(tail=str(self._log.torn)))
        self.log.info(
            "recovered",
            extra=logs.fields(
                transactions=self._log.next_id - 1,
                segment=self._log.segment,
                seconds=round(time.monotonic() - started, 3),
            ),
        )
        self.core = WalCore(
            self.new_incarnation(),
            self.settings.bus.max_in_flight,
            self.heartbeat_ns,
            next_id=self._log.next_id,
            term=self._log.term,
            cluster=self._log.cluster_id,
            gateways=dict(self._log.gateways),
        )
        self._committer = Committer(self._log, self.wake)
        if isinstance(self.meter, WalMeter):
            self._committer.measured = self.meter.sync_seconds.observe
        self._committer.start()
        self._appended_ns = 0
        self.open_stage(successor="snapshotter", hello=False)
        self.read(
            self.bus.subscriber(["snapshotter"], [TOPIC_ACKNOWLEDGE]),
            self.receive_broadcast,
            most=256,
        )
        self.read(self.bus.pull(self.stage), self.receive_data, self.core.wants_input)

    def new_meter(self) -> WalMeter:
        return WalMeter(self)

    @property
    def opened(self) -> Log:
        """The log, once `prepare` has opened it."""
        return self._log

    def on_data(self, message: Message, now_ns: int) -> None:
        if not isinstance(message, Executed):
            return
        skip = self.core.accept(message)
        if skip is None:
            return
        if skip:
            message = _without(message, skip)
        if message.count == 1 and memoryview(message.records)[0] == Kind.FUNCTION_REGISTERED:
            # Before the record: whatever the log names is on disk.
            self._keep_binary(message)
        words = message.links * 8
        entries = words + message.params * 8
        extras = memoryview(message.extras)
        self._log.append(
            LogBatch(
                term=message.term,
                first_id=message.first,
                timestamp_ns=message.timestamp,
                gateway=message.gateway,
                request=message.request,
                records=message.records,
                links=extras[:words],
                params=extras[words:entries],
                entries=extras[entries:],
            ),
            self.core.durable,
        )
        self._appended_ns = now_ns
        self.core.written(message)

    def _keep_binary(self, message: Executed) -> None:
        records = np.frombuffer(message.records, RECORD_DTYPE)
        params = np.frombuffer(message.extras, "<i8")[message.links :]
        for version in registrations_in(message.first, records, params):
            folder = data_folder(self.settings)
            keep_binary(self.storage, folder, version.name, version.version, message.binary)

    def on_control(self, peer: bytes, message: Message, now_ns: int) -> None:
        if isinstance(message, Hello):
            self.core.on_hello(peer, message)

    def on_broadcast(self, message: Message, now_ns: int) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, now_ns)

    def step(self, now_ns: int) -> None:
        if self._committer.failure is not None:
            raise self._committer.failure
        if self.core.term_due:
            # Seldom, and nothing may go on before it: no group commit for this one.
            self._log.write_marker(
                self.core.durable, term=max(hello.term for _, hello in self.core.term_due)
            )
            self._log.sync()
            self.core.term_kept()
        durable = self._committer.durable
        if durable > self.core.durable:
            self.core.synced(durable)
        if (
            durable == self._log.next_id - 1
            and durable > self._log.certified_index
            and now_ns - self._appended_ns >= IDLE_NS
        ):
            self._log.write_marker(durable)

    def finished(self) -> bool:
        # What is written is made durable by `close`, and the snapshotter can read the files.
        return True

    def close(self) -> None:
        super().close()
        committer = getattr(self, "_committer", None)
        if committer is not None:
            committer.close()
        log = getattr(self, "_log", None)
        if log is not None:
            if committer is not None and committer.failure is None and log.failure is None:
                log.close()
            else:
                log.abandon()


def _without(message: Executed, skip: int) -> Executed:
    """The message without its first `skip` transactions, which the log has already."""
    known = np.frombuffer(message.records, RECORD_DTYPE, skip)
    links, params, entries = count_extras(known)
    extras = memoryview(message.extras)
    words = message.links * 8
    calls = words + message.params * 8
    return replace(
        message,
        first=message.first + skip,
        count=message.count - skip,
        records=memoryview(message.records)[skip * RECORD_SIZE :],
        extras=b"".join(
            (
                extras[links * 8 : words],
                extras[words + params * 8 : calls],
                extras[calls + entries * ENTRY_SIZE :],
            )
        ),
        links=message.links - links,
        params=message.params - params,
        entries=message.entries - entries,
    )
