"""`import` as a process that is told to end: what it says, and how it exits."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.fake_gateway import FakeGateway, Message

HEADER = "kind,account,amount\n"


@contextmanager
def importing(*arguments: object, ignored: bool = False) -> Iterator[subprocess.Popen[str]]:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = subprocess.Popen(
        [sys.executable, "-m", "tallybus", "import", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore if ignored else None,  # noqa: PLW1509 (nothing else runs in it)
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def after(batches: int) -> FakeGateway:
    """A gateway that answers so many batches and keeps the next one."""

    def script(message: Message) -> str:
        return "answer" if message.number < batches else "hold"

    return FakeGateway(script=script)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_tells_the_row_reached_and_the_command_that_goes_on(
    tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "my file.csv"
    path.write_text(HEADER + "deposit,1,100\n" * 10, "utf-8")
    with (
        after(2) as gateway,
        importing(path, "--batch", 3, "--endpoint", gateway.endpoint) as process,
    ):
        gateway.wait_seen(3)
        process.send_signal(number)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 128 + number
        assert out == ""
        assert err == (
            f"Error: ended by {number.name}; rows 1 to 6 of 10 (line 7) are in the ledger; "
            f"to go on: tallybus import {shlex.quote(str(path))} --from-row 7 --again --batch 3 "
            f"--endpoint {gateway.endpoint}\n"
        )


def test_a_signal_that_is_ignored_from_the_start_stays_ignored(tmp_path: Path) -> None:
    path = tmp_path / "file.csv"
    path.write_text(HEADER + "deposit,1,100\n", "utf-8")
    with (
        after(0) as gateway,
        importing(path, "--endpoint", gateway.endpoint, ignored=True) as process,
    ):
        gateway.wait_seen(1)
        process.send_signal(signal.SIGHUP)
        gateway.release()
        out, err = process.communicate(timeout=20)
        assert (process.returncode, err) == (0, "")
        assert out.split()[:4] == ["rows", "1", "applied", "1"]


def test_a_signal_while_a_pipe_is_read_ends_it_before_anything_is_sent(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with importing(pipe) as process, pipe.open("w", encoding="utf-8") as writer:
        # It has opened the pipe; it may still be importing modules before the first read.
        writer.write(HEADER + "deposit,1,100\n" * 100_000)
        writer.flush()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert (out, err) == ("", "Error: ended by SIGTERM; nothing was sent\n")
