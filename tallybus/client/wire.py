"""The socket of a client: one DEALER to one gateway, never blocking. Both shells drive it.

The options of its sockets are set here and, for looks, in `looks.py`. A wire is not thread-safe:
whoever shares one holds a lock around every call. `fd` becomes readable when `pump` has something
to do. It says so once: sending may use the signal up, which is why `pump` always receives as well.

Over tcp a handshake may be refused. libzmq says so to whoever watches the socket, and to nobody
else. `monitor_fd` becomes readable then, and stays so until `pump` is called with `told`.
"""

from __future__ import annotations

import errno
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import zmq
from numpy.typing import NDArray

from tallybus.client import context as contexts
from tallybus.client import looks
from tallybus.client.access import Handshake, Look
from tallybus.client.codec import Payload
from tallybus.client.core import Call, Core
from tallybus.client.keys import UNENCRYPTED
from tallybus.client.submit import SubmitBatch
from tallybus.common.bus.monitor import SocketEvent, SocketMonitor
from tallybus.common.security.curve import secure_client
from tallybus.common.security.keys import ClientKey
from tallybus.common.settings import endpoints
from tallybus.common.settings.endpoints import Place, as_given
from tallybus.errors import InvalidRequest, TooManyOpenFiles

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
        if call.unsure:
            return  # a connection that was given up may still be reading it
        for frame in (request.frame, request.params):
            if not isinstance(frame, zmq.Frame) or len(frame) < MIN_REUSED_BYTES:
                continue
            if len(self._free) > MAX_FREE_SIZES:
                self._free.clear()
            frames = self._free.setdefault(len(frame), [])
            if len(frames) < MAX_FREE_FRAMES:
                frames.append(frame)


def places_of(endpoint: object) -> int:
    """At how many places the gateway at this endpoint may be found."""
    return len(endpoints.to_connect(endpoint)) if isinstance(endpoint, str) else 1


class Wire:
    """A connection to the gateway at `endpoint`, with a routing id that it keeps over reconnects.

    With `key` it is encrypted, and goes to no other gateway than the key's.
    """

    def __init__(
        self,
        endpoint: str,
        context: zmq.Context[Any] | None = None,
        key: ClientKey | None = None,
    ) -> None:
        if not isinstance(endpoint, str):
            raise InvalidRequest(
                "endpoint must be a text such as tcp://127.0.0.1:5550, "
                f"not {type(endpoint).__name__}",
                field="endpoint",
                value=endpoint,
            )
        self._endpoint = endpoint
        self._key = key
        self._places = endpoints.to_connect(endpoints.fixed(endpoint))
        self._place = 0
        self._monitor: SocketMonitor | None = None
        self._look: Look | None = None
        self._looking: looks.Looking | None = None
        self._shares = context is None
        self._context: zmq.Context[Any] = contexts.acquire() if context is None else context
        try:
            with contexts.room_for_a_client(self._context):
                self._open()
        except (InvalidRequest, TooManyOpenFiles, zmq.ZMQError):
            self.close()
            raise
        except BaseException:
            # A signal, for example, has interrupted this. A socket may be open that the traceback
            # alone knows. Ending the context would wait for it, so the context lives on.
            self._shares = False
            self.close()
            raise
        self._connection: int | None = 1
        """Of `Access.connection`: the one that there is."""
        self.fd: int = self._socket.FD
        self.monitor_fd: int | None = None if self._monitor is None else self._monitor.socket.FD

    def _open(self) -> None:
        self._socket = self._context.socket(zmq.DEALER, socket_class=zmq.Socket)
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
            # These find a dead host. ZMTP heartbeats would too, but libzmq 4.3 aborts the process
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
            if self._key is not None:
                secure_client(self._socket, self._key.pair, self._key.gateway)
            if not self._endpoint.startswith(UNENCRYPTED):
                self._monitor = SocketMonitor(self._socket, looks.VERDICTS)
            self._connect_to(self._places[0])
        except (zmq.ZMQError, UnicodeError) as error:
            if getattr(error, "errno", 0) == errno.EMFILE:
                raise
            raise InvalidRequest(
                f"cannot connect to {self._endpoint!r}: {error}",
                field="endpoint",
                value=self._endpoint,
            ) from error

    def pump(self, core: Core, now: int, told: bool = False) -> None:
        """Sends and receives all that can be without waiting; then `fd` tells when there is more.

        `told`: `monitor_fd` is readable.
        """
        try:
            while True:
                while (frames := core.next_message(now)) is not None:
                    if not self._send(frames):
                        core.message_refused()
                        break
                    core.message_sent(now)
                # Asking for the events, and nothing else, arms the descriptor again.
                while (events := int(self._socket.get(_EVENTS))) & _IN:
                    core.receive(self._socket.recv_multipart(_DONTWAIT), now)
                stalled = core.has_message
                if not (stalled and events & _OUT):
                    break
            access = core.access
            if (
                told
                or stalled
                or access.look is not None
                or self._look is not None
                or access.connection != self._connection
            ):
                self._tend(core, now, stalled)
        except zmq.ContextTerminated:
            core.close()

    def _tend(self, core: Core, now: int, stalled: bool) -> None:
        """Tells how handshakes went, and does what follows from it. Seldom called."""
        access = core.access
        if self._monitor is not None:
            told = [looks.meaning(event) for event in self._monitor.read() if self._is_here(event)]
            if told and told[-1] is not None:
                # Those before it are of connections that are gone.
                core.handshake(told[-1], now)
        if stalled and core.has_message:
            access.stalled(now)
        if access.look is not None and access.look is self._look:
            core.looked(Handshake.NOTHING if self._looking is None else self._looking.seen(), now)
        if access.connection != self._connection:
            self._connect(access.connection, access.place)
        if access.look is not self._look:
            self._look_for(access.look)

    def _is_here(self, event: SocketEvent) -> bool:
        """Whether an event is of the place where the gateway is looked for now, as far as it says.

        One of the place before may come late, and would make this one look good.
        """
        here = self._places[self._place].endpoint
        return event.endpoint == here or all(
            event.endpoint != place.endpoint for place in self._places
        )

    def _connect(self, connection: int | None, place: int) -> None:
        if self._connection is not None:
            # What libzmq has given up it does not connect again by itself; this forgets it.
            with suppress(zmq.ZMQError):
                self._socket.disconnect(as_given(self._places[self._place].endpoint))
        self._connection = connection
        if connection is not None:
            self._place = place % len(self._places)
            self._connect_to(self._places[self._place])

    def _connect_to(self, place: Place) -> None:
        # What is set holds for the connections made from then on.
        self._socket.set(zmq.IPV6, place.ipv6)
        self._socket.connect(as_given(place.endpoint))

    def _look_for(self, look: Look | None) -> None:
        if self._looking is not None:
            self._looking.close()
            self._looking = None
        self._look = look
        if look is not None and self._key is not None:
            # Where the process has no room for another socket, nothing will be seen.
            with suppress(zmq.ZMQError):
                self._looking = looks.start(
                    look, self._context, self._places[self._place], self._key
                )

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
        if self._looking is not None:
            self._looking.close()
            self._looking = None
        if self._monitor is not None:
            self._monitor.close()
        # Where there was no room for one, there is none.
        if hasattr(self, "_socket"):
            self._socket.close(linger=0)
        if self._shares:
            self._shares = False
            contexts.release(self._context)
