"""Key files as they are read: what is taken, what is refused, and that no secret is told."""

import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.common.errors import FINAL_EXIT_CODES
from tallybus.common.security import curve, keys, pairs
from tallybus.common.security.curve import new_key_pair
from tallybus.common.security.keys import (
    ClientKey,
    Grant,
    KeyFileError,
    KeyPair,
    Role,
    good_grants,
    grant_path,
    grant_text,
    is_name,
    pair_text,
    read_client_key,
    read_grant,
    read_grants,
    read_pair,
)
from tallybus.common.settings.sections import Settings, load

PAIR = new_key_pair()
OTHER = new_key_pair()
MADE = "2026-03-01T09:30:00Z"
ALICE = Grant("alice", PAIR.public, Role.SUBMIT, MADE)


def write(path: Path, text: str | bytes, mode: int = 0o600) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    path.chmod(mode)
    return path


def text_of(pair: KeyPair) -> str:
    return pair_text(pair, "A pair")


def refused(path: Path) -> str:
    with pytest.raises(KeyFileError) as caught:
        read_pair(path)
    error = caught.value
    assert error.path == path
    assert str(path) in str(error)
    assert error.reason in str(error)
    assert error.exit_code in FINAL_EXIT_CODES
    assert not error.restart
    return error.reason


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    assert read_pair(write(tmp_path / "a.key", text_of(PAIR))) == PAIR
    key = ClientKey("alice", PAIR, OTHER.public)
    assert read_client_key(write(tmp_path / "b.key", keys.client_key_text(key))) == key
    for grant in (
        ALICE,
        replace(ALICE, revoked=MADE, role=Role.ADMIN),
        replace(ALICE, max_in_flight=1, max_rate=2, max_message_bytes=2**63 - 1),
        replace(ALICE, functions=("fee_transfer", "pay_*", "?x")),
        replace(ALICE, functions=(), max_rate=2),
        replace(ALICE, functions=("pay",), builtins=False, revoked=MADE),
    ):
        path = write(grant_path(tmp_path, "alice"), grant_text(grant), 0o644)
        assert read_grant(path) == grant
        assert read_grants(tmp_path) == {grant.public: grant}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o660, 0o666, 0o664, 0o422, 0o777])
