"""Kernels: their machine code is kept, found again, and never taken for another's."""

import subprocess
import sys
from ctypes import ArgumentError
from pathlib import Path

import numpy as np
import pytest

from tallybus.common.kernels import machinecode
from tallybus.common.kernels.compiled import INPUT_LINE, INPUT_WORDS, inlined, kernel, types
from tests.processes.pipeline import environment
from tests.support.folders import PROJECT

SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import {name}
import numpy as np
print({name}.total(np.arange(10, dtype=np.uint64), 2), "numba" in sys.modules)
"""

MODULE = """
from tallybus.common.kernels.compiled import INPUT_LINE, inlined, kernel, types
import numpy as np

STEP = {step}

@inlined
def scaled(value, by):
    return value * by {more}

@kernel(types.int64(INPUT_LINE, types.int64))
def total(words, by):
    result = 0
    for i in range(0, words.size, STEP):
        result += scaled(np.int64(words[i]), by)
    return result
"""


class Program:
    """A module with a kernel, imported in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.write()

    def write(self, step: int = 1, more: str = "") -> None:
        (self.folder / "summing.py").write_text(MODULE.format(step=step, more=more))

    def run(self, **variables: str) -> tuple[int, bool]:
        """What the kernel returned, and whether numba was needed."""
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT.format(folder=str(self.folder), name="summing")],
            env={**environment(), "NUMBA_CACHE_DIR": str(self.cache), **variables},
            cwd=PROJECT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        value, compiled = done.stdout.split()
        return int(value), compiled == "True"

    @property
    def file(self) -> Path:
        (found,) = self.cache.iterdir()
        return found


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_numba_is_needed_once(program: Program) -> None:
    assert program.run() == (90, True)
    assert program.run() == (90, False)


def test_whatever_a_kernel_uses_is_part_of_what_it_is(program: Program) -> None:
    program.run()
    program.write(step=2)
    assert program.run() == (40, True), "another constant"
    program.write(step=2, more="+ 1")
    assert program.run() == (45, True), "another helper"
    assert program.run() == (45, False)
    program.write()
    assert program.run() == (90, True), "the file has only the last"


def test_a_damaged_file_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    module, key, objects = Path("folder/module.py"), b"k" * 32, [b"code", b"", b"adapter"]
    machinecode.store(module, "kernel", key, objects)
    assert machinecode.load(module, "kernel", key) == objects
    assert machinecode.load(module, "kernel", b"K" * 32) is None
    assert machinecode.load(module, "other", key) is None
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        assert machinecode.load(module, "kernel", key) is None, place
        file.write_bytes(whole[:place])
        assert machinecode.load(module, "kernel", key) is None, place
    file.write_bytes(whole + b"more")
    assert machinecode.load(module, "kernel", key) is None
    machinecode.store(module, "kernel", key, objects)
    assert machinecode.load(module, "kernel", key) == objects


def test_without_a_folder_to_keep_it_every_start_compiles(program: Program) -> None:
    program.cache.write_text("a file where the folder should be")
    assert program.run() == (90, True)
    assert program.run() == (90, True)


def test_beside_the_module_or_else_in_the_folder_of_the_user(program: Program) -> None:
    beside = {"NUMBA_CACHE_DIR": "", "XDG_CACHE_HOME": str(program.folder / "home")}
    assert program.run(**beside) == (90, True)
    kept = list((program.folder / "__pycache__").glob("*.kernel"))
    assert len(kept) == 1
    assert not (program.folder / "home").exists()
    kept[0].unlink()
    kept[0].mkdir()  # nothing can be renamed onto it
    assert program.run(**beside) == (90, True)
    assert len(list((program.folder / "home" / "tallybus").glob("*.kernel"))) == 1
    assert program.run(**beside) == (90, False)
    assert not list((program.folder / "__pycache__").glob("*.kernel.*")), "temporary files"


@inlined
def _weighted(value, weight):  # type: ignore[no-untyped-def]
    return value * weight


@kernel(types.void(INPUT_WORDS, types.uint64, types.boolean, types.int64[:, ::1], types.uint8[::1]))
def _copy(words, weight, rows_only, out, seen):  # type: ignore[no-untyped-def]
    for i in range(words.shape[0]):
        for j in range(words.shape[1]):
            out[i, j] = np.int64(_weighted(words[i, j], weight))
            if rows_only:
                break
        seen[i] = 1


@kernel(types.int64(INPUT_LINE))
def _last(words):  # type: ignore[no-untyped-def]
    return np.int64(words[words.size - 1]) if words.size else np.int64(-1)


def test_arrays_are_read_and_written_where_they_are() -> None:
    words = np.arange(12, dtype=np.uint64).reshape(4, 3)
    words.flags.writeable = False
    out = np.zeros((4, 3), np.int64)
    seen = np.zeros(4, np.uint8)
    assert _copy(words, 5, False, out, seen) is None
    assert (out == 5 * words.astype(np.int64)).all()
    assert seen.tolist() == [1] * 4
    out[:] = 0
    _copy(words, np.uint64(2), np.True_, out, seen)
    assert out[:, 0].tolist() == [0, 6, 12, 18]
    assert not out[:, 1:].any()
    unaligned = np.frombuffer(b"x" + words.tobytes(), np.uint64, 12, 1)
    assert not unaligned.flags.aligned
    assert _last(unaligned) == 11
    assert _last(unaligned[:5]) == 4
    assert _last(unaligned[:0]) == -1


def test_other_arrays_and_other_numbers_of_them_are_refused() -> None:
    words = np.zeros((2, 3), np.uint64)
    out = np.zeros((2, 3), np.int64)
    seen = np.zeros(2, np.uint8)
    read_only = out.copy()
    read_only.flags.writeable = False
    for wrong in (
        (words.astype(np.int64), 1, True, out, seen),
        (words[:, :2], 1, True, out, seen),
        (words[0], 1, True, out, seen),
        (words.tolist(), 1, True, out, seen),
        (words, 1, True, read_only, seen),
        (words, 1, True, out.T, seen),
        (words, 1, True, out, np.zeros(4, np.uint8)[::2]),
        (words, "1", True, out, seen),
        (words, 1, True, out),
    ):
        with pytest.raises((TypeError, ArgumentError)):
            _copy(*wrong)
    assert not out.any()


def test_what_is_neither_code_nor_a_number_cannot_be_used() -> None:
    weights = [1, 2]

    def weighs(words):  # type: ignore[no-untyped-def]
        return weights[0]

    with pytest.raises(TypeError, match="cannot use"):
        kernel(types.int64(INPUT_LINE))(weighs)


def test_keys_differ_with_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    key = machinecode.identity("a kernel")
    assert machinecode.identity("a kernel") == key
    assert machinecode.identity("another") != key
    monkeypatch.setattr(machinecode.llvm, "get_host_cpu_name", lambda: "another")
    assert machinecode.identity("a kernel") != key


def test_the_services_of_a_ledger_without_functions_start_without_numba() -> None:
    for stage in ("transactor", "snapshotter", "wal"):
        words = f"import sys, tallybus.services.{stage}.service; print('numba' in sys.modules)"
        for _ in range(2):  # the first may have to compile
            done = subprocess.run(
                [sys.executable, "-c", words],
                env=environment(),
                cwd=PROJECT,
                capture_output=True,
                text=True,
                check=True,
            )
        assert done.stdout.strip() == "False", stage
