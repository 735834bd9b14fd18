"""Logging: what a line holds, in both formats, and what never gets into one."""

import io
import json
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tallybus.common import logs
from tallybus.common.logs import fields


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    yield
    logs.teardown()


def json_lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_the_facts() -> None:
    stream = io.StringIO()
    logs.setup("wal", stream=stream)
    logs.get("wal").info("recovered %d", 3, extra=fields(segment=7, path=Path("/x")))
    [line] = json_lines(stream)
    assert line["message"] == "recovered 3"
    assert line["level"] == "info"
    assert line["stage"] == "wal"
    assert line["pid"] == os.getpid()
    assert line["logger"] == "tallybus.wal"
    assert (line["segment"], line["path"]) == (7, "/x")
    assert line["time"].endswith("Z")


def test_text_goes_to_terminals_and_json_elsewhere() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    logs.setup("gateway", stream=terminal)
    logs.get().warning("slow", extra=fields(seconds=1.5, why="disk full", empty=""))
    assert f"gateway[{os.getpid()}] slow seconds=1.5 " in terminal.getvalue()
    assert 'why="disk full" empty=""' in terminal.getvalue()
    logs.setup("gateway", stream=pipe)
    logs.get().warning("slow")
    assert json_lines(pipe)[0]["message"] == "slow"
    assert terminal.getvalue().count("slow") == 1


def test_format_can_be_chosen() -> None:
    terminal, pipe = Terminal(), io.StringIO()
    logs.setup("wal", format="json", stream=terminal)
    logs.get().info("one")
    assert json_lines(terminal)
    logs.setup("wal", format="text", stream=pipe)
    logs.get().info("two")
    assert pipe.getvalue().rstrip().endswith(f"INFO    wal[{os.getpid()}] two")


def test_level_is_respected() -> None:
    stream = io.StringIO()
    logs.setup("wal", level="warning", stream=stream)
    logs.get("a").info("no")
    logs.get("a").warning("yes")
    assert [line["message"] for line in json_lines(stream)] == ["yes"]
    logs.setup("wal", level="debug", stream=stream)
    logs.get("a").debug("now")
    logging.getLogger("somebody.else").info("chatter of a library")
    assert [line["message"] for line in json_lines(stream)] == ["yes", "now"]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="not a logging level"):
        logs.setup("wal", level="loud")
    with pytest.raises(ValueError, match="not a logging format"):
        logs.setup("wal", format="xml")


def test_secrets_are_never_written() -> None:
    for stream in (io.StringIO(), Terminal()):
        logs.setup("gateway", stream=stream)
        extra = fields(api_token="hunter2", nested={"Password": "hunter2", "user": "ann"})
        logs.get().info("connected", extra=extra)
        assert "hunter2" not in stream.getvalue()
        assert "[redacted]" in stream.getvalue()
        assert "ann" in stream.getvalue()


def test_one_message_is_one_line() -> None:
    for stream in (io.StringIO(), Terminal()):
        logs.setup("gateway", stream=stream)
        name = "a\nINFO forged\x1b[2J\u2028"
        logs.get().info("client said %s", name, extra=fields(name=name))
        assert len(stream.getvalue().splitlines()) == 1
        assert "\x1b[2J" not in stream.getvalue()


def test_fields_cannot_hide_the_facts() -> None:
    stream = io.StringIO()
    logs.setup("wal", stream=stream)
    logs.get().info("x", extra=fields(level="none", message="forged", pid=1))
    [line] = json_lines(stream)
    assert line["message"] == "x"
    assert line["level"] == "info"
    assert (line["field_level"], line["field_message"], line["field_pid"]) == ("none", "forged", 1)


def test_every_kind_of_value_can_be_written() -> None:
    stream = io.StringIO()
    logs.setup("wal", stream=stream)
    values = fields(
        number=np.uint64(2**64 - 1),
        ratio=float("nan"),
        raw=b"\x01\xff",
        many=[1, (2, np.int8(3))],
        error=ValueError("bad"),
        nothing=None,
        yes=True,
    )
    logs.get().info("x", extra=values)
    [line] = json_lines(stream)
    assert line["number"] == 2**64 - 1
    assert line["ratio"] == "nan"
    assert line["raw"] == "01ff"
    assert line["many"] == [1, [2, 3]]
    assert line["error"] == "bad"
    assert line["nothing"] is None
    assert line["yes"] is True


def test_exceptions_bring_their_traceback() -> None:
    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        logs.setup("wal", stream=stream)
        try:
            raise OSError(5, "Input/output error")
        except OSError:
            logs.get().exception("fdatasync failed")
    assert "Input/output error" in json_lines(pipe)[0]["exception"]
    assert "Traceback" in terminal.getvalue().splitlines()[1]


