"""The process's ZeroMQ context, which its clients share, and whether there is room for one more.

A context has threads and descriptors of its own. With one for each client, some dozens of clients
would use up what a process may have, and libzmq ends a process whose context finds none (ADR 0022).

The context lives while a client uses it. A child process after `fork` gets a context of its own,
because the threads of the parent's do not live on in it. It leaves alone what it inherited.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import zmq

from tallybus.common.service import open_files
from tallybus.errors import TooManyOpenFiles

MAX_SOCKETS: Final = 65_535
"""As many as libzmq counts: the limit is that of descriptors."""
CLIENT_FILES: Final = 12
"""What a client takes at most: its socket and what watches it, a connection, a look, a waker."""


LOOKS: Final = 10
LOOK_SECONDS: Final = 0.01
"""How often, and after how long each time, to look for room before there is none."""


class _Shared:
    """The context of this process and how many use it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.context: zmq.Context[Any] | None = None
        self.users = 0
        self.pid = os.getpid()


_shared = _Shared()
_inherited: list[_Shared] = []
"""Those of parent processes. Kept, for freeing them would wait for threads that are not there."""


def _after_fork() -> None:
    global _shared
    _inherited.append(_shared)
    _shared = _Shared()


os.register_at_fork(after_in_child=_after_fork)


def acquire() -> zmq.Context[Any]:
    """The context of this process, for one more user, who calls `release` in the end.

    Raises TooManyOpenFiles.
    """
    shared = _shared
    with shared.lock:
        if shared.context is None:
            check_room(open_files.CONTEXT_FILES + CLIENT_FILES)
            context: zmq.Context[Any] = zmq.Context()
            context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
            shared.context = context
        shared.users += 1
        return shared.context


def release(context: zmq.Context[Any]) -> None:
    """One user less. After the last one the context is ended.

    All sockets have been closed by then, with one exception: a handler of a signal may have raised,
    and left a socket that its traceback alone knows. Those are closed here, because libzmq would
    wait for them for ever.
    """
    shared = _shared
    with shared.lock:
        if context is not shared.context:
            return  # of the parent process
        shared.users -= 1
        if shared.users:
            return
        shared.context = None
    context.destroy(linger=0)


@contextmanager
def room_for_a_client(context: zmq.Context[Any]) -> Iterator[None]:
    """Keeps what a client needs free for it while it makes its sockets: others of this module wait.

    Raises TooManyOpenFiles, also for what libzmq says inside.
    """
    with _shared.lock:
        # A context of somebody else's may have no threads yet.
        known = context is _shared.context and _shared.users > 1
        check_room(CLIENT_FILES + (0 if known else open_files.CONTEXT_FILES))
        try:
            yield
        except zmq.ZMQError as error:
            if error.errno != errno.EMFILE:
                raise
            raise _too_many("or its ZeroMQ context no more sockets (ZMQ_MAX_SOCKETS)") from error


def check_room(files: int) -> None:
    """Raises TooManyOpenFiles where the process may not open so many more."""
    for _ in range(LOOKS):
        if open_files.room_for(files):
            return
        # libzmq closes what belonged to clients that were closed a moment later.
        time.sleep(LOOK_SECONDS)
    raise _too_many("")


def _too_many(addition: str) -> TooManyOpenFiles:
    limit = open_files.allowed()
    return TooManyOpenFiles(
        f"there is no room for another client: this process may have {limit} open files at a time"
        f"{addition and ', ' + addition}. Close clients that are not needed, let threads share "
        "one, or raise the limit (ulimit -n, LimitNOFILE=)",
        limit=limit,
    )
