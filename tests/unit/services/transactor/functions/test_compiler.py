"""The process that compiles: bounded in time and memory, and never ours to lose."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus.services.transactor.functions.compiler import Compiler, CompilerStopped, TooSlow
from tallybus.services.transactor.functions.errors import InvalidFunction
from tallybus.services.transactor.functions.limits import FunctionLimits
from tests.support.function_modules import EMPTY, FEE_TRANSFER, to_binary
from tests.support.hostile import making
from tests.support.hostile.expensive import SLOW
from tests.support.hostile.refused import REFUSED
from tests.support.trials import try_function
from tests.support.waiting import eventually

TIMEOUT_S = 60
LIMITS = FunctionLimits(compile_mib=256)
FINE = to_binary(FEE_TRANSFER.text)


@pytest.fixture
def compiler() -> Iterator[Compiler]:
    made = Compiler(LIMITS, 0)
    yield made
    made.stop()


def process_of(compiler: Compiler) -> int:
    assert compiler._process is not None
    return compiler._process.pid


def test_what_comes_back_is_the_modules_code_and_what_it_is(compiler: Compiler) -> None:
    code = compiler.compile(FINE, 10)
    assert code.facts.imports == ("credit", "debit", "get_balance")
    assert len(code.machine_code) > len(FINE)
    assert 0 < code.seconds < 10
    first = process_of(compiler)
    compiler.compile(to_binary(EMPTY.text), 10)
    assert process_of(compiler) == first


def test_its_process_finds_packages_where_this_one_does_and_not_in_the_working_directory(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages, here = tmp_path / "packages", tmp_path / "here"
    for folder in (packages, here):
        folder.mkdir()
    # Python imports it when it starts, from the first folder on its path that has one.
    note = "import pathlib\npathlib.Path(__file__).with_suffix('.used').touch()\n"
    (packages / "sitecustomize.py").write_text(note)
    (here / "json.py").write_text("raise SystemExit(3)")
    path = os.pathsep.join([str(packages), *sys.path])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.chdir(here)
    compiler.compile(FINE, 10)
    assert (packages / "sitecustomize.used").exists()


def test_what_is_not_valid_is_refused_and_the_process_goes_on(compiler: Compiler) -> None:
    for wrong, reason in (
        (b"", "not a WebAssembly binary"),
        (b"\0asm\x01\0\0\0", "no export named execute"),
        (FINE[:-1], "said to have"),
        (REFUSED["adds i32 to i64"].binary(), "type mismatch"),
    ):
        with pytest.raises(InvalidFunction, match=reason):
            compiler.compile(wrong, 10)
    first = process_of(compiler)
    compiler.compile(FINE, 10)
    assert process_of(compiler) == first


@pytest.mark.parametrize("name", SLOW)
def test_what_takes_too_long_or_too_much_is_ended(compiler: Compiler, name: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidFunction, match=r"processor time|of memory"):
        compiler.compile(SLOW[name](), 0.3)
    assert time.process_time() - began < 5
    assert compiler.compile(FINE, 10).facts.functions == 4


def test_the_allowance_is_named(compiler: Compiler) -> None:
    with pytest.raises(TooSlow, match=r"functions\.compile_seconds") as caught:
        compiler.compile(SLOW["nested ifs"](), 0.1)
    assert caught.value.seconds == 0.1


def test_a_process_that_was_killed_between_is_replaced(compiler: Compiler) -> None:
    compiler.compile(FINE, 10)
    os.kill(process_of(compiler), signal.SIGKILL)
    assert compiler._process is not None
    compiler._process.wait(TIMEOUT_S)
    assert compiler.compile(FINE, 10).facts.functions == 4


def test_stopping_ends_what_is_under_way(compiler: Compiler) -> None:
    ended: list[Exception] = []

    def compile_() -> None:
        try:
            compiler.compile(SLOW["nested ifs"](), 1_000)
        except (CompilerStopped, InvalidFunction) as error:
            ended.append(error)

    thread = threading.Thread(target=compile_)
    thread.start()
    eventually(lambda: compiler._process is not None)
    compiler.stop()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    assert isinstance(ended[0], CompilerStopped)
    with pytest.raises(CompilerStopped):
        compiler.compile(FINE, 1)


def test_resting_ends_the_process_until_it_is_needed(compiler: Compiler) -> None:
    compiler.compile(FINE, 10)
    first = compiler._process
    assert first is not None
    compiler.rest()
    assert first.poll() == 0
    compiler.compile(FINE, 10)


def test_a_trial_is_bounded_as_a_registration_is() -> None:
    limits = FunctionLimits(compile_seconds=1, compile_mib=256)
    with pytest.raises(InvalidFunction, match=r"processor time|of memory"):
        try_function(SLOW["nested ifs"](), (), {}, limits)
    large = making.module([making.body(b"\x01" * 20_000 + making.RETURN_0)])
    assert try_function(large, (), {}, limits).status == 0
