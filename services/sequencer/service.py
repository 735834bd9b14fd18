"""The sequencer's shell: sockets and clocks around `SequencerCore`."""

from __future__ import annotations

import time
from typing import Final

from tallybus.common import logs
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    ClockQuery,
    Message,
    Refused,
    Request,
    StageStatus,
    Welcome,
)
from tallybus.common.service.shell import Shell
from tallybus.common.times import steady_ns
from tallybus.services.sequencer.clock import Moment
from tallybus.services.sequencer.core import SequencerCore
from tallybus.services.sequencer.metrics import SequencerMeter

REMIND_NS: Final = 600_000_000_000
"""How often the log says again that the wall clock is not followed."""


class SequencerService(Shell):
    """One sequencer. It holds nothing that must survive it: it asks the transactor where to go
    on."""

    stage = "sequencer"
    core: SequencerCore

    def prepare(self) -> None:
        self.lock_run_folder()
        self.core = SequencerCore(
            self.new_incarnation(), self.settings.bus.max_in_flight, self.heartbeat_ns
        )
        self._clock_told = ""
        self._clock_told_ns = 0
        self.open_stage(successor="transactor")
        self.read(
            self.bus.subscriber(["transactor"], [TOPIC_ACKNOWLEDGE]),
            self.receive_broadcast,
            most=256,
        )
        self.read(self.bus.pull(self.stage), self.receive_data, self.core.wants_input)

    def new_meter(self) -> SequencerMeter:
        return SequencerMeter(self)

    def step(self, now_ns: int) -> None:
        if self.core.running:
            self.core.clock.look(moment())
            self._tell_clock(now_ns)

    def _tell_clock(self, now_ns: int) -> None:
        """Say in the log when the wall clock begins and ends to be one that is not followed."""
        clock = self.core.clock
        state = "held" if clock.held else "behind" if clock.behind else ""
        if state == self._clock_told and (not state or now_ns - self._clock_told_ns < REMIND_NS):
            return
        self._clock_told, self._clock_told_ns = state, now_ns
        fields = logs.fields(ahead_seconds=round(clock.ahead_ns / 1e9, 3))
        if clock.held:
            self.log.warning(
                "the wall clock has jumped ahead and is not followed; look at it with "
                "`tallybus clock`, and if it is right, tell so with `tallybus clock accept`",
                extra=fields,
            )
        elif clock.behind:
            self.log.warning(
                "the wall clock is behind the ledger's time, which goes on without it; "
                "if it is wrong, set it",
                extra=fields,
            )
        else:
            self.log.info("the wall clock is followed again", extra=fields)

    def on_data(self, message: Message, now_ns: int) -> None:
        if isinstance(message, Request):
            self.core.on_request(message, moment())

    def on_control(self, peer: bytes, message: Message, now_ns: int) -> None:
        if isinstance(message, ClockQuery):
            if message.accept and self.core.running and self.core.clock.held:
                self.log.warning(
                    "an operator accepts the wall clock",
                    extra=logs.fields(ahead_seconds=round(self.core.clock.ahead_ns / 1e9, 3)),
                )
            self.core.on_clock_query(peer, message, moment())

    def on_broadcast(self, message: Message, now_ns: int) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, now_ns)

    def on_reply(self, message: Message, now_ns: int) -> None:
        if isinstance(message, Welcome):
            self.core.on_welcome(message, moment())
        elif isinstance(message, Refused):
            self.core.on_refused(message)


def moment() -> Moment:
    """Both clocks, now."""
    return Moment(time.time_ns(), steady_ns())
