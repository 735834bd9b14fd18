"""A folder of keys: what is made in it, with which modes, and what a fault or a crash leaves."""

import errno
import os
import re
import stat
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from tallybus.common.files import Storage, StorageError
from tallybus.common.security.curve import matches, new_key_pair
from tallybus.common.security.keys import (
    ClientKey,
    Grant,
    KeyFileError,
    Role,
    grant_path,
    pair_text,
    read_client_key,
    read_grant,
    read_grants,
    read_pair,
)
from tallybus.keyring import Keyring, KeyringError, write_new
from tests.support.faulty_storage import Fault, FaultyStorage, SimulatedCrash

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "some" / "keys"


class Process(FaultyStorage):
    """A storage whose open files are closed when it ends, as those of a process are."""

    def __init__(self, *faults: Fault, crash_at: int | None = None) -> None:
        super().__init__(Storage(), *faults, crash_at=crash_at)
        self._open_files: set[int] = set()

    def _sys_open(self, path: Path, flags: int) -> int:
        descriptor = super()._sys_open(path, flags)
        self._open_files.add(descriptor)
        return descriptor

    def _sys_close(self, descriptor: int) -> None:
        super()._sys_close(descriptor)
        self._open_files.discard(descriptor)

    def end(self) -> None:
        for descriptor in self._open_files:
            os.close(descriptor)
        self._open_files.clear()


def keyring(folder: Path, storage: Storage | None = None) -> Keyring:
    return Keyring(folder, storage, now=lambda: NOW)


def create(folder: Path, name: str, out: Path, storage: Storage | None = None) -> None:
    keyring(folder, storage).create(
        name, Role.SUBMIT, {}, lambda text: write_new(out, text, storage)
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_first_key_makes_the_folder_and_all_pairs(folder: Path, tmp_path: Path) -> None:
    limits = {"max_in_flight": 1, "max_rate": 2, "max_message_bytes": 3}
    given: list[str] = []
    made = keyring(folder).create("alice", Role.ADMIN, limits, given.append)
    assert set(made.pairs) == {folder / "gateway.key", folder / "bus.key"}
    gateway, bus = read_pair(folder / "gateway.key"), read_pair(folder / "bus.key")
    assert gateway != bus
    assert all(map(matches, (gateway, bus, made.key.pair)))
    (tmp_path / "alice.key").write_text(given[0])
    (tmp_path / "alice.key").chmod(0o600)
    assert read_client_key(tmp_path / "alice.key") == made.key
    assert made.key == ClientKey("alice", made.key.pair, gateway.public)
    grant = Grant("alice", made.key.pair.public, Role.ADMIN, "2026-03-01T09:30:00Z", "", 1, 2, 3)
    assert read_grants(folder) == {made.key.pair.public: grant}


def test_a_key_may_be_for_some_functions_alone(folder: Path) -> None:
    keyring(folder).create(
        "payroll", Role.SUBMIT, {"max_rate": 7}, lambda _: None, ["pay", "fee_*", "pay"], False
    )
    keyring(folder).create("plain", Role.SUBMIT, {}, lambda _: None, [])
    keyring(folder).create("usual", Role.SUBMIT, {}, lambda _: None)
    made = {each.name: (each.functions, each.builtins) for each in read_grants(folder).values()}
    assert made == {
        "payroll": (("pay", "fee_*"), False),
        "plain": ((), True),
        "usual": (None, True),
    }
    revoked, _ = keyring(folder).revoke("payroll")
    assert (revoked.functions, revoked.builtins, revoked.max_rate) == (("pay", "fee_*"), False, 7)


@pytest.mark.parametrize(
    "functions",
    [[""], ["1st"], ["a", "b c"], ["a-b"], ["x" * 33], ['a"'], [f"f{n}" for n in range(257)]],
)
def test_functions_that_are_none_are_refused_before_anything_is_made(
    folder: Path, functions: list[str]
) -> None:
    with pytest.raises(KeyringError, match="function"):
        keyring(folder).create("alice", Role.SUBMIT, {}, lambda _: None, functions)
    assert not folder.exists()


def test_only_their_owner_can_read_them_whatever_the_umask_says(
    folder: Path, tmp_path: Path
) -> None:
    before = os.umask(0)
    try:
        create(folder, "alice", tmp_path / "alice.key")
    finally:
        os.umask(before)
    assert mode(folder) == mode(folder / "clients") == 0o700
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {mode(path) for path in [*files, tmp_path / "alice.key"]} == {0o600}
    assert len(files) == 4  # two pairs, a grant, the lock


def test_later_keys_leave_the_pairs_alone(folder: Path, tmp_path: Path) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    before = everything(folder)
    made = keyring(folder).create("bob", Role.READ, {}, lambda _: None)
    assert made.pairs == ()
    after = everything(folder)
    assert {name: after[name] for name in before} == before
    assert [grant.name for grant in keyring(folder).grants()] == ["alice", "bob"]


def test_a_missing_pair_is_made_and_the_other_kept(folder: Path, tmp_path: Path) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    gateway = (folder / "gateway.key").read_bytes()
    (folder / "bus.key").unlink()
    made = keyring(folder).create("bob", Role.READ, {}, lambda _: None)
    assert made.pairs == (folder / "bus.key",)
    assert (folder / "gateway.key").read_bytes() == gateway


def test_a_name_is_given_once(folder: Path, tmp_path: Path) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    before = everything(folder)
    with pytest.raises(KeyringError, match="a key called alice already"):
        create(folder, "alice", tmp_path / "other.key")
    keyring(folder).revoke("alice")
    with pytest.raises(KeyringError, match="it was revoked at 2026-03-01T09:30:00Z"):
        create(folder, "alice", tmp_path / "other.key")
    assert not (tmp_path / "other.key").exists()
    assert set(everything(folder)) == set(before)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        ".hidden",
        "../up",
        "a/b",
        "/etc/passwd",
        "a\\b",
        "a b",
        "a\n",
        "a\0",
        "-option",
        "_",
        "naïve",
        "аlice",  # a Cyrillic letter
        "x" * 65,
        "~root",
        "$HOME",
    ],
)
def test_names_that_could_be_paths_are_refused_before_anything_is_made(
    folder: Path, name: str
) -> None:
    with pytest.raises(KeyringError, match="is no name of a key"):
        keyring(folder).create(name, Role.READ, {}, lambda _: None)
    with pytest.raises(KeyringError, match="is no name of a key"):
        keyring(folder).revoke(name)
    assert not folder.exists()


