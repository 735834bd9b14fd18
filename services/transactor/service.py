"""The transactor's shell: recovery from the files, and sockets around `TransactorCore`."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from tallybus.common import logs
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
)
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import data_folder
from tallybus.common.snapshot.format import SnapshotMismatch
from tallybus.common.wal.reader import DamagedLog
from tallybus.services.transactor.core import TransactorCore
from tallybus.services.transactor.functions.codefiles import (
    FOLDER_NAME,
    CodeFiles,
    identity_of,
)
from tallybus.services.transactor.functions.limits import FunctionLimits, limits_from
from tallybus.services.transactor.metrics import TransactorMeter
from tallybus.services.transactor.recovery import Interrupted, recover_engine
from tallybus.services.transactor.registrar import Registrar
from tallybus.services.transactor.warm import WindowWarmer

if TYPE_CHECKING:
    from tallybus.services.transactor.functions.watcher import FunctionWatcher


class TransactorService(Shell):
    """One transactor. It reads the data folder while it starts and writes nothing to it but the
    machine code of functions, in a folder of its own, which may be elsewhere."""

    stage = "transactor"
    core: TransactorCore

    def prepare(self) -> None:
        self._warmer: WindowWarmer | None = None
        self._mismatched_at = 0
        self._registrar: Registrar | None = None
        self._watcher: FunctionWatcher | None = None
        self.core = TransactorCore(
            self.new_incarnation(),
            self.settings.bus.max_in_flight,
            self.heartbeat_ns,
            limits_from(self.settings.functions).budget,
        )
        if isinstance(self.meter, TransactorMeter):
            self.core.count = self.meter.outcomes.count
        self.sockets.open_stage(successor="wal")
        self.sockets.subscribe(["wal"], [TOPIC_ACKNOWLEDGE])
        # A few at a time, so that outcomes are told soon after they are known.
        self.sockets.open_data(self.core.wants_input, most=8)

    def new_meter(self) -> TransactorMeter:
        return TransactorMeter(self)

    def step(self, now_ns: int) -> None:
        if self.core.recovering:
            self._recover()
        self.core.go_on()
        if self._warmer is not None:
            self._warmer.keep_up()
        if self._registrar is not None:
            self._look_at_modules(self._registrar)
            if self._watcher is None and self._registrar.any_live:
                self._watch(self._registrar)

    def timeout_ns(self, now_ns: int) -> int:
        return 0 if self.core.may_go_on else super().timeout_ns(now_ns)

    def finished(self) -> bool:
        return not self.core.under_way and super().finished()

    def idle(self) -> None:
        if self._warmer is not None:
            self._warmer.idle()

    def _look_at_modules(self, registrar: Registrar) -> None:
        while self.core.modules:
            module = self.core.modules.popleft()
            refusal = registrar.refusal(module.name, module.binary)
            if refusal is not None:
                self.core.prepared(module, refusal)
            elif (full := registrar.ask(module, module.binary, module.client)) is not None:
                self.core.prepared(module, full, busy=True)
        for module, refusal in registrar.prepared.done():
            self.core.prepared(module, refusal or registrar.refusal(module.name, module.binary))

    def _watch(self, registrar: Registrar) -> None:
        # Not for those who do without functions.
        from tallybus.services.transactor.functions.watcher import FunctionWatcher

        self._watcher = FunctionWatcher(
            registrar.functions, data_folder(self.settings), self.log, self.storage
        )
        self._watcher.start()

    def close(self) -> None:
        super().close()
        watcher: FunctionWatcher | None = getattr(self, "_watcher", None)
        if watcher is not None:
            watcher.close()
        registrar = getattr(self, "_registrar", None)
        if registrar is not None:
            registrar.close()

    def _code_files(self, limits: FunctionLimits) -> CodeFiles | None:
        chosen = self.settings.functions.compiled
        folder = data_folder(self.settings) / FOLDER_NAME if chosen is None else chosen

        def tell(why: str) -> None:
            self.log.warning(
                "the machine code of a function is not kept: the next start compiles it again",
                extra=logs.fields(reason=why),
            )

        return CodeFiles(folder, identity_of(limits), limits.code_bytes, tell=tell)

    def _recover(self) -> None:
        welcome = self.core.welcome
        assert welcome is not None
        started = time.monotonic()
        ledger = self.settings.ledger
        limits = limits_from(self.settings.functions)
        try:
            recovered = recover_engine(
                data_folder(self.settings),
                cluster=welcome.cluster,
                next_id=welcome.next,
                term=welcome.term,
                incarnation=self.core.incarnation,
                max_accounts=ledger.max_accounts,
                transactions_per_segment=ledger.transactions_per_segment,
                seed=int.from_bytes(os.urandom(8), "little"),
                limits=limits,
                code_files=self._code_files(limits),
                progress=self.watch.report_progress("replaying the log"),
                compiling=self.watch.report_progress("compiling functions"),
                stopping=lambda: self.stopping,
            )
        except Interrupted:
            return
        except (SnapshotMismatch, DamagedLog):
            # Another transactor may have taken over and moved on since, or the log stage has died
            # and cuts off what it never synced: then it has another answer now.
            if self._mismatched_at == welcome.next:
                raise
            self._mismatched_at = welcome.next
            self.core.ask_again()
            return
        for damage in recovered.rejected:
            self.log.warning("passed over a snapshot", extra=logs.fields(reason=str(damage)))
        self._registrar = recovered.registrar
        self._registrar.prepared.notify = self.loop.wake
        compiling = self.watch.report_progress("waiting for a module to be compiled")
        self._registrar.waiting = lambda: compiling(0, 0)
        for version, reason in recovered.unusable:
            self.log.error(
                "a registered function cannot run here: its calls end SUSPENDED until it is "
                "replaced, or what is in its way is mended and the transactor starts again",
                extra=logs.fields(function=version.name, version=version.version, reason=reason),
            )
        if self._registrar.any_live:
            # Before anything is executed.
            self._watch(self._registrar)
        self.core.recovered(
            recovered.engine, recovered.registrar, recovered.results, recovered.stamp
        )
        if self.settings.bus.transport != "inproc":
            # An embedded ledger is opened for a moment more often than for good.
            self._warmer = WindowWarmer(recovered.engine.window)
        self.log.info(
            "recovered",
            extra=logs.fields(
                next=welcome.next,
                replayed=recovered.replayed,
                seconds=round(time.monotonic() - started, 3),
            ),
        )
