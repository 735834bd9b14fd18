"""The sequencer's shell: sockets around `SequencerCore`."""

from __future__ import annotations

import time

from tallybus.common.frames import (
    TOPIC_ACKNOWLEDGE,
    Message,
    Refused,
    Request,
    StageStatus,
    Welcome,
)
from tallybus.common.service import Shell
from tallybus.services.sequencer.core import SequencerCore


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
        self.open_stage(successor="transactor")
        self.read(
            self.bus.subscriber(["transactor"], [TOPIC_ACKNOWLEDGE]),
            self.receive_broadcast,
            most=256,
        )
        self.read(self.bus.pull(self.stage), self.receive_data, self.core.wants_input)

    def on_data(self, message: Message, now_ns: int) -> None:
        if isinstance(message, Request):
            self.core.on_request(message, time.time_ns())

    def on_broadcast(self, message: Message, now_ns: int) -> None:
        if isinstance(message, StageStatus):
            self.core.on_status(message, now_ns)

    def on_reply(self, message: Message, now_ns: int) -> None:
        if isinstance(message, Welcome):
            self.core.on_welcome(message, now_ns)
        elif isinstance(message, Refused):
            self.core.on_refused(message)
