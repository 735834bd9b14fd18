"""What a core has put out is sent here: broadcasts, batches, answers, and questions, in this order.

Nothing waits here for long. A batch that the successor's socket does not take stays with the core.
Anything else that is lost is asked for again by the service that misses it.
"""

from __future__ import annotations

import logging
import time

from tallybus.common import logs
from tallybus.common.bus.messages import Message, encode
from tallybus.common.bus.sockets import Port
from tallybus.common.service.core import StageCore
from tallybus.common.service.loop import Output


class Outbox:
    """The sending sockets of one stage, those that it has. `StageSockets` puts them in."""

    def __init__(self, log: logging.Logger) -> None:
        self.publisher: Port | None = None
        """For broadcasts."""
        self.successor: Output | None = None
        """For batches."""
        self.control: Port | None = None
        """For answers to those who said hello or asked here."""
        self.questions: Port | None = None
        """For hellos and questions to another stage."""
        self._log = log
        self._rewinds = 0

    def broadcast(self, topic: bytes, message: Message) -> None:
        """Send to whoever has subscribed, if there is a socket for it yet."""
        if self.publisher is not None:
            self.publisher.send([topic, *encode(message)])

    def send(self, core: StageCore) -> None:
        """Everything that the core has put out and that can be sent now."""
        link = core.outgoing
        if link is not None and link.rewinds != self._rewinds:
            self._rewinds = link.rewinds
            self._log.info(
                "sending again",
                extra=logs.fields(peer=link.peer, expected=link.expected, rewinds=link.rewinds),
            )
        if core.broadcasts and self.publisher is not None:
            for topic, broadcast in core.broadcasts:
                self.publisher.send([topic, *encode(broadcast)])
            core.broadcasts.clear()
        successor = self.successor
        if successor is not None:
            successor.blocked = False
            # Outcomes were broadcast first: what reaches the log has been told as well.
            while (message := core.next_data()) is not None:
                if not successor.port.send(encode(message)):
                    successor.blocked = True
                    break
                # Not the turn's time: a long turn would look like a stall.
                core.data_sent(time.monotonic_ns())
        if core.replies and self.control is not None:
            for peer, reply in core.replies:
                self.control.send_to(peer, encode(reply))
            core.replies.clear()
        if core.requests and self.questions is not None:
            for request in core.requests:
                # Hellos and questions are repeated until they are answered, so none is queued here.
                self.questions.send(encode(request))
            core.requests.clear()
