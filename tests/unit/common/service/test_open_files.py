"""Where a process may open few files: a typed error of ours, never the end of the process."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import zmq

from tallybus import Client, TooManyOpenFiles
from tallybus.client import context
from tallybus.common.errors import EXIT_SETTINGS
from tallybus.common.service import open_files
from tests.support.folders import PROJECT

NOWHERE = "tcp://127.0.0.1:9"
"""Nobody has to listen: making a client waits for nobody."""


def run(code: str, *, files: int, hard: bool = True) -> "subprocess.CompletedProcess[str]":
    """Run code in a process of its own that may open so many files."""

    def limit() -> None:
        most = files if hard else resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))

    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        preexec_fn=limit,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


CLIENTS = """
import json, os, tallybus
from tallybus.client import context
made, error = [], None
try:
    while len(made) < 200:
        made.append(tallybus.Client("tcp://127.0.0.1:9"))
except tallybus.TooManyOpenFiles as raised:
    error = raised
for each in made[:10]:
    each.close()
# There is room again, and nothing that was refused has taken any of it.
made[:10] = [tallybus.Client("tcp://127.0.0.1:9") for _ in range(10)]
for each in made:
    each.close()
left = context._shared.users
again = tallybus.Client("tcp://127.0.0.1:9")
again.close()
print(json.dumps([len(made), str(error), error and error.limit, left]))
"""


def test_clients_of_a_process_share_a_context_and_end_in_a_typed_error() -> None:
    done = run(CLIENTS, files=256)
    assert done.returncode == 0, done.stderr
    count, text, limit, left = json.loads(done.stdout)
    assert 30 <= count < 60
    assert limit == 256
    assert "this process may have 256 open files" in text
    assert left == 0


FIRST = """
import os, resource, tallybus
tallybus.Client("tcp://127.0.0.1:9").close()
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
outcomes = []
for spare in range(0, 40, 3):
    used = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + spare, hard))
    try:
        tallybus.Client("tcp://127.0.0.1:9").close()
    except tallybus.TooManyOpenFiles:
        outcomes.append("refused")
    else:
        outcomes.append("made")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
print(*outcomes)
"""


def test_however_little_room_there_is_a_client_is_refused_or_works() -> None:
    done = run(FIRST, files=512)
    assert done.returncode == 0, done.stderr
    outcomes = done.stdout.split()
    assert len(outcomes) == 14
    assert outcomes == sorted(outcomes, reverse=True), "from some room on it works"
    assert set(outcomes) == {"refused", "made"}


def test_async_clients_and_ledgers_are_refused_alike(tmp_path: Path) -> None:
    code = f"""
import os, tallybus
held = [os.dup(0) for _ in range(200)]
try:
    tallybus.Ledger.open({str(tmp_path / "ledger")!r})
except tallybus.TooManyOpenFiles as error:
    print("ledger", error.limit)
held += [os.dup(0) for _ in range(40)]
try:
    tallybus.AsyncClient("tcp://127.0.0.1:9")
except tallybus.TooManyOpenFiles as error:
    print("async", error.limit)
"""
    done = run(code, files=256)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ledger", "256", "async", "256"]
    assert not (tmp_path / "ledger").exists()


def test_a_context_of_ones_own_that_is_full_is_a_typed_error() -> None:
    with zmq.Context() as own:
        own.set(zmq.MAX_SOCKETS, 4)
        with Client(NOWHERE, context=own), pytest.raises(TooManyOpenFiles, match="MAX_SOCKETS"):
            Client(NOWHERE, context=own)


def test_the_context_lives_as_long_as_somebody_uses_it() -> None:
    before = context._shared.users
    first, second = Client(NOWHERE), Client(NOWHERE)
    shared = context._shared.context
    assert shared is not None
    assert context._shared.users == before + 2
    first.close()
    assert not shared.closed
    second.close()
    second.close()
    assert context._shared.users == before
    assert shared.closed == (before == 0)


def test_an_address_that_cannot_be_used_takes_nothing() -> None:
    before = context._shared.users
    with pytest.raises(ValueError, match="cannot connect"):
        Client("nonsense://x")
    assert context._shared.users == before


def test_a_child_has_a_context_of_its_own() -> None:
    with Client(NOWHERE):
        shared = context._shared.context
        child = os.fork()
        if not child:
            code = 1
            try:
                own = context.acquire()
                context.release(own)
                # What is its parent's it leaves alone.
                assert shared is not None
                context.release(shared)
                code = 0 if own is not shared and own.closed and not shared.closed else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert context._shared.context is shared


def test_room_is_found_out_without_taking_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
        assert open_files.allowed() == used + 20
        assert open_files.room_for(10)
        assert not open_files.room_for(40)
        assert open_files.allow(used + 60) >= used + 60
        assert open_files.room_for(40)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/proc/self/fd")) == used


SERVICE = """
import sys
from tallybus.common.service.runner import run_service
from tallybus.services.gateway.service import GatewayService
sys.exit(run_service(GatewayService))
"""


def test_a_service_that_may_open_too_few_files_says_so_and_is_not_started_again() -> None:
    done = run(SERVICE, files=100)
    assert done.returncode == EXIT_SETTINGS, done.stderr
    assert "the limit of open files is 100, and a service needs 128 at least" in done.stderr
