"""Signals that end a command which has something to say before it ends."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SLICE_S: Final = 0.1
"""How long a wait goes on before it looks for a signal."""


class Ended(BaseException):
    """The command was told to end. `number` is the signal's; as an exit code, shells add 128."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number

    @property
    def exit_code(self) -> int:
        return 128 + self.number


class Endings:
    """While it is entered, signals that end the command raise `Ended`: where they arrive, or, while
    `held`, in `check` and `sleep` alone. The second one always does where it arrives.

    One that is ignored stays ignored, and only a program's main thread is told.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._held = False
        self._restore = ExitStack()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in ENDING:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    before = signal.signal(number, self._on_signal)
                    self._restore.callback(signal.signal, number, before)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._restore.close()

    @contextmanager
    def held(self) -> Iterator[None]:
        """No exception out of a handler: what is done here is not to be broken off anywhere."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raises Ended when a signal has come."""
        if self._number is not None:
            raise Ended(self._number)

    def sleep(self, seconds: float) -> None:
        """As `time.sleep`, but a signal ends it."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, SLICE_S))
        self.check()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self._number is not None
        self._number = number
        if again or not self._held:
            raise Ended(number)
