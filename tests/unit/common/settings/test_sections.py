"""Settings: precedence, checks, origins, and the addresses derived from them."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tallybus.common.settings.sections as module
from tallybus.common.errors import ServiceError, SettingsError
from tallybus.common.settings.sections import (
    SETTINGS,
    SOCKETS,
    BusSettings,
    Settings,
    data_folder,
    endpoint,
    load,
    run_folder,
)
from tallybus.common.settings.table import Setting, check_endpoint, parse_cpus
from tallybus.common.stages import SERVICES, STAGES


def write(folder: Path, text: str) -> Path:
    path = folder / "tallybus.toml"
    path.write_text(text, encoding="utf-8")
    return path


def origin(settings: Settings, key: str) -> str:
    return {entry.setting.key: entry.origin for entry in settings.effective()}[key]


def refused(**arguments: Any) -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(**{"environ": {}, **arguments})
    assert caught.value.reason in str(caught.value)
    assert caught.value.setting in str(caught.value)
    assert caught.value.origin in str(caught.value)
    return caught.value


# Precedence and origins


def test_defaults_are_the_documented_ones() -> None:
    settings = load(environ={})
    assert settings == Settings()
    assert settings.ledger.data == Path("./data")
    assert settings.ledger.max_accounts == 10_000_000
    assert settings.ledger.transactions_per_segment == 10_000_000
    assert settings.bus.max_in_flight == 1_048_576
    assert settings.gateway.endpoint == "tcp://127.0.0.1:5550"
    assert settings.gateway.max_batch == 65_536
    assert [settings.service(name).wait for name in SERVICES] == ["balanced"] * 5
    assert {entry.origin for entry in settings.effective()} == {"default"}


def test_later_sources_win_and_are_remembered(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[ledger]\nmax_accounts = 100\nsnapshots_kept = 5\ntransactions_per_segment = 7\n",
    )
    settings = load(
        path,
        environ={"TALLYBUS_LEDGER_SNAPSHOTS_KEPT": "6", "TALLYBUS_LEDGER_MAX_ACCOUNTS": "200"},
        overrides={"ledger.max_accounts": 300, "ledger.data": None},
    )
    assert settings.ledger.transactions_per_segment == 7
    assert settings.ledger.snapshots_kept == 6
    assert settings.ledger.max_accounts == 300
    assert origin(settings, "ledger.data") == "default"
    assert origin(settings, "ledger.transactions_per_segment") == f"file {path}"
    assert origin(settings, "ledger.snapshots_kept") == "environment TALLYBUS_LEDGER_SNAPSHOTS_KEPT"
    assert origin(settings, "ledger.max_accounts") == "command line"


def test_file_is_found_by_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "[logging]\nlevel = 'debug'\n")
    assert load(environ={"TALLYBUS_CONFIG": str(path)}).logging.level == "debug"
    assert load(environ={"TALLYBUS_CONFIG": ""}).logging.level == "info"


def test_explicit_file_wins_over_the_environment(tmp_path: Path) -> None:
    path = write(tmp_path, "[logging]\nlevel = 'debug'\n")
    settings = load(path, environ={"TALLYBUS_CONFIG": str(tmp_path / "missing.toml")})
    assert settings.logging.level == "debug"


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TALLYBUS_WAL_CPU", "1,3-4")
    assert load().wal.cpus == (1, 3, 4)


def test_clients_endpoint_is_no_setting_of_services() -> None:
    assert load(environ={"TALLYBUS_ENDPOINT": "tcp://example.org:1"}) == Settings()


def test_foreign_variables_are_left_alone() -> None:
    assert load(environ={"PATH": "/bin", "TALLYBUSY": "1"}) == Settings()


def of_an_engine(service: str) -> dict[str, str]:
    """What Kubernetes sets for a Service of this name, and container engines for a link to it."""
    name = service.upper().replace("-", "_")
    port = f"{name}_PORT_5550_TCP"
    return {
        f"{name}_SERVICE_HOST": "10.96.0.1",
        f"{name}_SERVICE_PORT": "5550",
        f"{name}_SERVICE_PORT_CLIENTS": "5550",
        f"{name}_PORT": "tcp://10.96.0.1:5550",
        port: "tcp://10.96.0.1:5550",
        f"{port}_PROTO": "tcp",
        f"{port}_PORT": "5550",
        f"{port}_ADDR": "10.96.0.1",
        f"{name}_PORT_53_UDP": "udp://[fd00::a]:53",
        f"{name}_PORT_53_UDP_ADDR": "fd00::a",
        f"{name}_NAME": f"/app/{service}",
        f"{name}_ENV_PATH": "/bin",
        f"{name}_ENV_TALLYBUS_LEDGER_DATA": "/data",
    }


@pytest.mark.parametrize(
    "service",
    ["tallybus", "tallybus-gateway", "tallybus-metrics-base", "tallybus-wal-2", "tallybus-ledger"],
)
def test_variables_that_kubernetes_makes_for_a_service_are_left_alone(service: str) -> None:
    made = of_an_engine(service)
    assert load(environ=made) == Settings()
    settings = load(environ={**made, "TALLYBUS_LEDGER_SNAPSHOTS_KEPT": "7"})
    assert settings.ledger.snapshots_kept == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TALLYBUS_GATEWAY_PORT", "5550"),
        ("TALLYBUS_PORT", "5550"),
        ("TALLYBUS_METRICS_PORT", "9464"),
        ("TALLYBUS_SERVICE_HOST", "my laptop"),
        ("TALLYBUS_GATEWAY_ENDPONT", "tcp://127.0.0.1:5550"),
        ("TALLYBUS_GATEWAY_NAME", "front"),
        ("TALLYBUS_ENV_MODE", "production"),
        ("TALLYBUS_BUS_BASE_PORTS", "5560"),
        ("TALLYBUS_BUS_BASE_PORT", "http"),
        ("TALLYBUS_GATEWAY_PAGE", "tcp://10.0.0.1:80"),
    ],
)
def test_what_only_looks_like_one_of_them_is_told(name: str, value: str) -> None:
    assert refused(environ={name: value}).setting == name


# Refusals


def test_a_path_that_the_encoding_of_the_process_cannot_hold_is_refused_by_its_setting(
    tmp_path: Path,
) -> None:
    file = tmp_path / "x.toml"
    code = "from tallybus.common.settings.sections import load; load('x.toml', environ={})"
    for key, content in (("ledger.data", "dé"), ("gateway.endpoint", "ipc:///tmp/é.sock")):
        section, name = key.split(".")
        file.write_text(f'[{section}]\n{name} = "{content}"\n', "utf-8")
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            check=False,
            env={
                "PYTHONPATH": str(Path(module.__file__).resolve().parents[2]),
                "LC_ALL": "POSIX",
                "PYTHONUTF8": "0",
                "PYTHONCOERCECLOCALE": "0",
            },
            capture_output=True,
            text=True,
        )
        assert f"SettingsError: {key} (file x.toml)" in done.stderr


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"ledger.max_accounts": 1}, "1 is out of range; give 2 to 4294967296"),
        ({"ledger.max_accounts": 2**32 + 1}, "out of range"),
        ({"ledger.max_accounts": "many"}, "'many' is not a whole number"),
        ({"ledger.max_accounts": True}, "True is not a whole number"),
        ({"ledger.max_accounts": 1e6}, "not a whole number"),
        ({"ledger.max_accounts": ""}, "'' is not a whole number"),
        ({"ledger.max_accounts": "9" * 5000}, "not a whole number"),
        ({"ledger.data": ""}, "path is empty"),
        ({"ledger.data": 3}, "is not text"),
        ({"ledger.data": "a\0b"}, "control characters"),
        ({"ledger.snapshots_kept": 0}, "out of range"),
        ({"bus.transport": "udp"}, "'udp' is not one of ipc, tcp or inproc"),
        ({"bus.host": "no host"}, "is not a host"),
        ({"bus.host": "{service}"}, "is not a host"),
        ({"bus.inproc_name": "a/b"}, "is not a name"),
        ({"bus.wal_data": "nowhere"}, "is not an endpoint"),
        ({"bus.wal_data": "ipc:///" + "x" * 100}, "101 bytes, 100 are allowed"),
        ({"bus.wal_data": "ipc://@wal"}, "a socket without a file"),
        ({"gateway.endpoint": "ipc://*"}, "a socket without a file"),
        ({"gateway.endpoint": ""}, "is not an endpoint"),
        ({"gateway.endpoint": "tcp://127.0.0.1"}, "needs a host and a port"),
        ({"gateway.endpoint": "tcp://127.0.0.1:65536"}, "needs a host and a port"),
        ({"gateway.endpoint": "udp://127.0.0.1:1"}, "is not an endpoint"),
        ({"gateway.wait": "never"}, "is not one of low_latency, balanced or low_cpu"),
        ({"wal.cpu": "1,,2"}, "is not a list of CPUs"),
        ({"wal.cpu": "3-1"}, "ends before it starts"),
        ({"wal.cpu": "5000"}, "the highest is"),
        ({"logging.level": "loud"}, "is not one of"),
    ],
)
def test_wrong_values_are_refused_by_name(overrides: dict[str, object], reason: str) -> None:
    error = refused(overrides=overrides)
    assert error.setting == next(iter(overrides))
    assert error.origin == "command line"
    assert reason in error.reason


def test_refusal_names_the_variable() -> None:
    error = refused(environ={"TALLYBUS_BUS_HEARTBEAT_MS": "0"})
    assert error.setting == "TALLYBUS_BUS_HEARTBEAT_MS"
    assert "1 to 60000" in error.reason


def test_refusal_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "[bus]\nhigh_water_mark = 'x'\n")
    error = refused(config=path)
    assert (error.setting, error.origin) == ("bus.high_water_mark", f"file {path}")


def test_unknown_names_are_refused_with_the_nearest(tmp_path: Path) -> None:
    error = refused(overrides={"ledger.max_acounts": 5})
    assert "did you mean ledger.max_accounts?" in error.reason
    error = refused(environ={"TALLYBUS_LEDGR_DATA": "x"})
    assert "did you mean TALLYBUS_LEDGER_DATA?" in error.reason
    error = refused(environ={"TALLYBUS_CONFG": "x"})
    assert "did you mean TALLYBUS_CONFIG?" in error.reason
    error = refused(config=write(tmp_path, "[gatewy]\nmax_batch = 1\n"))
    assert "did you mean gateway?" in error.reason
    error = refused(config=write(tmp_path, "[gateway]\nmax_btch = 1\n"))
    assert "did you mean gateway.max_batch?" in error.reason
    error = refused(environ={"TALLYBUS_": "x"})
    assert error.setting == "TALLYBUS_"


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(config=tmp_path / "none.toml").reason
    assert "cannot be read" in refused(config=tmp_path).reason
    assert "line 1" in refused(config=write(tmp_path, "[ledger\n")).reason
    assert "write [ledger]" in refused(config=write(tmp_path, "ledger = 3\n")).reason
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    assert "not valid TOML" in refused(config=path).reason


def test_batch_must_fit_into_what_may_be_in_flight() -> None:
    error = refused(overrides={"bus.max_in_flight": 100})
    assert "never fits" in error.reason
    settings = load(environ={}, overrides={"bus.max_in_flight": 100, "gateway.max_batch": 100})
    assert settings.bus.max_in_flight == 100


def test_batch_must_fit_into_a_message() -> None:
    assert "max_message_bytes" in refused(overrides={"gateway.max_batch": 1_048_576}).reason
    assert "max_message_bytes" in refused(overrides={"bus.max_message_bytes": 4_259_840}).reason


def test_explicit_run_folder_must_leave_room_for_sockets(tmp_path: Path) -> None:
    error = refused(overrides={"bus.run_folder": tmp_path / ("x" * 90)})
    assert error.setting == "bus.run_folder"
    assert "use a shorter one" in error.reason


def test_wrong_sections_cannot_be_made_in_code() -> None:
    with pytest.raises(SettingsError):
        BusSettings(heartbeat_ms=0)
    with pytest.raises(SettingsError):
        dataclasses.replace(Settings().bus, transport="udp")
    with pytest.raises(SettingsError):
        dataclasses.replace(Settings(), bus=BusSettings(max_in_flight=1))


def test_settings_cannot_be_changed() -> None:
    settings = load(environ={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.bus.heartbeat_ms = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        settings.origins["bus.heartbeat_ms"] = "nowhere"  # type: ignore[index]


def test_settings_error_is_final() -> None:
    assert issubclass(SettingsError, ServiceError)
    assert not SettingsError.restart
    assert SettingsError.exit_code == 78


# The table


def test_defaults_pass_their_own_checks() -> None:
    for setting in SETTINGS.values():
        assert setting.parse(setting.default, "default") == setting.default
        assert setting.help.endswith(".")
        if setting.kind == "integer":
            assert setting.minimum < setting.maximum


def test_variables_are_unambiguous() -> None:
    variables = [setting.variable for setting in SETTINGS.values()]
    assert len(set(variables)) == len(variables)
    assert not {"TALLYBUS_CONFIG", "TALLYBUS_ENDPOINT"} & set(variables)


def value_of(setting: Setting) -> st.SearchStrategy[object]:
    if setting.choices:
        return st.sampled_from(setting.choices)
    if setting.kind == "integer":
        return st.integers(setting.minimum, setting.maximum)
    if setting.kind == "path":
        return st.sampled_from(["/srv/tally bus", "relative/größe", "."])
    texts = ["", "0,2-3", "tcp://[::1]:5550", "ipc://run/x", "wal.example.org", "{stage}", "name_1"]
    return st.sampled_from([text for text in texts if accepts(setting, text)])


def accepts(setting: Setting, text: str) -> bool:
    try:
        setting.parse(text, "test")
    except SettingsError:
        return False
    return True


@given(st.fixed_dictionaries({}, optional={key: value_of(SETTINGS[key]) for key in SETTINGS}))
def test_environment_reproduces_settings_exactly(overrides: dict[str, object]) -> None:
    try:
        settings = load(environ={}, overrides=overrides)
    except SettingsError as error:
        assert error.setting == "gateway.max_batch"  # noqa: PT017 (the one check across settings)
        return
    inherited = {"TALLYBUS_CONFIG": "/does/not/exist", "TALLYBUS_LEDGER_DATA": "/elsewhere"}
    # Paths are told as absolute ones: the other process may run elsewhere.
    absolute = {
        entry.setting.key: os.path.abspath(entry.value)
        for entry in settings.effective()
        if isinstance(entry.value, Path)
    }
    expected = load(environ={}, overrides={**overrides, **absolute})
    assert load(environ=inherited | settings.to_environment()) == expected


@given(st.text(max_size=12) | st.text("0123456789,- ", max_size=12))
def test_cpu_lists_are_numbers_or_refused(text: str) -> None:
    try:
        cpus = parse_cpus(text)
    except ValueError:
        return
    assert list(cpus) == sorted(set(cpus))
    assert parse_cpus(",".join(map(str, cpus))) == cpus


def test_cpu_lists() -> None:
    assert parse_cpus("") == ()
    assert parse_cpus("0,2-3") == (0, 2, 3)
    assert parse_cpus("3, 1-2,2") == (1, 2, 3)


@pytest.mark.parametrize("text", ["tcp://*:5550", "tcp://[::1]:1", "ipc:///run/x", "inproc://a"])
def test_endpoints_of_all_transports_are_taken(text: str) -> None:
    check_endpoint(text)


# Addresses


def test_sockets_live_in_the_data_folder(tmp_path: Path) -> None:
    settings = load(environ={}, overrides={"ledger.data": "/srv/ledger"})
    assert run_folder(settings) == Path("/srv/ledger/run")
    assert endpoint(settings, "wal", "data") == "ipc:///srv/ledger/run/wal.data"
    assert endpoint(settings, "wal", "data", bind=True) == endpoint(settings, "wal", "data")


def test_relative_data_folder_gives_absolute_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(environ={})
    assert data_folder(settings) == (tmp_path / "data").resolve()
    assert run_folder(settings).is_absolute()


def test_long_data_folder_moves_the_sockets_to_a_short_one() -> None:
    long = "/srv/" + "x" * 80
    settings = load(environ={}, overrides={"ledger.data": long})
    folder = run_folder(settings)
    assert folder.parent == Path("/tmp")
    assert folder.name.startswith(f"tallybus-{os.getuid()}-")
    assert run_folder(load(environ={}, overrides={"ledger.data": long})) == folder
    assert run_folder(load(environ={}, overrides={"ledger.data": long + "y"})) != folder


@pytest.mark.parametrize("length", range(60, 90))
def test_ipc_addresses_are_never_too_long(length: int) -> None:
    settings = load(environ={}, overrides={"ledger.data": "/" + "x" * length})
    for stage in STAGES:
        for socket in SOCKETS:
            path = endpoint(settings, stage, socket).removeprefix("ipc://")
            assert len(os.fsencode(path)) <= 100


def test_links_to_one_data_folder_share_its_sockets(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    real = load(environ={}, overrides={"ledger.data": tmp_path / "real"})
    link = load(environ={}, overrides={"ledger.data": tmp_path / "link"})
    assert run_folder(real) == run_folder(link)


@pytest.mark.parametrize("transport", ["ipc", "tcp", "inproc"])
def test_every_socket_has_an_address_of_its_own(transport: str) -> None:
    settings = load(environ={}, overrides={"bus.transport": transport})
    addresses = [endpoint(settings, stage, socket) for stage in STAGES for socket in SOCKETS]
    assert len(set(addresses)) == 12
    assert all(address.startswith(f"{transport}://") for address in addresses)
    for address in addresses:
        check_endpoint(address)


def test_tcp_ports_follow_the_base_port() -> None:
    settings = load(environ={}, overrides={"bus.transport": "tcp", "bus.base_port": 7000})
    assert endpoint(settings, "sequencer", "data") == "tcp://127.0.0.1:7000"
    assert endpoint(settings, "transactor", "index") == "tcp://127.0.0.1:7004"
    assert endpoint(settings, "snapshotter", "control") == "tcp://127.0.0.1:7011"


def test_one_host_per_stage() -> None:
    settings = load(
        environ={},
        overrides={"bus.transport": "tcp", "bus.host": "{stage}", "bus.bind_host": "0.0.0.0"},
    )
    assert endpoint(settings, "wal", "data") == "tcp://wal:5566"
    assert endpoint(settings, "wal", "data", bind=True) == "tcp://0.0.0.0:5566"


def test_explicit_endpoint_wins() -> None:
    settings = load(environ={}, overrides={"bus.wal_data": "tcp://10.0.0.7:9000"})
    assert endpoint(settings, "wal", "data") == "tcp://10.0.0.7:9000"
    assert endpoint(settings, "wal", "index").startswith("ipc://")


def test_embedded_ledgers_do_not_meet() -> None:
    overrides = {"bus.transport": "inproc", "ledger.data": "/srv/a"}
    one = load(environ={}, overrides=overrides)
    other = load(environ={}, overrides={**overrides, "ledger.data": "/srv/b"})
    named = load(environ={}, overrides={**overrides, "bus.inproc_name": "third"})
    addresses = {endpoint(settings, "wal", "data") for settings in (one, other, named)}
    assert len(addresses) == 3
    assert "inproc://tallybus-third/wal.data" in addresses


def test_unknown_sockets_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(KeyError):
        endpoint(Settings(), "gateway", "data")
    with pytest.raises(KeyError):
        endpoint(Settings(), "wal", "query")
    with pytest.raises(KeyError):
        Settings().service("ledger")


def test_settings_load_without_heavy_modules() -> None:
    # The package itself is left out: what it imports is its own business.
    program = f"""
import sys, types
package = types.ModuleType("tallybus")
package.__path__ = [{str(Path(module.__file__).parents[2])!r}]
sys.modules["tallybus"] = package
import tallybus.common.settings.sections, tallybus.common.logs
print(sorted({{"numpy", "zmq", "click", "msgpack", "numba", "rich"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"
