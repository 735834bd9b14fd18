"""`tallybus keys`: what it prints and makes, what it refuses, and its exit codes."""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tallybus.cli import keys, main
from tallybus.common.errors import EXIT_SETTINGS
from tallybus.common.security.keys import (
    Role,
    grant_path,
    read_client_key,
    read_grant,
    read_grants,
    read_pair,
)
from tests.support.faulty_storage import Fault, FaultyStorage


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the commands."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def run(*arguments: object, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["keys", *map(str, arguments)], env=env)


def create(name: str, folder: Path, *arguments: object, role: str = "submit") -> Result:
    return run("create", name, "--role", role, "--folder", folder, *arguments)


def secrets(*paths: Path) -> list[str]:
    return [
        line.split('"')[1]
        for path in paths
        for line in path.read_text().splitlines()
        if line.startswith("secret")
    ]


def test_a_key_is_made_in_the_working_directory(folder: Path, here: Path) -> None:
    done = create("alice", folder)
    key = read_client_key(here / "alice.key")
    public = key.pair.public.decode()
    assert done.exit_code == 0
    assert done.stdout == f"alice: submit, key in alice.key, public key {public}\n"
    assert done.stderr == f"made {folder}/gateway.key\nmade {folder}/bus.key\n"
    assert key.gateway == read_pair(folder / "gateway.key").public
    assert stat.S_IMODE((here / "alice.key").stat().st_mode) == 0o600
    assert read_grants(folder)[key.pair.public].role is Role.SUBMIT
    done = create("bob", folder, role="read")
    assert (done.exit_code, done.stderr) == (0, "")


def test_the_file_goes_where_it_is_told_to(folder: Path, tmp_path: Path, here: Path) -> None:
    assert create("alice", folder, "--out", tmp_path / "a.key").exit_code == 0
    assert read_client_key(tmp_path / "a.key").name == "alice"
    assert list(here.iterdir()) == []


def test_standard_output_gets_the_file_and_nothing_else(
    folder: Path, tmp_path: Path, here: Path
) -> None:
    done = create("alice", folder, "--out", "-")
    assert done.exit_code == 0
    path = tmp_path / "a.key"
    path.write_text(done.stdout)
    path.chmod(0o600)
    key = read_client_key(path)
    assert key.pair.public in read_grants(folder)
    assert done.stderr.splitlines()[-1] == (f"alice: submit, public key {key.pair.public.decode()}")
    assert secrets(path)[0] not in done.stderr
    assert list(here.iterdir()) == []


def test_limits_go_into_the_grant(folder: Path) -> None:
    done = create("alice", folder, "--max-in-flight", 5, "--max-rate", 6, "--max-message-bytes", 7)
    assert done.exit_code == 0
    grant = read_grant(grant_path(folder, "alice"))
    assert (grant.max_in_flight, grant.max_rate, grant.max_message_bytes) == (5, 6, 7)


@pytest.mark.parametrize(
    ("arguments", "functions", "builtins", "shown"),
    [
        ((), None, True, "everything"),
        (("--functions", "all"), None, True, "everything"),
        (("--functions", "none"), (), True, "built-in operations"),
        (("--functions", "fee"), ("fee",), True, "built-in operations, calls of fee"),
        (
            ("--functions", "fee_transfer, pay_*,fee_transfer", "--no-builtins"),
            ("fee_transfer", "pay_*"),
            False,
            "calls of fee_transfer, pay_*",
        ),
        (("--no-builtins",), None, False, "calls of all functions"),
        # Words of the option, beside others names like any.
        (
            ("--functions", "none,all"),
            ("none", "all"),
            True,
            "built-in operations, calls of none, all",
        ),
    ],
)
def test_a_key_may_be_for_some_functions_alone(
    folder: Path,
    arguments: tuple[str, ...],
    functions: tuple[str, ...] | None,
    builtins: bool,
    shown: str,
) -> None:
    assert create("alice", folder, *arguments).exit_code == 0
    grant = read_grant(grant_path(folder, "alice"))
    assert (grant.functions, grant.builtins) == (functions, builtins)
    row = run("list", "--folder", folder).stdout.splitlines()[1].split("\t")
    assert row[-1] == shown
    (told,) = json.loads(run("list", "--folder", folder, "--json").stdout)["keys"]
    assert told["functions"] == (None if functions is None else list(functions))
    assert told["builtins"] == builtins


