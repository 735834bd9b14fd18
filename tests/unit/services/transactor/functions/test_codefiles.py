"""Machine code of functions, kept in files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tallybus.services.transactor.functions.codefiles import CodeFiles, identity_of, key_of
from tallybus.services.transactor.functions.compiler import Code
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.module import ModuleFacts

FACTS = ModuleFacts(True, False, ("credit", "debit"), 3, 65_536, 10, 77, True, 3_334)
CODE = Code(FACTS, b"machine code" * 100, 1.25)
IDENTITY = bytes(range(32))
KEY = key_of(b"a module")


class Rig:
    def __init__(self, folder: Path, max_bytes: int = 1 << 20) -> None:
        self.told: list[str] = []
        self.now = 0.0
        self.files = CodeFiles(
            folder / "compiled", IDENTITY, max_bytes, tell=self.told.append, clock=lambda: self.now
        )

    def file(self, key: str = KEY) -> Path:
        (path,) = self.files.folder.glob(f"{key[:40]}-*")
        return path

    def kept(self) -> set[str]:
        return {each.name[:40] for each in self.files.folder.iterdir()}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_was_kept_comes_back(rig: Rig) -> None:
    assert rig.files.load(KEY) is None
    rig.files.store(KEY, CODE)
    assert rig.files.load(KEY) == CODE
    assert rig.files.load(key_of(b"another")) is None
    assert rig.told == []


def test_nobody_else_can_look_at_it_or_write_it(rig: Rig) -> None:
    rig.files.store(KEY, CODE)
    assert rig.files.folder.stat().st_mode & 0o777 == 0o700
    assert rig.file().stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("at", [0, 8, 39, 40, 71, 72, 80, 100, 500, -1])
def test_a_damaged_byte_makes_it_count_as_absent(rig: Rig, at: int) -> None:
    rig.files.store(KEY, CODE)
    content = bytearray(rig.file().read_bytes())
    content[at] ^= 1
    rig.file().write_bytes(content)
    assert rig.files.load(KEY) is None
    rig.files.store(KEY, CODE)
    assert rig.files.load(KEY) == CODE


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_one_that_was_cut_off_counts_as_absent(rig: Rig, share: float) -> None:
    rig.files.store(KEY, CODE)
    content = rig.file().read_bytes()
    rig.file().write_bytes(content[: int(len(content) * share)])
    assert rig.files.load(KEY) is None


def test_another_modules_file_does_not_fit(rig: Rig) -> None:
    other = key_of(b"another")
    rig.files.store(KEY, CODE)
    rig.files.store(other, CODE)
    rig.file(other).write_bytes(rig.file().read_bytes())
    assert rig.files.load(other) is None


def test_code_of_other_settings_or_another_machine_is_not_taken(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.files.store(KEY, CODE)
    assert CodeFiles(rig.files.folder, bytes(32), 1 << 20).load(KEY) is None
    usual = identity_of(FunctionLimits())
    assert usual == identity_of(FunctionLimits(fuel=5, compile_seconds=3))
    assert usual != identity_of(FunctionLimits(stack_bytes=65_536))
    assert usual != identity_of(FunctionLimits(memory_bytes=65_536))


def _file_for_others(rig: Rig) -> None:
    rig.file().chmod(0o666)


def _folder_for_others(rig: Rig) -> None:
    rig.files.folder.chmod(0o777)


def _link(rig: Rig) -> None:
    path = rig.file()
    elsewhere = rig.files.folder.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _folder_is_a_link(rig: Rig) -> None:
    elsewhere = rig.files.folder.parent / "elsewhere"
    rig.files.folder.rename(elsewhere)
    rig.files.folder.symlink_to(elsewhere)


def _folder(rig: Rig) -> None:
    path = rig.file()
    path.unlink()
    path.mkdir()


def _pipe(rig: Rig) -> None:
    path = rig.file()
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    "spoil", [_file_for_others, _folder_for_others, _link, _folder_is_a_link, _folder, _pipe]
)
def test_what_others_could_have_written_is_not_executed(
    rig: Rig, spoil: Callable[[Rig], None]
) -> None:
    rig.files.store(KEY, CODE)
    spoil(rig)
    assert rig.files.load(KEY) is None


def test_what_belongs_to_another_user_is_not_executed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.files.store(KEY, CODE)
    us = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: us + 1)
    assert rig.files.load(KEY) is None
    assert "belongs to another user" in rig.told[0]


def test_only_what_is_live_and_what_is_new_is_kept(rig: Rig) -> None:
    keys = [key_of(bytes((n,))) for n in range(4)]
    for key in keys:
        rig.files.store(key, CODE)
    os.utime(rig.file(keys[3]), (1e9, 1e9))
    rig.now = rig.file(keys[0]).stat().st_mtime
    rig.files.keep(keys[:1])
    assert rig.kept() == {key[:40] for key in keys[:3]}
    rig.now += 1_000
    rig.files.keep(keys[:1])
    assert rig.kept() == {keys[0][:40]}


def test_files_together_are_bounded_and_what_is_live_stays(tmp_path: Path) -> None:
    rig = Rig(tmp_path, max_bytes=4_000)
    keys = [key_of(bytes((n,))) for n in range(4)]
    rig.files.store(keys[0], CODE)
    rig.files.keep(keys[:1])
    for key in keys[1:]:
        rig.files.store(key, CODE)
        assert sum(each.stat().st_size for each in rig.files.folder.iterdir()) <= 4_000
    assert keys[0][:40] in rig.kept()
    assert keys[3][:40] in rig.kept()
    assert keys[1][:40] not in rig.kept()
    rig.files.store(keys[1], Code(FACTS, bytes(5_000), 1.0))
    assert "functions.code_mib" in rig.told[0]


def test_a_folder_that_cannot_be_written_is_told_once_and_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "compiled").write_text("in the way")
    rig = Rig(tmp_path)
    for _ in range(3):
        rig.files.store(KEY, CODE)
        assert rig.files.load(KEY) is None
        rig.files.keep([KEY])
    assert 1 <= len(rig.told) <= 2