def test_the_gateways_own_name_is_taken(folder: Path) -> None:
    with pytest.raises(KeyringError, match="the gateway itself"):
        keyring(folder).create("gateway", Role.ADMIN, {}, lambda _: None)
    assert not folder.exists()


def test_a_link_in_the_place_of_a_grant_counts_as_taken(folder: Path, tmp_path: Path) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    grant_path(folder, "bob").symlink_to(grant_path(folder, "alice"))
    with pytest.raises(KeyringError, match="already"):
        create(folder, "bob", tmp_path / "bob.key")
    grant_path(folder, "carol").symlink_to(tmp_path / "nowhere")
    with pytest.raises(KeyFileError):
        create(folder, "carol", tmp_path / "carol.key")
    assert not (tmp_path / "nowhere").exists()


def test_revoking_keeps_everything_but_the_time(folder: Path, tmp_path: Path) -> None:
    limits = {"max_rate": 7}
    made = keyring(folder).create("alice", Role.READ, limits, lambda _: None)
    later = datetime(2026, 3, 2, 11, 0, tzinfo=timezone(timedelta(hours=2)))
    grant, changed = Keyring(folder, now=lambda: later).revoke("alice")
    assert changed
    assert grant == read_grant(grant_path(folder, "alice"))
    assert grant.revoked == "2026-03-02T09:00:00Z"
    assert (grant.created, grant.role, grant.max_rate) == ("2026-03-01T09:30:00Z", Role.READ, 7)
    assert grant.public == made.key.pair.public
    # The first time stays.
    assert keyring(folder).revoke("alice") == (grant, False)


def test_what_is_not_there_cannot_be_revoked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyringError, match=f"no key called alice in {re.escape(str(folder))}"):
        keyring(folder).revoke("alice")
    assert not folder.exists()


def test_a_folder_that_is_none_is_not_taken_for_an_empty_one(folder: Path) -> None:
    with pytest.raises(KeyringError, match="no folder of keys"):
        keyring(folder).grants()
    assert not folder.exists()


@pytest.mark.parametrize("file", ["gateway.key", "bus.key"])
def test_a_pair_that_does_not_belong_together_gets_no_clients(
    folder: Path, tmp_path: Path, file: str
) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    pair, other = new_key_pair(), new_key_pair()
    text = pair_text(pair, "x").replace(pair.public.decode(), other.public.decode())
    (folder / file).write_text(text)
    with pytest.raises(KeyFileError, match="does not belong to its secret") as caught:
        create(folder, "bob", tmp_path / "bob.key")
    assert pair.secret.decode() not in str(caught.value)
    assert not (tmp_path / "bob.key").exists()