@pytest.mark.parametrize(
    ("role", "arguments", "words"),
    [
        ("submit", ("--functions", ""), "names no functions"),
        ("submit", ("--functions", "a,,b"), "names no functions"),
        ("submit", ("--functions", "a,"), "names no functions"),
        ("submit", ("--functions", "1st"), "names no functions"),
        ("submit", ("--functions", "a;b"), "names no functions"),
        ("submit", ("--functions", "a b"), "names no functions"),
        ("submit", ("--functions", "[ab]"), "names no functions"),
        ("submit", ("--functions", "x" * 33), "names no functions"),
        ("submit", ("--functions", ",".join(f"f{n}" for n in range(257))), "256"),
        ("submit", ("--functions", "none", "--no-builtins"), "nothing would be left"),
        ("read", ("--functions", "fee"), "role read"),
        ("read", ("--functions", "none"), "role read"),
        ("read", ("--no-builtins",), "role read"),
    ],
)
def test_what_grants_nothing_is_refused_and_nothing_is_made(
    folder: Path, here: Path, role: str, arguments: tuple[str, ...], words: str
) -> None:
    done = create("alice", folder, *arguments, role=role)
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr
    assert not folder.exists()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "x", "9223372036854775808"])
@pytest.mark.parametrize("option", ["--max-in-flight", "--max-rate", "--max-message-bytes"])
def test_limits_are_whole_numbers(folder: Path, option: str, number: str) -> None:
    done = create("alice", folder, option, number)
    assert done.exit_code == 2
    assert not folder.exists()


def test_the_role_is_never_guessed(folder: Path) -> None:
    done = run("create", "alice", "--folder", folder)
    assert done.exit_code == 2
    assert "--role" in done.stderr
    assert create("alice", folder, role="root").exit_code == 2
    assert not folder.exists()


