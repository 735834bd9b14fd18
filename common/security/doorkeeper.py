"""Who is let in on an encrypted connection: ZeroMQ's authentication protocol (ZAP), a small part.

A peer first proves that it owns its key. Then libzmq asks over a socket inside the process whether
to let it in, and lets no message pass before the answer. `decide` makes that answer. It is pure,
and refuses what it does not understand. `Doorkeeper` is a daemon thread that gives the answers. It
logs and counts refusals, and reads the grants anew when their files change. It reads files and
writes none. It fails closed: no thread, no answer, no connection.

The socket must be bound before any other of its context is, see `Doorkeeper.start`.
ADR 0013 says why it is CURVE, and why the handler is our own.
"""

from __future__ import annotations

import logging
import os
import socket as system_socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import zmq
from zmq.utils import z85

from tallybus.common import logs
from tallybus.common.security.curve import OPEN
from tallybus.common.security.keys import (
    CLIENTS_FOLDER,
    GATEWAY_NAME,
    Grant,
    KeyFileError,
    KeyPair,
    Role,
    good_grants,
    read_grants,
)
from tallybus.common.security.pairs import BUS, CLIENTS, Security

ENDPOINT: Final = "inproc://zeromq.zap.01"
PAUSE_SECONDS: Final = 0.1
"""After an error that should not happen: it must not take a processor."""
CLOSE_SECONDS: Final = 5.0
TRUST_SECONDS: Final = 10.0
"""How long grants count that could not be looked at: a disk may hang for ever."""
LOOK_SECONDS: Final = 1.0
"""How often the grants are looked at: what was revoked is refused after that."""

VERSION: Final = b"1.0"
MECHANISM: Final = b"CURVE"
PLAIN_MECHANISM: Final = b"NULL"
KEY_BYTES: Final = 32
_COMMON_FRAMES: Final = 6  # version, id, domain, address, identity, mechanism

ALLOWED: Final = b"200"
REFUSED: Final = b"400"
FAILED: Final = b"500"

UNKNOWN_KEY: Final = "unknown_key"
REVOKED_KEY: Final = "revoked_key"
MECHANISM_REASON: Final = "mechanism"
ERROR: Final = "error"
REASONS: Final = (UNKNOWN_KEY, REVOKED_KEY, MECHANISM_REASON, ERROR)
"""Why a connection is refused; `error` stands for what should not happen."""


@dataclass(frozen=True, slots=True)
class Admission:
    """Whose keys are let in, as 40 characters of Z85: `bus` for the domain of the services (empty:
    nobody), `grants` for that of the clients."""

    bus: bytes = b""
    grants: Mapping[bytes, Grant] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a request. `reason` is one of REASONS, or empty for a peer that is let in."""

    status: bytes
    reason: str = ""
    request: bytes = b""
    key: bytes = b""
    name: str = ""
    domain: str = ""
    address: str = ""

    def reply(self) -> list[bytes]:
        """The frames of the answer. The key of who is let in becomes the property `User-Id` of
        each message that arrives on the connection."""
        user = self.key if self.status == ALLOWED else b""
        return [VERSION, self.request, self.status, self.reason.encode("ascii"), user, b""]


def decide(frames: Sequence[bytes], admission: Admission) -> Decision:
    """What becomes of a request with these frames, the envelope's taken off. Raises nothing."""
    request = frames[1] if len(frames) > 1 else b""
    try:
        return _decide(frames, request, admission)
    except Exception:  # noqa: BLE001 (whatever it is, it lets nobody in)
        return Decision(FAILED, ERROR, request)