def test_warnings_are_logged() -> None:
    stream = io.StringIO()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logs.setup("wal", stream=stream)
        warnings.warn("old", UserWarning, stacklevel=1)
        logs.teardown()
    assert "old" in json_lines(stream)[0]["message"]


def test_standard_error_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("wal")
    logs.get().info("hello")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["message"] == "hello"
    assert sys.stderr.isatty() is False


def test_module_names_are_loggers_of_ours() -> None:
    assert logs.get("tallybus.services.wal.service").name == "tallybus.services.wal.service"
    assert logs.get("wal").name == "tallybus.wal"
    assert logs.get().name == "tallybus"


def test_a_throttle_lets_few_through_and_tells_how_many_it_held_back() -> None:
    throttle = logs.Throttle(lines=3, seconds=10)
    assert [throttle.passes(0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert throttle.passes(9.9) is None
    assert throttle.passes(10.0) == 3
    assert throttle.passes(10.1) is None
    # After a long silence as at first, and never more than that.
    assert [throttle.passes(1_000.0) for _ in range(5)] == [1, 0, 0, None, None]


def test_a_clock_that_stands_still_or_goes_back_opens_no_throttle() -> None:
    throttle = logs.Throttle(lines=1, seconds=1)
    assert throttle.passes(5.0) == 0
    assert [throttle.passes(time) for time in (5.0, 4.0, 4.5)] == [None, None, None]


# What cannot be written


def test_a_full_disk_or_a_closed_stream_fails_nobody(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        logs.setup("wal", stream=full)
        logs.get("wal").error("nobody reads this")
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    logs.get("wal").error("nor this: it is closed")


def test_a_process_without_standard_error_logs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.setup("wal")
    logs.get("wal").error("nobody reads this")


def test_a_reader_that_is_asleep_holds_up_nobody() -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    with open(write, "w", buffering=1) as stream, open(read, "rb", buffering=0) as reader:
        logs.setup("wal", stream=stream)
        for number in range(3000):
            logs.get("wal").info("line %d", number)
        told = reader.read(1 << 20).splitlines()
        assert 10 < len(told) < 3000, "the pipe is full, and the rest was dropped"
        logs.get("wal").info("awake again")
        assert json.loads(reader.read(1 << 20).splitlines()[-1])["message"] == "awake again"


def test_a_line_that_comes_in_the_middle_of_another_follows_it(tmp_path: Path) -> None:
    class Interrupted(io.FileIO):
        """Its first write is interrupted by a signal, whose handler has something to say."""

        interrupted = False

        def write(self, data: object) -> int:
            if not self.interrupted:
                self.interrupted = True
                signal.raise_signal(signal.SIGUSR1)
            return super().write(data)  # type: ignore[arg-type]

    def tell(_number: int, _frame: object) -> None:
        logs.get("wal").info("stopping")
        handled.append(True)

    handled: list[bool] = []
    before = signal.signal(signal.SIGUSR1, tell)
    path = tmp_path / "log"
    raw = Interrupted(path, "w")
    try:
        with io.TextIOWrapper(io.BufferedWriter(raw), line_buffering=True) as stream:
            logs.setup("wal", stream=stream, format="json")
            logs.get("wal").info("ready")
            logs.get("wal").info("stopped")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert handled == [True]
    lines = [json.loads(line)["message"] for line in path.read_text().splitlines()]
    assert lines == ["ready", "stopping", "stopped"]


def test_a_line_that_breaks_off_holds_back_no_later_one() -> None:
    class Breaking(io.StringIO):
        def write(self, text: str) -> int:
            if "first" in text:
                raise KeyboardInterrupt
            return super().write(text)

    stream = Breaking()
    logs.setup("wal", stream=stream, format="json")
    with pytest.raises(KeyboardInterrupt):
        logs.get("wal").info("first")
    logs.get("wal").info("second")
    assert [line["message"] for line in json_lines(stream)] == ["second"]


def test_a_path_that_is_no_text_is_written_with_escapes() -> None:
    stream = io.StringIO()
    path = Path(os.fsdecode(b"/d\xff/\xc3\xa9"))
    logs.setup("wal", stream=stream, format="json")
    logs.get().info("made %s", path, extra=fields(folder=path, name=str(path), odd="\ud800"))
    [line] = json_lines(stream)
    assert line["folder"] == line["name"] == "/d\\xff/é"
    assert line["message"] == "made /d\\xff/é"
    assert line["odd"] == "\\ud800"
    logs.setup("wal", stream=stream, format="text")
    logs.get().info("made %s", path, extra=fields(folder=path))
    stream.getvalue().encode("utf-8")
