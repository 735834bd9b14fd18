"""`tallybus up` where machines are not as one would like: odd names, closed streams, cleaners."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tallybus import Client, Deposit
from tallybus.common.errors import EXIT_BUSY, EXIT_SETTINGS
from tallybus.common.settings.sections import Settings, run_folder
from tests.processes.pipeline import (
    PATIENCE_S,
    Command,
    environment,
    eventually,
    make_settings,
    services_under,
    tidy,
)
from tests.processes.services import Up, left_over


@pytest.fixture
def far(tmp_path: Path) -> Iterator[Settings]:
    """Data so deep down that the run folder lies in the temporary folder."""
    settings = make_settings(tmp_path / ("x" * 90) / "data")
    assert run_folder(settings).parent == Path("/tmp")
    yield settings
    tidy(settings)


def test_up_works_among_foreign_modules_odd_names_and_variables_of_kubernetes_without_streams(
    tmp_path: Path,
) -> None:
    for name in ("msgpack", "numpy", "click", "zmq", "numba"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')\n")
    name = os.fsdecode(b"d\xff\xc3\xa9")
    (tmp_path / name).mkdir()
    endpoint = f"ipc://{tmp_path}/{name}/gateway"
    words = [sys.executable, "-m", "tallybus", "up", "--data", name, "--endpoint", endpoint]
    variables = {
        **environment(),
        "PYTHONPATH": f"{environment()['PYTHONPATH']}:",
        "LC_ALL": "C",
        "TALLYBUS_PORT": "tcp://10.0.0.1:5550",
        "TALLYBUS_SERVICE_HOST": "10.0.0.1",
    }
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    with subprocess.Popen(closed, cwd=tmp_path, env=variables) as process:
        try:
            with Client(endpoint, timeout=PATIENCE_S) as client:
                assert client.submit_and_wait(Deposit(1, 10)).tx_id == 1
            for pid in services_under(process.pid).values():
                assert os.readlink(f"/proc/{pid}/fd/2") == os.devnull
                assert len(os.listdir(f"/proc/{pid}/task")) < 10, "no threads of libraries"
                kept = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                assert {b"PYTHONSAFEPATH=1", b"OPENBLAS_NUM_THREADS=1"} <= set(kept)
            process.send_signal(signal.SIGHUP)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()
    assert not (tmp_path / "executed").exists()
    assert (tmp_path / name / "wal.bin").exists()


def test_a_run_folder_that_is_removed_comes_back_and_lets_no_second_one_in(
    far: Settings, tmp_path: Path
) -> None:
    folder = run_folder(far)
    with Up(far, tmp_path) as up, Client(far.gateway.endpoint, timeout=PATIENCE_S) as client:
        up.wait_up()
        before = left_over(far)
        shutil.rmtree(folder)
        with Up(far, tmp_path) as second:
            assert second.wait() == EXIT_BUSY
            assert "supervisor.lock" in second.text
        eventually(lambda: left_over(far) == before, "the sockets are there again")
        # Whoever starts now finds its neighbours, and they find it.
        os.kill(up.services()["transactor"], signal.SIGKILL)
        assert client.submit_and_wait(Deposit(1, 10)).tx_id == 1
        restarted = [line["service"] for line in up.lines if "a service died" in line["message"]]
        assert restarted == ["transactor"]
        up.process.send_signal(signal.SIGHUP)
        assert up.wait() == 0
        up.assert_nothing_left()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("transactor.cpu", "4095"),
        ("gateway.endpoint", "tcp://127.0.0.2.invalid:5550"),
    ],
)
def test_what_no_restart_can_mend_ends_up_with_the_name_of_the_setting(
    tmp_path: Path, start_command: Callable[..., Command], setting: str, value: str
) -> None:
    settings = make_settings(tmp_path / "data")
    words = ["--set", f"ledger.data={settings.ledger.data}"]
    words += ["--set", f"gateway.endpoint={settings.gateway.endpoint}"]
    words += ["--set", "security.unprotected=clients,metrics", "--set", f"{setting}={value}"]
    up = start_command("up", *words)
    assert up.wait() == EXIT_SETTINGS
    assert setting in up.stderr
    assert "please report" not in up.stderr
    assert "started again" not in up.stderr
