"""What arrives on the sockets of a stage: it is read, noted, and handed to the service.

A message that cannot be read is counted and dropped, and the log tells of it once in a while. Each
method is the handler of one kind of socket, for `Loop.read`.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

from tallybus.common import logs
from tallybus.common.buffers import Buffer
from tallybus.common.bus.messages import (
    TOPIC_ACKNOWLEDGE,
    TOPIC_EVENT,
    TOPIC_METRICS,
    TOPIC_STATUS,
    FrameError,
    Message,
    StageStatus,
    decode,
)
from tallybus.common.metrics.counters import Meter
from tallybus.common.metrics.health import Vitals
from tallybus.common.service.core import (
    FROM_ANSWER,
    FROM_BROADCAST,
    FROM_DATA,
    Channel,
    Source,
)


class Addressee(Protocol):
    """Whom the messages are for: a service."""

    vitals: Vitals
    meter: Meter | None
    log: logging.Logger

    def take(self, source: Source, message: Message, now_ns: int) -> None:
        """A message that could be read."""


class Inbox:
    """Handlers of the sockets of one stage."""

    def __init__(self, service: Addressee) -> None:
        self._service = service

    def data(self, frames: list[Buffer], now_ns: int) -> None:
        """Of the socket for batches."""
        service = self._service
        try:
            message = decode(frames)
        except FrameError as error:
            self._dropped(error)
            return
        meter = service.meter
        if meter is None:
            service.take(FROM_DATA, message, now_ns)
        else:
            started_ns = time.monotonic_ns()
            service.take(FROM_DATA, message, now_ns)
            meter.handled(getattr(message, "count", 0), started_ns)

    def control(self, frames: list[Buffer], now_ns: int) -> None:
        """Of the socket on which others say hello and ask."""
        try:
            message = decode(frames[1:])
        except FrameError as error:
            self._dropped(error)
            return
        self._service.take(Source(Channel.CONTROL, bytes(frames[0])), message, now_ns)

    def reply(self, frames: list[Buffer], now_ns: int) -> None:
        """Of a socket on which this stage has asked."""
        try:
            message = decode(frames)
        except FrameError as error:
            self._dropped(error)
            return
        self._service.take(FROM_ANSWER, message, now_ns)

    def broadcast(self, frames: list[Buffer], now_ns: int) -> None:
        """Of a subscription."""
        if frames[0] not in (TOPIC_STATUS, TOPIC_ACKNOWLEDGE, TOPIC_EVENT, TOPIC_METRICS):
            return
        try:
            message = decode(frames[1:])
        except FrameError as error:
            self._dropped(error)
            return
        if isinstance(message, StageStatus):
            self._service.vitals.heard[message.stage] = now_ns
        self._service.take(FROM_BROADCAST, message, now_ns)

    def _dropped(self, error: FrameError) -> None:
        vitals = self._service.vitals
        vitals.malformed += 1
        if vitals.malformed & (vitals.malformed - 1) == 0:
            self._service.log.warning(
                "dropped a malformed message",
                extra=logs.fields(reason=str(error), dropped=vitals.malformed),
            )
