"""What a test may change of the whole process, put back behind it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tallybus.common import logs


@contextmanager
def handlers_and_logs() -> Iterator[None]:
    """Handlers of the signals that stop a service are as they were, and nothing is logged."""
    asked = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in asked}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    logs.teardown()
