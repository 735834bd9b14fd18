"""The sequencer's shell: sockets and clocks around `SequencerCore`."""

from __future__ import annotations

import time
from typing import Final

from tallybus.common import logs
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    Message,
)
from tallybus.common.service.core import Source
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
        self.core = SequencerCore(
            self.new_incarnation(), self.settings.bus.max_in_flight, self.heartbeat_ns
        )
        self._clock_told = ""
        self._clock_told_ns = 0
        self.sockets.open_stage(successor="transactor")
        self.sockets.subscribe(["transactor"], [TOPIC_ACKNOWLEDGE])
        self.sockets.open_data(self.core.wants_input)

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
                "`tallybus clock`, and if it is right, accept it with `tallybus clock accept`",
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

    def take(self, source: Source, message: Message, now_ns: int) -> None:
        self.core.moment = moment()
        super().take(source, message, now_ns)
        while self.core.accepted_ahead_ns:
            ahead_ns = self.core.accepted_ahead_ns.pop()
            self.log.warning(
                "an operator has accepted the wall clock",
                extra=logs.fields(ahead_seconds=round(ahead_ns / 1e9, 3)),
            )


def moment() -> Moment:
    """Both clocks, now."""
    return Moment(time.time_ns(), steady_ns())