def test_a_secret_that_others_could_change_is_refused(tmp_path: Path, mode: int) -> None:
    reason = refused(write(tmp_path / "a.key", text_of(PAIR), mode))
    assert f"mode {mode:04o}" in reason
    assert "`chmod 600`" in reason


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_secret_of_its_owner_alone_is_taken(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert read_pair(write(tmp_path / "a.key", text_of(PAIR), mode)) == PAIR
    assert not caplog.records


@pytest.mark.parametrize("mode", [0o440, 0o444, 0o640, 0o644, 0o604, 0o755])
def test_a_secret_that_others_may_read_is_taken_and_told_once(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.key", text_of(PAIR), mode)
    assert read_pair(path) == read_pair(path) == PAIR
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{path} has mode {mode:04o}" in record.getMessage()
    assert PAIR.secret.decode() not in record.getMessage()


def foreign(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the file belong to another user; neither that one nor the reader is root."""
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
        monkeypatch.setattr(os, "getuid", lambda: 54321)
    else:
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)


def test_a_secret_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.key", text_of(PAIR))
    foreign(path, monkeypatch)
    assert "belongs to user" in refused(path)


@pytest.mark.parametrize("mode", [0o600, 0o440])
def test_root_takes_the_key_of_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    path = write(tmp_path / "a.key", text_of(PAIR), mode)
    foreign(path, monkeypatch)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert read_pair(path) == PAIR


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("mode", [0o440, 0o444])
def test_secrets_of_root_are_taken_by_who_may_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    path = write(tmp_path / "a.key", text_of(PAIR), mode)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert read_pair(path) == PAIR


@pytest.mark.parametrize("mode", [0o440, 0o444, 0o644, 0o777])
def test_on_a_read_only_mount_modes_and_owners_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    """As Kubernetes mounts secrets: links into a folder of mode 1777, which nobody can write to."""
    pair = write(tmp_path / "..data" / "gateway.key", text_of(PAIR), mode)
    write(tmp_path / "..data" / "alice", grant_text(ALICE), mode)
    (tmp_path / "gateway.key").symlink_to("..data/gateway.key")
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "alice.toml").symlink_to("../..data/alice")
    for place in (tmp_path, tmp_path / "clients"):
        place.chmod(0o1777)
    with pytest.raises(KeyFileError, match="others may change it"):
        read_grants(tmp_path)
    monkeypatch.setattr(keys, "_is_read_only", lambda _: True)
    foreign(pair, monkeypatch)
    assert read_pair(tmp_path / "gateway.key") == PAIR
    assert set(read_grants(tmp_path)) == {ALICE.public}
    assert not caplog.records


def test_a_read_only_mount_is_known() -> None:
    assert keys._is_read_only(os.statvfs_result((0,) * 8 + (os.ST_RDONLY | os.ST_NOSUID, 0)))
    assert not keys._is_read_only(os.statvfs_result((0,) * 8 + (os.ST_NOSUID, 0)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "has no key 'public'"),
        ("public = 1", "has no key 'public'"),
        (f'secret = "{"0" * 40}"', "has no key 'public'"),
        (f'public = "{"0" * 40}"', "has no key 'secret'"),
        (f'public = "{"0" * 40}"\nsecret = "{"0" * 39}"', "has no key 'secret'"),
        (f'public = "{"0" * 40}"\nsecret = "{"0" * 41}"', "has no key 'secret'"),
        (f'public = "{"0" * 40}"\nsecret = "{"0" * 39}\u00e9"', "has no key 'secret'"),
        (f'public = "{"0" * 40}"\nsecret = "{"0" * 40}"x', "is not valid TOML"),
        (b"\xff\xfe", "is not valid TOML"),
        (b"\0" * 10, "is not valid TOML"),
        ("# " + "x" * 70_000, "is too long for a key"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, content: str | bytes, reason: str) -> None:
    assert reason in refused(write(tmp_path / "a.key", content))


def test_missing_and_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "a.key")
    (tmp_path / "b.key").mkdir()
    assert "directory" in refused(tmp_path / "b.key")


@given(st.binary(max_size=200))
def test_no_garbage_is_taken_for_a_pair(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises(KeyFileError):
        read_pair(write(Path(folder) / "a.key", content))


def test_no_message_and_no_repr_shows_a_secret(tmp_path: Path) -> None:
    secret = PAIR.secret.decode()
    assert secret not in repr(PAIR)
    assert secret not in repr(ClientKey("alice", PAIR, OTHER.public))
    assert secret not in str([PAIR])
    assert secret not in repr(pairs.Security(PAIR, PAIR))
    for damage in ("x", '"', "\n[", "\nsecret = 1"):
        path = write(tmp_path / "a.key", text_of(PAIR) + damage)
        with pytest.raises(KeyFileError) as caught:
            read_pair(path)
        told = [str(caught.value), repr(caught.value.__cause__)]
        assert not any(secret in each for each in told)


@pytest.mark.parametrize("name", ["a", "0", "alice", "a.b-c_d", "A" * 64])
def test_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("name", ["", ".a", "-a", "_a", "a/b", "..", "a b", "a\n", "é", "A" * 65])
def test_what_is_no_name(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("role", 'role = "owner"'), "needs a role"),
        (("role", "role = 3"), "needs a role"),
        (("role", 'role = "Admin"'), "needs a role"),
        (("role", 'role = "adm\u0131n"'), "needs a role"),
        (("role", ""), "needs a role"),
        (("public", ""), "has no key 'public'"),
        (("created", 'created = "yesterday"'), "'created' that is no time"),
        (("created", 'revoked = "x"'), "'revoked' that is no time"),
        (("created", "revoked = true"), "'revoked' that is no time"),
        (("created", "max_rate = -1"), "'max_rate' that is no whole number"),
        (("created", "max_rate = true"), "'max_rate' that is no whole number"),
        (("created", "max_rate = 1.5"), "'max_rate' that is no whole number"),
        (("created", "max_rate = 9223372036854775808"), "'max_rate' that is no whole number"),
        # A misspelt limit or revocation must not be passed over.
        (("created", 'revokd = "2026-03-01"'), "unknown field 'revokd'"),
        (("created", "max_inflight = 5"), "unknown field 'max_inflight'"),
    ],
)
def test_grants_that_say_something_else_are_refused(
    tmp_path: Path, change: tuple[str, str], reason: str
) -> None:
    lines = grant_text(ALICE).splitlines()
    field, line = change
    text = "\n".join(line if each.startswith(field) else each for each in lines)
    path = write(grant_path(tmp_path, "alice"), text)
    with pytest.raises(KeyFileError, match=reason):
        read_grant(path)
    with pytest.raises(KeyFileError, match=reason):
        read_grants(tmp_path)
    grants, errors = good_grants(tmp_path)
    assert (grants, [error.path for error in errors]) == ({}, [path])


def test_a_key_with_two_grants_is_refused_and_counts_in_neither(tmp_path: Path) -> None:
    for name in ("alice", "bob", "carol"):
        write(grant_path(tmp_path, name), grant_text(replace(ALICE, name=name)))
    dave = Grant("dave", OTHER.public, Role.READ, MADE)
    write(grant_path(tmp_path, "dave"), grant_text(dave))
    with pytest.raises(KeyFileError, match="has the public key of alice, too"):
        read_grants(tmp_path)
    grants, errors = good_grants(tmp_path)
    assert grants == {OTHER.public: dave}
    assert len(errors) == 2


def test_other_files_are_no_grants(tmp_path: Path) -> None:
    write(grant_path(tmp_path, "alice"), grant_text(ALICE))
    for name in (".bob.toml", "carol.toml.tmp", "dave", "erin.toml~"):
        write(tmp_path / "clients" / name, "garbage")
    assert set(read_grants(tmp_path)) == {ALICE.public}


def test_a_grant_whose_name_is_none_is_refused(tmp_path: Path) -> None:
    write(grant_path(tmp_path, "_bad name"), grant_text(ALICE))
    with pytest.raises(KeyFileError, match="has no good name"):
        read_grants(tmp_path)


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o602, 0o622])
def test_a_grant_that_others_could_change_locks_its_client_out(tmp_path: Path, mode: int) -> None:
    write(grant_path(tmp_path, "alice"), grant_text(ALICE))
    bob = replace(ALICE, name="bob", public=OTHER.public)
    write(grant_path(tmp_path, "bob"), grant_text(bob), mode)
    with pytest.raises(KeyFileError, match="others may change"):
        read_grants(tmp_path)
    assert set(good_grants(tmp_path)[0]) == {ALICE.public}


@pytest.mark.parametrize("place", [".", "clients"])
def test_a_folder_that_others_could_change_lets_nobody_in(tmp_path: Path, place: str) -> None:
    write(grant_path(tmp_path, "alice"), grant_text(ALICE))
    (tmp_path / place).chmod(0o775)
    with pytest.raises(KeyFileError, match="others may change"):
        read_grants(tmp_path)
    grants, errors = good_grants(tmp_path)
    assert grants == {}
    assert len(errors) == 1


def test_a_field_that_does_not_look_like_one_is_not_repeated(tmp_path: Path) -> None:
    secret = "5@/mQ.%7Wq" * 4
    write(grant_path(tmp_path, "alice"), grant_text(ALICE) + f'"{secret}" = 1\n')
    with pytest.raises(KeyFileError, match="unknown field") as raised:
        read_grants(tmp_path)
    assert secret not in str(raised.value)


def test_a_pipe_in_place_of_a_grant_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(grant_path(tmp_path, "alice"), grant_text(ALICE))
    os.mkfifo(grant_path(tmp_path, "bob"))
    with pytest.raises(KeyFileError, match="is no file"):
        read_grants(tmp_path)
    grants, errors = good_grants(tmp_path)
    assert set(grants) == {ALICE.public}
    assert len(errors) == 1


def test_without_a_folder_there_are_no_grants(tmp_path: Path) -> None:
    assert read_grants(tmp_path) == {}
    write(tmp_path / "clients", "")
    with pytest.raises(KeyFileError, match="cannot be listed"):
        read_grants(tmp_path)


def test_limits_of_a_grant_are_all_told() -> None:
    limits = [each.name for each in fields(Grant) if each.name.startswith("max_")]
    assert limits == list(keys.LIMITS)


# Which of them a service needs


def settings(tmp_path: Path, **overrides: object) -> Settings:
    return load(
        environ={},
        overrides={
            "security.keys": tmp_path,
            **{name.replace("__", "."): value for name, value in overrides.items()},
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "gateway.key", text_of(PAIR))
    write(tmp_path / "bus.key", text_of(OTHER))
    return tmp_path


def test_each_service_is_given_what_it_needs(folder: Path) -> None:
    ipc = settings(folder)
    assert pairs.load(ipc, "gateway") == pairs.Security(clients=PAIR)
    assert pairs.load(ipc, "wal") == pairs.Security()
    tcp = settings(folder, bus__transport="tcp")
    assert pairs.load(tcp, "gateway") == pairs.Security(PAIR, OTHER)
    assert pairs.load(tcp, "wal") == pairs.Security(bus=OTHER)
    local = settings(folder, gateway__endpoint="ipc:///tmp/x")
    assert pairs.load(local, "gateway") == pairs.Security()
    some = settings(folder, bus__wal_data="tcp://127.0.0.1:7000")
    assert pairs.load(some, "transactor") == pairs.Security(bus=OTHER)
    assert pairs.load(load(environ={}), "gateway") is None


def test_a_service_reads_no_file_that_it_does_not_need(folder: Path) -> None:
    (folder / "gateway.key").unlink()
    tcp = settings(folder, bus__transport="tcp")
    assert pairs.load(tcp, "wal") == pairs.Security(bus=OTHER)
    with pytest.raises(KeyFileError, match=r"gateway\.key"):
        pairs.load(tcp, "gateway")
    write(folder / "gateway.key", text_of(PAIR))
    (folder / "bus.key").unlink()
    assert pairs.load(settings(folder), "gateway") == pairs.Security(clients=PAIR)
    for service in ("gateway", "wal"):
        with pytest.raises(KeyFileError, match=r"bus\.key"):
            pairs.load(tcp, service)


@pytest.mark.parametrize("file", ["gateway.key", "bus.key"])
@pytest.mark.parametrize(
    "public", [new_key_pair().public, b"#" * 40, b"0" * 40], ids=["of another pair", "#", "0"]
)
def test_a_public_key_must_belong_to_its_secret(folder: Path, public: bytes, file: str) -> None:
    write(folder / file, text_of(replace(PAIR, public=public)))
    with pytest.raises(KeyFileError, match=f"{file} has a public key that does not belong"):
        pairs.load(settings(folder, bus__transport="tcp"), "gateway")


@pytest.mark.parametrize("secret", [b"#" * 40, b"0" * 39, b""])
def test_what_is_no_secret_matches_nothing(secret: bytes) -> None:
    assert not curve.matches(KeyPair(PAIR.public, secret))


def test_a_missing_pair_is_never_replaced_by_a_plain_socket() -> None:
    for domain in ("clients", "bus", "other"):
        with pytest.raises(LookupError):
            pairs.Security().pair(domain)
    with pytest.raises(LookupError):
        pairs.Security(PAIR, OTHER).pair("other")
    assert pairs.Security(PAIR, OTHER).pair("clients") == PAIR
    assert pairs.Security(PAIR, OTHER).pair("bus") == OTHER


def test_a_grant_that_restricts_nothing_is_as_it_always_was(tmp_path: Path) -> None:
    text = grant_text(ALICE)
    assert "functions" not in text
    assert "builtins" not in text
    # Of a key that was made before there were such fields.
    before = f'public = "{PAIR.public.decode()}"\nrole = "submit"\ncreated = "{MADE}"\n'
    grant = read_grant(write(grant_path(tmp_path, "alice"), before, 0o644))
    assert (grant.functions, grant.builtins) == (None, True)
    assert text == f"# What the client alice may do.\n{before}"
    restricted = grant_text(replace(ALICE, functions=("a", "b_*"), builtins=False))
    assert restricted == f'{text}functions = ["a", "b_*"]\nbuiltins = false\n'


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ('functions = "pay"', "'functions' that is no list"),
        ("functions = 5", "'functions' that is no list"),
        ("functions = {}", "'functions' that is no list"),
        (f"functions = {['a'] * 257}", "'functions' that is no list of up to 256"),
        ("functions = [5]", "'functions' with something else"),
        ('functions = [""]', "'functions' with something else"),
        ('functions = ["a", "1st"]', "'functions' with something else"),
        ('functions = ["a b"]', "'functions' with something else"),
        ('functions = ["a-b"]', "'functions' with something else"),
        ('functions = ["[ab]"]', "'functions' with something else"),
        ('functions = ["naïve"]', "'functions' with something else"),
        (f'functions = ["{"x" * 33}"]', "'functions' with something else"),
        ('functions = [["a"]]', "'functions' with something else"),
        ("builtins = 0", "'builtins' that is neither"),
        ('builtins = "false"', "'builtins' that is neither"),
        ("function = []", "unknown field 'function'"),
    ],
)
def test_a_grant_is_never_guessed(tmp_path: Path, field: str, reason: str) -> None:
    path = write(grant_path(tmp_path, "alice"), f"{grant_text(ALICE)}{field}\n", 0o644)
    with pytest.raises(KeyFileError) as caught:
        read_grant(path)
    assert reason in caught.value.reason
    # Who cannot be understood may do nothing, rather than everything.
    assert good_grants(tmp_path)[0] == {}
