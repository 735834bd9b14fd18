"""The whole ledger in one process: the same five services as threads over `inproc://`.

Same API as the client, same files on disk: a folder written by an embedded ledger can be served by
`tallybus up` afterwards, and the other way round. One process at a time may have a folder open.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from tallybus.client import forks
from tallybus.client.codec import Request
from tallybus.client.context import check_room
from tallybus.client.core import Call
from tallybus.client.sync import DEFAULT_TIMEOUT_SECONDS, Client
from tallybus.common.bus.sockets import Context, new_context
from tallybus.common.files import Storage
from tallybus.common.service.shell import Shell
from tallybus.common.settings.sections import SecuritySettings, Settings, load
from tallybus.common.stages import START_ORDER, STOP_ORDER
from tallybus.errors import (
    ForkedProcess,
    InvalidRequest,
    TallybusError,
    Timeout,
    Unavailable,
    Unreachable,
)
from tallybus.extras import need_server

T = TypeVar("T")
LEDGER_FILES: Final = 80
"""Descriptors that an embedded ledger takes, with some to spare."""
START_SECONDS: Final = 600.0
"""How long `open` may take: a long log is verified and replayed first."""


class ServiceFailed(TallybusError):
    """A service inside an embedded ledger ended. Fields: `service`; the reason is the
    `__cause__`."""

    def __init__(self, service: str, reason: BaseException) -> None:
        super().__init__(f"the {service} of the embedded ledger ended: {reason}")
        self.service = service


class Ledger(Client):
    """An embedded ledger on a data folder. Use `Ledger.open`, and close it, or use it in a
    `with`."""

    _threads: dict[str, _ServiceThread]
    _own_context: Context | None

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        start_timeout: float = START_SECONDS,
        settings: Settings | Mapping[str, object] | None = None,
        **overrides: object,
    ) -> Ledger:
        """Open the ledger in folder `path`, made when missing; returns when it answers.

        `overrides` are settings of the section `ledger`, such as `max_accounts=1000`. All others
        go into `settings`: a mapping of dotted names to values, as in `docs/configuration.md`, or
        what `load_settings` gives, which also reads files and the environment. `timeout` is the
        default of every method's. Raises a `ServiceError` of what keeps a service from starting:
        `LockHeld` when the folder is in use, `DamagedLog` when it is damaged, `SettingsError`;
        `MissingExtra` where only a client is installed; and TooManyOpenFiles.
        """
        need_server("an embedded ledger")
        if isinstance(settings, Settings):
            base = settings
        elif settings is not None and not isinstance(settings, Mapping):
            raise InvalidRequest(
                "settings must be a mapping of names to values, or what load_settings gives, not "
                f"a {type(settings).__name__}",
                field="settings",
            )
        else:
            base = load(environ={}, overrides=settings, overrides_origin="Ledger.open")
        if overrides:
            base = load(
                environ={},
                overrides={
                    **{entry.setting.key: entry.value for entry in base.effective()},
                    **{f"ledger.{name}": value for name, value in overrides.items()},
                },
                overrides_origin="Ledger.open",
            )
        name = uuid.uuid4().hex
        chosen = dataclasses.replace(
            base,
            ledger=dataclasses.replace(base.ledger, data=Path(path)),
            bus=dataclasses.replace(base.bus, transport="inproc", inproc_name=name),
            gateway=dataclasses.replace(base.gateway, endpoint=f"inproc://tallybus-{name}/clients"),
            # Nothing of it is on a network.
            security=SecuritySettings(),
        )
        check_room(LEDGER_FILES)
        context = new_context()
        threads: dict[str, _ServiceThread] = {}
        ledger: Ledger | None = None
        try:
            for stage in START_ORDER:
                threads[stage] = _ServiceThread(stage, chosen, context)
                threads[stage].start()
            ledger = cls(chosen.gateway.endpoint, timeout=timeout, context=context)
            ledger._threads = threads
            ledger._own_context = context
            ledger._wait_ready(start_timeout)
        except BaseException:
            if ledger is not None:
                ledger.close(wait=False)
            else:
                _stop(threads, context)
            raise
        return ledger

    def close(self, wait: bool = True) -> None:
        """As `Client.close`; then stop the services in pipeline order. May be called again."""
        try:
            super().close(wait)
        finally:
            _stop(self._threads, self._own_context)

    def _forked(self) -> None:
        """The services are threads of the parent: here is nothing to stop, and nothing to ask."""
        super()._forked()
        threads, context = getattr(self, "_threads", {}), getattr(self, "_own_context", None)
        forks.abandon((threads, context))
        self._threads = {}
        self._own_context = None

    def _reconnect_in_child(self) -> None:
        raise ForkedProcess(
            "this ledger is open in the process from which this one was forked. Use it there, or "
            "serve the folder with `tallybus up` and use a Client in every process"
        )

    def _wait_call(self, call: Call[T], timeout: float | None) -> T:
        try:
            return super()._wait_call(call, timeout)
        except (Timeout, Unreachable):
            self._tell_failure()
            raise

    def _call(self, request: Request[T], timeout: float | None) -> T:
        try:
            return super()._call(request, timeout)
        except (Timeout, Unreachable):
            self._tell_failure()
            raise

    def _tell_failure(self) -> None:
        """Say why nothing was answered, where that is known."""
        for stage, thread in self._threads.items():
            if thread.failure is not None:
                raise ServiceFailed(stage, thread.failure) from thread.failure

    def _wait_ready(self, seconds: float) -> None:
        attempts = max(1, int(seconds / 0.1))
        for _ in range(attempts):
            for thread in self._threads.values():
                if thread.failure is not None:
                    raise thread.failure
            try:
                self.pipeline_index(timeout=0.1)
                return
            except ServiceFailed as error:
                if error.__cause__ is not None:
                    raise error.__cause__ from None
                raise
            except (Timeout, Unavailable, Unreachable):
                continue
        raise Timeout(
            f"the embedded ledger was not ready within {seconds:g} seconds",
            request="open",
            level=None,
            seconds=seconds,
        )


class _ServiceThread(threading.Thread):
    """One service as a thread; `failure` is what ended it, if anything did."""

    def __init__(self, stage: str, settings: Settings, context: Context) -> None:
        super().__init__(name=f"tallybus-{stage}", daemon=True)
        module: Any = importlib.import_module(f"tallybus.services.{stage}.service")
        shell: type[Shell] = getattr(module, f"{stage.capitalize()}Service")
        self.shell = shell(settings, context, Storage())
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self.shell.run()
        except BaseException as error:  # noqa: BLE001 (told to whoever uses the ledger)
            self.failure = error


def _stop(threads: dict[str, _ServiceThread], context: Context | None) -> None:
    for stage in STOP_ORDER:
        thread = threads.get(stage)
        if thread is not None and thread.is_alive():
            thread.shell.stop()
            thread.join()
    if context is not None:
        context.destroy(linger=0)
