"""Whether a service fails again and again in the same place: counted across its processes."""

from pathlib import Path

import pytest

from tallybus.common.errors import SettingsError
from tallybus.common.files import LockHeld, Storage
from tallybus.common.service.failures import Failures, place_of
from tallybus.common.settings.sections import load


def test_a_service_that_was_ready_for_long_has_got_better_by_its_start(tmp_path: Path) -> None:
    kept = Failures(Storage(), lambda: tmp_path, "wal")
    assert [kept.note("a", steady=False) for _ in range(4)] == [1, 2, 3, 4]
    assert kept.note("a", steady=True) == 1
    assert kept.note("a", steady=False) == 2
    kept.forget()
    assert kept.note("a", steady=False) == 1
    assert Failures(Storage(), lambda: tmp_path, "gateway").note("a", steady=False) == 1


@pytest.mark.parametrize("text", ["", "[]", "{", '{"place":"a"}', '{"place":"a","count":"x"}'])
def test_a_record_of_failures_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "wal.failed").write_text(text)
    assert Failures(Storage(), lambda: tmp_path, "wal").note("a", steady=False) == 1


def test_where_nothing_can_be_kept_each_failure_is_the_first() -> None:
    def refuse() -> Path:
        raise LockHeld(Path("x"), "")

    kept = Failures(Storage(), refuse, "wal")
    assert [kept.note("a", steady=False) for _ in range(4)] == [1] * 4
    kept.forget()


def test_the_place_is_the_innermost_line_of_ours() -> None:
    try:
        load(environ={}, overrides={"ledger.data": 3})
    except SettingsError as error:
        place = place_of(error)
    assert place.startswith("tallybus.common.errors.SettingsError at common/settings/table.py:")
    assert place_of(KeyError()) == "KeyError"
