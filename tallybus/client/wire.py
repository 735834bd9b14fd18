"""The socket of a client: one DEALER to one gateway, never blocking. Both shells drive it.

The only module of the client that decides socket options. Not thread-safe: whoever shares a wire
holds a lock around every call. `fd` becomes readable when `pump` has something to do, and tells it
only once: sending may use its signal up, which is why `pump` always receives as well.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import zmq
from numpy.typing import NDArray

from tallybus.client.codec import Payload
from tallybus.client.core import Call, Core
from tallybus.client.submit import SubmitBatch
from tallybus.errors import InvalidRequest

MAX_MESSAGE_BYTES: Final = 256 * 1024 * 1024
SOCKET_BUFFER_BYTES: Final = 4 << 20
"""Room for a whole batch in the system's buffer: sending one is then one step, not several."""
MAX_QUEUED_MESSAGES: Final = 1000
RECONNECT_MS: Final = 20
MAX_RECONNECT_MS: Final = 100
KEEPALIVE_IDLE_S: Final = 5
KEEPALIVE_INTERVAL_S: Final = 1
KEEPALIVE_PROBES: Final = 5
UNACKNOWLEDGED_MS: Final = 10_000
"""After this long without an acknowledgement by its host a tcp connection is given up."""
MIN_REUSED_BYTES: Final = 64 * 1024
MAX_FREE_FRAMES: Final = 16
MAX_FREE_SIZES: Final = 4
"""Frames kept for reuse: so many of one size, and so many sizes."""
# As plain integers: operators of zmq's enumerations cost microseconds.
_EVENTS: Final = int(zmq.EVENTS)
_IN: Final = int(zmq.POLLIN)
_OUT: Final = int(zmq.POLLOUT)
_DONTWAIT: Final = int(zmq.DONTWAIT)
_DONTWAIT_MORE: Final = int(zmq.DONTWAIT | zmq.SNDMORE)


class FramePool:
    """Memory of batches on their way: the caller's arrays are copied here, once.

    So a caller may change its array at any time, and what is sent again is what was sent before.
    Sending the array itself would save few of the 25 µs that 16,384 records cost, and could not be
    undone when a call ends without an answer. New memory for each batch would cost six times that
    in page faults, so the frames of answered calls are used again.
    """

    def __init__(self, endpoint: object) -> None:
        # Within a process the receiver gets the very same memory, and may still look at it.
        self._reuses = isinstance(endpoint, str) and not endpoint.startswith("inproc:")
        self._free: dict[int, list[zmq.Frame]] = {}

    def freeze(self, array: NDArray[Any]) -> Payload:
        """A contiguous array as a frame of its own memory, which can be sent many times."""
        data = array.reshape(-1).view(np.uint8)
        try:
            frame = self._free[data.nbytes].pop()
        except (KeyError, IndexError):
            return zmq.Frame(data.data, copy=True)
        np.copyto(np.frombuffer(frame.buffer, np.uint8), data)
        return frame

    def recycle(self, call: Call[Any]) -> None:
        """Lets go of the request of a call that is done.

        After an answer the gateway has every byte of the batch, so nobody reads the frame any more.
        After an error it may still be in a queue, and is left to the socket.
        """
        request, call.request = call.request, None
        if not self._reuses or call.error is not None or not isinstance(request, SubmitBatch):
            return
        for frame in (request.frame, request.params):
            if not isinstance(frame, zmq.Frame) or len(frame) < MIN_REUSED_BYTES:
                continue
            if len(self._free) > MAX_FREE_SIZES:
                self._free.clear()
            frames = self._free.setdefault(len(frame), [])
            if len(frames) < MAX_FREE_FRAMES:
                frames.append(frame)


class Wire:
    """A connection to the gateway at `endpoint`, with a routing id that it keeps over
    reconnects.
    """

    def __init__(self, endpoint: str, context: zmq.Context[Any] | None = None) -> None:
        if not isinstance(endpoint, str):
            raise InvalidRequest(
                "endpoint must be a text such as tcp://127.0.0.1:5550, "
                f"not {type(endpoint).__name__}",
                field="endpoint",
                value=endpoint,
            )
        self._own_context = zmq.Context() if context is None else None
        self._socket: zmq.Socket[bytes] = (self._own_context or context or zmq).socket(
            zmq.DEALER, socket_class=zmq.Socket
        )
        options: dict[int, int | bytes] = {
            zmq.ROUTING_ID: b"\x01" + secrets.token_bytes(15),
            zmq.LINGER: 0,
            # Nothing is queued for a gateway that is not there: what times out before there is a
            # connection is never sent.
            zmq.IMMEDIATE: 1,
            zmq.SNDHWM: MAX_QUEUED_MESSAGES,
            zmq.RCVHWM: MAX_QUEUED_MESSAGES,
            zmq.MAXMSGSIZE: MAX_MESSAGE_BYTES,
            zmq.SNDBUF: SOCKET_BUFFER_BYTES,
            zmq.RCVBUF: SOCKET_BUFFER_BYTES,
            zmq.RECONNECT_IVL: RECONNECT_MS,
            zmq.RECONNECT_IVL_MAX: MAX_RECONNECT_MS,
            # A dead host is noticed so, and not by ZMTP heartbeats: libzmq 4.3 aborts the process
            # when one is due on a connection whose peer died while its queue was full.
            zmq.TCP_KEEPALIVE: 1,
            zmq.TCP_KEEPALIVE_IDLE: KEEPALIVE_IDLE_S,
            zmq.TCP_KEEPALIVE_INTVL: KEEPALIVE_INTERVAL_S,
            zmq.TCP_KEEPALIVE_CNT: KEEPALIVE_PROBES,
            zmq.TCP_MAXRT: UNACKNOWLEDGED_MS,
        }
        for option, value in options.items():
            self._socket.set(option, value)
        try:
            self._socket.connect(endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise InvalidRequest(
                f"cannot connect to {endpoint!r}: {error}", field="endpoint", value=endpoint
            ) from error
        self.fd: int = self._socket.FD

    def pump(self, core: Core, now: int) -> None:
        """Sends and receives all that can be without waiting; then `fd` tells when there is
        more.
        """
        try:
            while True:
                while (frames := core.next_message(now)) is not None and self._send(frames):
                    core.message_sent(now)
                # Asking for the events, and nothing else, arms the descriptor again.
                while (events := int(self._socket.get(_EVENTS))) & _IN:
                    core.receive(self._socket.recv_multipart(_DONTWAIT), now)
                if not (core.has_message and events & _OUT):
                    return
        except zmq.ContextTerminated:
            core.close()

    def _send(self, frames: Sequence[Payload]) -> bool:
        last = len(frames) - 1
        try:
            for index, frame in enumerate(frames):
                self._socket.send(frame, _DONTWAIT_MORE if index < last else _DONTWAIT)
        except zmq.Again:
            return False
        return True

    def close(self) -> None:
        """Closes the socket at once and frees what belongs to it."""
        self._socket.close(linger=0)
        if self._own_context is not None:
            self._own_context.term()
