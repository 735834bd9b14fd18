"""The log stage's shell: the log on disk, its committer thread, and sockets around `WalCore`."""

from __future__ import annotations

import os
import time
from typing import Final

from tallybus.common import logs
from tallybus.common.batch import Batch
from tallybus.common.buffers import Buffer
from tallybus.common.bus.messages import TOPIC_ACKNOWLEDGE, Message
from tallybus.common.functions.registry import registrations
from tallybus.common.service.core import Source
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import data_folder
from tallybus.services.wal.binaries import keep_binary, remove_unfinished
from tallybus.services.wal.committer import Committer
from tallybus.services.wal.core import WalCore
from tallybus.services.wal.log import Log
from tallybus.services.wal.metrics import WalMeter

IDLE_NS: Final = 50_000_000
"""After this long without a batch a marker records that everything so far is durable
(ADR 0002)."""


class WalService(Shell):
    """One log stage on one data folder, which it locks."""

    stage = "wal"
    core: WalCore

    def prepare(self) -> None:
        ledger = self.settings.ledger
        folder = data_folder(self.settings)
        self.sockets.open_publisher()
        started = time.monotonic()
        self._log = Log.open(
            folder,
            self.storage,
            ledger.transactions_per_segment,
            int.from_bytes(os.urandom(8), "little"),
            self.watch.report_progress("verifying the log"),
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
        self._committer = Committer(self._log, self.loop.wake)
        if isinstance(self.meter, WalMeter):
            self._committer.measured = self.meter.sync_seconds.observe
        self._committer.start()
        self._appended_ns = 0
        self.sockets.open_stage(successor="snapshotter", hello=False)
        self.sockets.subscribe(["snapshotter"], [TOPIC_ACKNOWLEDGE])
        self.sockets.open_data(self.core.wants_input)

    def new_meter(self) -> WalMeter:
        return WalMeter(self)

    @property
    def opened(self) -> Log:
        """The log, once `prepare` has opened it."""
        return self._log

    def take(self, source: Source, message: Message, now_ns: int) -> None:
        super().take(source, message, now_ns)
        while self.core.due:
            batch, binary = self.core.due[0]
            if binary is not None:
                # Before the record: whatever the log names is on disk.
                self._keep_binary(batch, binary)
            self._log.append(batch, self.core.durable_index)
            self._appended_ns = now_ns
            self.core.written()

    def _keep_binary(self, batch: Batch, binary: Buffer) -> None:
        for version in registrations(batch):
            folder = data_folder(self.settings)
            keep_binary(self.storage, folder, version.name, version.version, binary)

    def step(self, now_ns: int) -> None:
        if self._committer.failure is not None:
            raise self._committer.failure
        if self.core.term_due:
            # Seldom, and nothing may go on before it: no group commit for this one.
            self._log.write_marker(
                self.core.durable_index, term=max(hello.term for _, hello in self.core.term_due)
            )
            self._log.sync()
            self.core.term_kept()
        durable_index = self._committer.durable_index
        if durable_index > self.core.durable_index:
            self.core.on_durable(durable_index)
        if (
            durable_index == self._log.next_id - 1
            and durable_index > self._log.durable_index
            and now_ns - self._appended_ns >= IDLE_NS
        ):
            self._log.write_marker(durable_index)

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
