"""The run folder: who may be there, the lock in it, and what is made again."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tallybus import supervisor
from tallybus.common.bus.sockets import EndpointTaken, EndpointUnusable
from tallybus.common.errors import ServiceError, SettingsError
from tallybus.common.files import FileLock, LockHeld, Storage
from tallybus.common.service.run_folder import (
    LOOK_NS,
    RunFolder,
    UnsafeRunFolder,
    lock_run_folder,
    own_run_folder,
)
from tallybus.common.settings.sections import Settings, load

LOG = logging.getLogger("test_run_folder")


@pytest.mark.parametrize(
    ("key", "overrides"),
    [
        ("ledger.data", {"ledger.data": "/dev/null/x"}),
        ("bus.run_folder", {"bus.run_folder": "/proc/x"}),
    ],
)
def test_a_folder_that_cannot_be_made_is_a_wrong_setting(
    key: str, overrides: dict[str, object], tmp_path: Path
) -> None:
    wrong = load(environ={}, overrides={"ledger.data": tmp_path / "data", **overrides})
    for locked in (lambda: supervisor.Supervisor(wrong).start(), lambda: own(wrong)):
        with pytest.raises(SettingsError, match="cannot be made") as caught:
            locked()
        assert caught.value.setting == key


def own(settings: Settings) -> Path:
    return own_run_folder(settings, Storage())


# The folder


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_a_folder_that_others_may_look_into_is_refused(
    settings: Settings, tmp_path: Path, mode: int
) -> None:
    folder = tmp_path / "data" / "run"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    with pytest.raises(UnsafeRunFolder, match=f"mode {mode:04o}; it must belong to user") as caught:
        own(settings)
    assert (caught.value.folder, caught.value.mode) == (str(folder), mode)
    folder.chmod(0o700)
    assert own(settings) == folder


def test_where_services_meet_elsewhere_there_is_nothing_to_lock(tmp_path: Path) -> None:
    for transport in ("tcp", "inproc"):
        chosen = {"ledger.data": tmp_path / "data", "bus.transport": transport}
        settings = load(environ={}, overrides=chosen)
        assert lock_run_folder(settings, Storage(), "wal") is None
    assert not (tmp_path / "data").exists()


# The lock, while a service runs


class Bus:
    """Sockets whose files are lost when it is said; they can be made again unless it is said."""

    def __init__(self) -> None:
        self.lost = False
        self.refusal: ServiceError | None = None

    def lost_files(self) -> bool:
        return self.lost

    def listen_again(self) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.lost = False


@pytest.fixture
def bus() -> Bus:
    return Bus()


@pytest.fixture
def place(settings: Settings, bus: Bus) -> Iterator[RunFolder]:
    made = RunFolder(settings, Storage(), "wal", bus, LOG)  # type: ignore[arg-type]
    yield made
    made.release()
    made.release()


def rival(settings: Settings) -> FileLock:
    """Another one of the same stage."""
    held = lock_run_folder(settings, Storage(), "wal")
    assert held is not None
    return held


def test_one_of_a_stage_keeps_every_other_one_away_until_it_ends(
    settings: Settings, place: RunFolder
) -> None:
    place.lock()
    with pytest.raises(LockHeld):
        rival(settings)
    place.release()
    rival(settings).release()


def test_a_look_at_what_is_whole_changes_nothing_and_says_when_the_next_is_due(
    place: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place.lock()
    path = tmp_path / "data" / "run" / "wal.lock"
    before = path.stat().st_ino
    assert place.due_ns == 0, "the first turn looks"
    place.look(7)
    assert place.due_ns == 7 + LOOK_NS
    assert path.stat().st_ino == before
    assert caplog.records == []


def test_a_lock_and_sockets_that_were_removed_are_made_again(
    settings: Settings, place: RunFolder, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    place.lock()
    descriptors = len(os.listdir("/dev/fd"))
    shutil.rmtree(own(settings))
    bus.lost = True
    place.look(0)
    assert not bus.lost
    assert len(os.listdir("/dev/fd")) == descriptors, "the old lock is let go"
    with pytest.raises(LockHeld):
        rival(settings)
    assert [record.message for record in caplog.records] == [
        "what was removed from the run folder was made again"
    ]
    bus.lost = True
    place.look(0)
    assert not bus.lost, "also where the lock is still there"


def test_who_took_the_place_meanwhile_keeps_it(
    settings: Settings, place: RunFolder, bus: Bus
) -> None:
    place.lock()
    (own(settings) / "wal.lock").unlink()
    other = rival(settings)
    with pytest.raises(LockHeld):
        place.look(0)
    other.release()
    place.look(0)
    bus.lost, bus.refusal = True, EndpointTaken("ipc:///x", "somebody listens")
    with pytest.raises(EndpointTaken):
        place.look(0)


def test_a_folder_that_cannot_be_made_again_is_told_once_for_each_reason(
    place: RunFolder, bus: Bus, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that are connected need none, so the service goes on."""
    place.lock()
    for reason in ("no space", "no space", "read-only", "no space"):
        bus.lost, bus.refusal = True, EndpointUnusable("ipc:///x", reason)
        place.look(0)
    bus.refusal = None
    place.look(0)
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3 + ["WARNING"]
    bus.lost, bus.refusal = True, EndpointUnusable("ipc:///x", "no space")
    place.look(0)
    assert caplog.records[-1].levelname == "ERROR", "it was well in between"