def _decide(frames: Sequence[bytes], request: bytes, admission: Admission) -> Decision:
    if len(frames) < _COMMON_FRAMES or frames[0] != VERSION:
        return Decision(FAILED, ERROR, request)
    domain = frames[2].decode("ascii", "replace")
    address = frames[3].decode("ascii", "replace")
    keys = frames[_COMMON_FRAMES:]
    if domain == OPEN and frames[5] == PLAIN_MECHANISM and not keys:
        # libzmq asks for this domain only where a socket was opened to all, as over ipc.
        return Decision(ALLOWED, "", request, domain=domain, address=address)
    if frames[5] != MECHANISM or len(keys) != 1 or len(keys[0]) != KEY_BYTES:
        return Decision(REFUSED, MECHANISM_REASON, request, domain=domain, address=address)
    key = z85.encode(keys[0])
    name = ""
    reason = UNKNOWN_KEY
    if domain == BUS:
        if admission.bus and key == admission.bus:
            reason = ""
    elif domain == CLIENTS:
        grant = admission.grants.get(key)
        if grant is not None:
            name = grant.name
            reason = REVOKED_KEY if grant.revoked else ""
    return Decision(REFUSED if reason else ALLOWED, reason, request, key, name, domain, address)


def gateway_grant(pair: KeyPair) -> Grant:
    """What the holder of the gateway's own key may do as a client: ask, and change nothing."""
    return Grant(name=GATEWAY_NAME, public=pair.public, role=Role.READ, created="")