def test_a_damaged_grant_is_named(folder: Path, tmp_path: Path) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    grant_path(folder, "alice").write_text("role = ")
    for act in (keyring(folder).grants, lambda: create(folder, "bob", tmp_path / "bob.key")):
        with pytest.raises(KeyFileError, match=r"alice\.toml"):
            act()


def test_one_process_at_a_time_changes_a_folder(folder: Path, tmp_path: Path) -> None:
    create(folder, "alice", tmp_path / "alice.key")
    held = Storage().lock_exclusive(folder / ".lock")
    with pytest.raises(StorageError, match="held by process"):
        create(folder, "bob", tmp_path / "bob.key")
    with pytest.raises(StorageError, match="held by process"):
        keyring(folder).revoke("alice")
    # Reading needs no lock.
    assert [grant.name for grant in keyring(folder).grants()] == ["alice"]
    held.release()
    create(folder, "bob", tmp_path / "bob.key")


def test_no_grant_stays_when_the_key_cannot_be_handed_over(folder: Path) -> None:
    def fails(_: str) -> None:
        raise BrokenPipeError(errno.EPIPE, "gone")

    with pytest.raises(BrokenPipeError):
        keyring(folder).create("alice", Role.READ, {}, fails)
    assert keyring(folder).grants() == []


def test_an_existing_file_is_never_touched(tmp_path: Path) -> None:
    file, link = tmp_path / "a.key", tmp_path / "b.key"
    file.write_text("mine")
    link.symlink_to(tmp_path / "target")
    for path in (file, link):
        with pytest.raises(StorageError):
            write_new(path, "secret")
    assert file.read_text() == "mine"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_after_any_failure_the_folder_works_and_no_grant_is_without_its_key(
    tmp_path: Path, error: int
) -> None:
    calls = FaultyStorage()
    create(tmp_path / "none", "alice", tmp_path / "none.key", calls)
    tried = 0
    for operation, count in calls.calls.items():
        for nth in range(1, count + 1):
            place = tmp_path / f"{operation}{nth}"
            place.mkdir()
            process = Process(Fault(operation, nth, error))
            # An error of a close is told in some places and not in others.
            try:
                create(place / "keys", "alice", place / "alice.key", process)
                failed = False
            except StorageError:
                failed = True
            assert process.failed == [operation]
            process.end()
            assert_usable(place, failed=failed)
            tried += failed
    assert tried > 20


def test_after_a_crash_at_any_moment_the_folder_works(tmp_path: Path) -> None:
    calls = FaultyStorage()
    create(tmp_path / "none", "alice", tmp_path / "none.key", calls)
    for moment in range(1, calls.calls.total() + 1):
        place = tmp_path / str(moment)
        place.mkdir()
        process = Process(crash_at=moment)
        with pytest.raises(SimulatedCrash):
            create(place / "keys", "alice", place / "alice.key", process)
        process.end()
        assert_usable(place, failed=False)


def assert_usable(place: Path, *, failed: bool) -> None:
    """Whatever is there is whole, and another key can be made."""
    folder = place / "keys"
    granted = grant_path(folder, "alice").exists()
    if granted:
        key = read_client_key(place / "alice.key")
        assert key.pair.public in read_grants(folder)
    assert not (failed and granted)
    create(folder, "bob", place / "bob.key")
    assert matches(read_pair(folder / "gateway.key"))
    assert read_client_key(place / "bob.key").gateway == read_pair(folder / "gateway.key").public
    if not granted:
        with_another_file = place / "again.key"
        create(folder, "alice", with_another_file)
        assert read_client_key(with_another_file).pair.public in read_grants(folder)


def test_after_a_crash_in_revoke_the_grant_is_as_before_or_revoked(tmp_path: Path) -> None:
    for moment in range(1, 40):
        folder = tmp_path / str(moment)
        create(folder, "alice", tmp_path / f"{moment}.key")
        process = Process(crash_at=moment)
        try:
            keyring(folder, process).revoke("alice")
        except SimulatedCrash:
            process.end()
            (grant,) = keyring(folder).grants()
            assert grant.name == "alice"
            assert keyring(folder).revoke("alice")[0].revoked
        else:
            break
    else:
        pytest.fail("it never came to an end")
    assert moment > 5