def test_the_folder_comes_from_the_settings(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "tallybus.toml"
    config.write_text(f'[security]\nkeys = "{folder}"\n')
    assert run("create", "alice", "--role", "read", "--config", config).exit_code == 0
    assert run("list", "--set", f"security.keys={folder}").stdout.count("\n") == 2
    assert run("revoke", "alice", env={"TALLYBUS_SECURITY_KEYS": str(folder)}).exit_code == 0
    for command in (["create", "bob", "--role", "read"], ["list"], ["revoke", "alice"]):
        done = run(*command)
        assert done.exit_code == 2
        assert "--folder" in done.stderr


def test_a_taken_name_is_refused_and_nothing_is_made(folder: Path, here: Path) -> None:
    create("alice", folder)
    done = create("alice", folder, "--out", "other.key")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: there is a key called alice already (made 2")
    run("revoke", "alice", "--folder", folder)
    done = create("alice", folder, "--out", "other.key")
    assert done.exit_code == 2
    assert "it was revoked at" in done.stderr
    assert [path.name for path in here.iterdir()] == ["alice.key"]


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_there_is_not_overwritten(folder: Path, here: Path, kind: str) -> None:
    path = here / "alice.key"
    if kind == "file":
        path.write_text("mine")
    elif kind == "link":
        path.symlink_to(here / "target")
    else:
        path.mkdir()
    done = create("alice", folder)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == "Error: alice.key is there already; choose another --out\n"
    assert not folder.exists()
    assert not (here / "target").exists()


@pytest.mark.parametrize(
    "name", ["../alice", "a/b", "/tmp/alice", ".alice", "..", "a b", "gateway"]
)
def test_names_that_are_none_are_refused(folder: Path, name: str, tmp_path: Path) -> None:
    done = create(name, folder)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert not folder.exists()
    assert not list(tmp_path.glob("**/*.key"))


def test_a_file_that_cannot_be_written_leaves_no_grant(folder: Path, tmp_path: Path) -> None:
    done = create("alice", folder, "--out", tmp_path / "nowhere" / "a.key")
    assert done.exit_code == 5
    assert str(tmp_path / "nowhere" / "a.key") in done.stderr
    assert read_grants(folder) == {}
    assert create("alice", folder).exit_code == 0


def test_a_full_disk_leaves_neither_key_nor_grant(
    folder: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = FaultyStorage()
    with monkeypatch.context() as patch:
        patch.setattr(keys, "STORAGE", calls)
        assert create("none", folder).exit_code == 0
    writes = calls.calls["write"]
    assert writes == 5  # the lock, two pairs, the client's file, the grant
    for nth in (writes - 3, writes - 2):  # the pairs are there now
        with monkeypatch.context() as patch:
            patch.setattr(keys, "STORAGE", FaultyStorage(None, Fault("write", nth, errno.ENOSPC)))
            done = create("alice", folder)
        assert done.exit_code == 5
        assert "No space left" in done.stderr
        assert [grant.name for grant in read_grants(folder).values()] == ["none"]
        assert [path.name for path in here.iterdir()] == ["none.key"]
    assert create("alice", folder).exit_code == 0


def test_keys_are_listed_without_their_secrets(folder: Path, here: Path) -> None:
    create("bob", folder, "--max-rate", 100, role="admin")
    create("alice", folder, role="read")
    run("revoke", "bob", "--folder", folder)
    alice, bob = (read_grant(grant_path(folder, name)) for name in ("alice", "bob"))
    done = run("list", "--folder", folder)
    header, *rows = (line.split("\t") for line in done.stdout.splitlines())
    assert header == [
        *("name", "role", "created", "revoked", "in flight", "rate", "message bytes"),
        *("work ms", "public key", "may submit"),
    ]
    assert rows == [
        ["alice", "read", alice.created, "", "", "", "", "", alice.public.decode(), "nothing"],
        [
            *("bob", "admin", bob.created, bob.revoked, "", "100", "", "", bob.public.decode()),
            "everything",
        ],
    ]
    told = json.loads(run("list", "--folder", folder, "--json").stdout)
    assert told["keys"][1] == {
        "name": "bob",
        "role": "admin",
        "created": bob.created,
        "revoked": bob.revoked,
        "max_in_flight": None,
        "max_rate": 100,
        "max_message_bytes": None,
        "max_work_ms": None,
        "functions": None,
        "builtins": True,
        "public": bob.public.decode(),
    }
    assert told["keys"][0]["revoked"] is None
    hidden = secrets(
        here / "alice.key", here / "bob.key", folder / "gateway.key", folder / "bus.key"
    )
    assert len(hidden) == 4
    assert not any(secret in done.output + json.dumps(told) for secret in hidden)


def test_revoking_tells_when_and_that_it_was_already(folder: Path) -> None:
    create("alice", folder)
    done = run("revoke", "alice", "--folder", folder)
    grant = read_grant(grant_path(folder, "alice"))
    assert (done.exit_code, done.stdout) == (0, f"alice: revoked at {grant.revoked}\n")
    again = run("revoke", "alice", "--folder", folder)
    assert again.exit_code == 0
    assert again.stdout == f"alice: was revoked already, at {grant.revoked}\n"
    assert read_grant(grant_path(folder, "alice")) == grant


def test_what_is_not_there_cannot_be_revoked_or_listed(folder: Path) -> None:
    done = run("list", "--folder", folder)
    assert done.exit_code == 2
    assert "no folder of keys" in done.stderr
    for made in (False, True):
        if made:
            create("alice", folder)
        done = run("revoke", "bob", "--folder", folder)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == f"Error: there is no key called bob in {folder}\n"


def test_a_damaged_file_is_named(folder: Path) -> None:
    create("alice", folder)
    grant_path(folder, "alice").write_text("role = ")
    for command in (["list"], ["revoke", "alice"], ["create", "bob", "--role", "read"]):
        done = run(*command, "--folder", folder)
        assert (done.exit_code, done.stdout) == (EXIT_SETTINGS, "")
        assert f"{folder}/clients/alice.toml" in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_makes_and_revokes_keys_as_the_user_whose_folder_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That user's services have to read them; root's own file stays root's."""
    # Not in the test's folder: another user gets no further than to its parents.
    with tempfile.TemporaryDirectory() as made_for_all:
        here = Path(made_for_all)
        here.chmod(0o755)
        monkeypatch.chdir(here)
        folder = here / "keys"
        folder.mkdir(mode=0o700)
        os.chown(folder, 12345, 12345)
        assert create("alice", folder).exit_code == 0
        assert create("bob", folder).exit_code == 0
        assert run("revoke", "bob", "--folder", folder).exit_code == 0
        made = [folder / "gateway.key", folder / "bus.key", *(folder / "clients").iterdir()]
        assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(12345, 12345)}
        assert (here / "alice.key").stat().st_uid == 0
        assert (os.geteuid(), os.getegid()) == (0, os.getgid())
        # A name that is taken, and root is itself again after that as well.
        assert create("bob", folder).exit_code != 0
        assert os.geteuid() == 0
        monkeypatch.chdir("/")


def test_a_folder_that_may_only_be_read_can_be_listed(folder: Path) -> None:
    create("alice", folder)
    (folder / ".lock").unlink()
    before = sorted(folder.rglob("*"))
    assert run("list", "--folder", folder).exit_code == 0
    assert sorted(folder.rglob("*")) == before