class Doorkeeper:
    """The thread that answers for one context, until `close`.

    `grants` is the mapping in force: replaced whole, never changed. `changed` is called in the
    thread after that. `refused` counts by reason; only this thread writes those of REASONS.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        security: Security,
        folder: Path,
        log: logging.Logger,
        refused: dict[str, int],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._bus = b"" if security.bus is None else security.bus.public
        self._gateway = security.clients
        self._folder = folder
        self._log = log
        self._refused = refused
        self._changed = changed
        self._throttles = {reason: logs.Throttle() for reason in REASONS}
        self._seen: object = None
        self._settled = False
        self._look_at = 0.0
        self._looks = 0
        self._looks_seen = 0
        self._asked_at = 0.0
        self._unseen_s = 0.0
        self._complaints: list[str] = []
        self._closing = False
        self._wake_read, self._wake_write = system_socket.socketpair()
        self._wake_write.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="zap", daemon=True)
        self.grants: Mapping[bytes, Grant] = {}
        # Not a REP: one answer that could not be sent would end all others.
        self._socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)

    def start(self) -> None:
        """Read the grants and answer from now on. Before any socket of the context is bound: a
        request that finds no handler holds its connection up for half a minute.

        Raises KeyFileError when a grant cannot be used.
        """
        self._refused.update(dict.fromkeys(REASONS, 0))
        if self._gateway is not None:
            self._seen = _look(self._folder)
            self.grants = self._with_gateway(read_grants(self._folder))
        self._asked_at = time.monotonic()
        self._look_at = self._asked_at + LOOK_SECONDS
        self._socket.bind(ENDPOINT)
        self._thread.start()

    def trusted(self, now: float) -> Mapping[bytes, Grant]:
        """The grants to go by at this monotonic time; none when the files were not looked at for
        long, because a client whose key was revoked meanwhile must not stay in. To be asked often,
        by one thread.

        Time in which nobody asks does not count: after a pause of the process both go on.
        """
        if self._looks != self._looks_seen:
            self._looks_seen, self._unseen_s = self._looks, 0.0
        else:
            self._unseen_s += min(now - self._asked_at, TRUST_SECONDS / 10)
        self._asked_at = now
        return self.grants if self._unseen_s < TRUST_SECONDS else {}

    def close(self) -> None:
        """End the thread: nobody is let in any more. May be called again."""
        if self._closing:
            return
        self._closing = True
        with suppress(OSError):
            self._wake_write.send(b"\0")
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            return  # it waits for a disk that hangs, and is a daemon
        self._socket.close(linger=0)
        self._wake_read.close()
        self._wake_write.close()

    # -- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        while not self._closing:
            try:
                self._turn(poller)
            except zmq.ContextTerminated:
                return
            except Exception:  # noqa: BLE001 (told in the log)
                # Who was just asked for is not let in; others still are.
                held_back = self._throttles[ERROR].passes(time.monotonic())
                if held_back is not None:
                    self._log.exception(
                        "a handshake could not be judged, and was refused",
                        extra=logs.fields(held_back=held_back),
                    )
                time.sleep(PAUSE_SECONDS)

    def _turn(self, poller: zmq.Poller) -> None:
        wait_ms = None
        if self._gateway is not None:
            # Rounded up: a wait that is over too early would only be repeated.
            wait_ms = max(0, int((self._look_at - time.monotonic()) * 1_000) + 1)
        poller.poll(wait_ms)
        # Looked at first: a flood of requests must not keep a revoked key good.
        if self._gateway is not None and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + LOOK_SECONDS
            self._look()
            self._looks += 1
        for _ in range(100):
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def _answer(self, frames: list[bytes]) -> None:
        # The envelope: the asker, and an empty frame.
        decision = decide(frames[2:], Admission(self._bus, self.grants))
        with suppress(zmq.Again):
            self._socket.send_multipart([*frames[:2], *decision.reply()], zmq.NOBLOCK)
        if decision.status != ALLOWED:
            self._tell(decision)

    def _tell(self, decision: Decision) -> None:
        self._refused[decision.reason] += 1
        held_back = self._throttles[decision.reason].passes(time.monotonic())
        if held_back is None:
            return
        facts: dict[str, object] = {"reason": decision.reason, "socket": decision.domain}
        if decision.name:
            facts["key"] = decision.name
        facts["public"] = decision.key.decode("ascii", "replace")
        facts["address"] = decision.address
        facts["held_back"] = held_back
        self._log.warning("refused a connection", extra=logs.fields(**facts))

    # -- the grants ------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the grants when their files have changed. What cannot be read lets nobody in."""
        grants: Mapping[bytes, Grant] = {}
        errors: list[KeyFileError] = []
        try:
            seen = _look(self._folder)
            if seen == self._seen and self._settled:
                return
            # What was changed twice within a tick of the file system's clock looks like once: so
            # the files are read once more at the next look.
            self._settled = seen == self._seen
            self._seen = seen
            grants, errors = good_grants(self._folder)
        except Exception:  # noqa: BLE001 (told in the log)
            self._settled = False
            if self._throttles[ERROR].passes(time.monotonic()) is not None:
                self._log.exception("the grants cannot be read, all clients are locked out")
        complaints = [str(error) for error in errors]
        if complaints != self._complaints:
            self._complaints = complaints
            for complaint in complaints[: logs.THROTTLE_LINES]:
                self._log.error(
                    "a grant cannot be used, its client is locked out",
                    extra=logs.fields(reason=complaint, damaged=len(complaints)),
                )
        self._replace(grants)

    def _replace(self, grants: Mapping[bytes, Grant]) -> None:
        grants = self._with_gateway(grants)
        if grants == self.grants:
            return
        before, self.grants = self.grants, grants
        self._changed()
        self._log.info(
            "the grants of clients have changed",
            extra=logs.fields(
                clients=len(grants) - 1,
                added=len(grants.keys() - before.keys()),
                removed=len(before.keys() - grants.keys()),
                revoked=sum(1 for grant in grants.values() if grant.revoked),
            ),
        )

    def _with_gateway(self, grants: Mapping[bytes, Grant]) -> Mapping[bytes, Grant]:
        if self._gateway is None:
            return grants
        return {**grants, self._gateway.public: gateway_grant(self._gateway)}


def _look(folder: Path) -> object:
    """What tells that a grant was changed, without reading it."""
    found: list[tuple[str, int, int, int]] = []
    try:
        with os.scandir(folder / CLIENTS_FOLDER) as entries:
            for entry in entries:
                try:
                    state = entry.stat()
                except OSError:
                    # A link that leads nowhere, or gone a moment ago: the others still count.
                    found.append((entry.name, 0, 0, 0))
                    continue
                found.append((entry.name, state.st_ino, state.st_ctime_ns, state.st_size))
    except OSError as error:
        return error.errno
    return sorted(found)
