"""What all tests share: a clean environment, free ports, hypothesis without a clock."""

import os
import signal
import socket
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import settings

# Whatever the developer exported must not reach the services that tests start.
for variable in [name for name in os.environ if name.startswith("TALLYBUS_")]:
    del os.environ[variable]

# A shell ignores it for what runs in its background, and so would everything that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# On a busy machine an example may be slow for no fault of ours. In continuous integration a run
# must not fail for an example that the change has nothing to do with.
settings.register_profile("tallybus", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("tallybus")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders have short names beside other processes of tests too: sockets lie in them,
    and the path of a socket has 107 bytes at most."""
    if hasattr(config, "workerinput"):
        given = Path(config.option.basetemp)
        config.option.basetemp = str(given.with_name(given.name.removeprefix("popen-gw")))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test has printed goes from its process to the one that reports, which takes UTF-8:
    names of files that are no text are shown with escapes."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives a new TCP port of the loopback address that nobody listens on, at each call."""
    given: set[int] = set()

    def find() -> int:
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port: int = probe.getsockname()[1]
            if port not in given:
                given.add(port)
                return port

    return find
