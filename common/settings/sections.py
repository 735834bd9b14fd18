"""Settings: what an operator may choose, checked once, the same for every service.

Values come from four places, and the later wins: defaults, a TOML file, the environment
(`TALLYBUS_<SECTION>_<NAME>`), the command line. Every value is checked when it is read, unknown
names are refused, and `Settings.origins` remembers where each effective value came from.

The fields of the section classes below are the one table of all settings (`SETTINGS`): names,
types, defaults, limits and help are taken from there and told nowhere else in code. `endpoint`
and `run_folder` say where the services meet.

This module reads the TOML file and the environment it is given. It writes nothing, and imports
nothing but the standard library, so that a command line starts quickly.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tallybus.common.errors import SettingsError
from tallybus.common.functions.names import MAX_BINARY_BYTES
from tallybus.common.settings.endpoints import (
    MAX_IPC_PATH_BYTES,
    absolute,
    with_brackets,
    without_brackets,
)
from tallybus.common.settings.table import (
    ENVIRONMENT_PREFIX,
    MAX_FUEL,
    Section,
    Setting,
    Value,
    check_endpoint,
    check_host,
    check_ipc_path,
    check_listen_address,
    check_name,
    check_optional_endpoint,
    check_optional_host,
    check_optional_host_and_port,
    parse_cpus,
    parse_fuel_by_name,
    parse_unprotected,
    rows,
    setting,
)
from tallybus.common.stages import PORTS, SERVICES, STAGES

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_ENDPOINT",
    "ENDPOINT_VARIABLE",
    "ENVIRONMENT_PREFIX",
    "MAX_IPC_PATH_BYTES",
    "KEY_VARIABLE",
    "SETTINGS",
    "SOCKETS",
    "BusSettings",
    "Effective",
    "FunctionSettings",
    "GatewaySettings",
    "LedgerSettings",
    "LoggingSettings",
    "MetricsSettings",
    "SecuritySettings",
    "ServiceSettings",
    "Setting",
    "Settings",
    "SettingsError",
    "Value",
    "check_endpoint",
    "data_folder",
    "endpoint",
    "load",
    "metrics_address",
    "page_address",
    "parse_cpus",
    "run_folder",
]

CONFIG_VARIABLE: Final = "TALLYBUS_CONFIG"
"""Names the TOML file to read. Empty: none."""
ENDPOINT_VARIABLE: Final = "TALLYBUS_ENDPOINT"
"""Where clients look for the gateway. Not a setting of the services, which ignore it."""
KEY_VARIABLE: Final = "TALLYBUS_KEY"
"""Names the file with a client's key. Not a setting of the services, which ignore it."""
DEFAULT_ENDPOINT: Final = "tcp://127.0.0.1:5550"

SOCKETS: Final = ("data", "index", "control")
"""Each stage of the pipeline binds one socket of every name."""

OPERATION_BYTES: Final = 104
"""The most that one operation takes in a request: its record and eight parameters."""
HEADER_BYTES: Final = 65_536
"""Room left in a message for its header."""

_FALLBACK_FOLDER: Final = "/tmp"


@dataclass(frozen=True, slots=True)
class LedgerSettings(Section):
    """What the ledger holds, and where."""

    data: Path = setting(
        Path("data"),
        "Folder of the log and the snapshots. A relative path starts at the working directory.",
        kind="path",
    )
    max_accounts: int = setting(
        10_000_000,
        "Accounts are numbered from 0 up to one less. Memory is taken only by accounts in use.",
        minimum=2,
        maximum=2**32,
    )
    transactions_per_segment: int = setting(
        10_000_000,
        "Transactions in one file of the log, and in one generation of the duplicate window. "
        "Fixed when the data folder is made.",
        minimum=1,
        maximum=2**31,
    )
    snapshot_frequency: int = setting(
        1, "A snapshot is written after every so many segments.", minimum=1, maximum=1_000_000
    )
    snapshots_kept: int = setting(
        3, "Snapshots that are kept; older ones are deleted.", minimum=1, maximum=1_000_000
    )


def _override(stage: str, socket: str) -> str:
    return setting(
        "",
        f"Endpoint of the {stage}'s {socket} socket. Empty: derived from `transport`.",
        check=check_optional_endpoint,
        settle=absolute,
    )


@dataclass(frozen=True, slots=True)
class BusSettings(Section):
    """How the services reach one another, and how much may be on the way."""

    run_folder: Path | None = setting(
        None,
        "Folder of the `ipc` sockets and the locks of running services. Empty: `run` in the data "
        "folder, or a folder under /tmp when socket paths would become too long for the system.",
        kind="path",
    )
    transport: str = setting(
        "ipc",
        "How services talk: `ipc` on one machine, `tcp` across machines, `inproc` in one process.",
        choices=("ipc", "tcp", "inproc"),
    )
    host: str = setting(
        "127.0.0.1",
        "With `tcp`: the host on which services are reached. `{stage}` stands for the name of the "
        "stage, for deployments with one host per service.",
        check=check_host,
    )
    bind_host: str = setting(
        "",
        "With `tcp`: the address on which a service listens, such as `0.0.0.0`. Empty: `host`.",
        check=check_optional_host,
    )
    base_port: int = setting(
        5560,
        "With `tcp`: the first of twelve ports: three sockets (data, index, control) for each of "
        "sequencer, transactor, wal, snapshotter.",
        minimum=1,
        maximum=65_524,
    )
    inproc_name: str = setting(
        "",
        "With `inproc`: what tells the sockets of one embedded ledger from those of another. "
        "Empty: derived from the data folder.",
        check=check_name,
    )
    max_in_flight: int = setting(
        1_048_576,
        "Transactions that a stage may keep until they are durable. When so many wait, it takes "
        "no more, and clients are told `overloaded`.",
        minimum=1,
        maximum=2**31,
    )
    heartbeat_ms: int = setting(
        100,
        "Milliseconds after which a stage repeats its index when nothing happens.",
        minimum=1,
        maximum=60_000,
    )
    high_water_mark: int = setting(
        32, "Messages that a socket between stages may queue.", minimum=1, maximum=1_000_000
    )
    max_message_bytes: int = setting(
        64 * 1024 * 1024,
        "Bytes of the longest frame that a socket takes.",
        minimum=MAX_BINARY_BYTES + HEADER_BYTES,
        maximum=2**31,
    )
    sequencer_data: str = _override("sequencer", "data")
    sequencer_index: str = _override("sequencer", "index")
    sequencer_control: str = _override("sequencer", "control")
    transactor_data: str = _override("transactor", "data")
    transactor_index: str = _override("transactor", "index")
    transactor_control: str = _override("transactor", "control")
    wal_data: str = _override("wal", "data")
    wal_index: str = _override("wal", "index")
    wal_control: str = _override("wal", "control")
    snapshotter_data: str = _override("snapshotter", "data")
    snapshotter_index: str = _override("snapshotter", "index")
    snapshotter_control: str = _override("snapshotter", "control")


def _wait() -> str:
    return setting(
        "balanced",
        "How the service waits for work: `low_latency` polls all the time on a CPU of its own, "
        "`balanced` sleeps until something arrives, `low_cpu` also rests a millisecond after "
        "each turn.",
        choices=("low_latency", "balanced", "low_cpu"),
    )


def _cpu() -> str:
    return setting(
        "", "CPUs on which the service runs, such as `0,2-3`. Empty: any.", check=parse_cpus
    )


@dataclass(frozen=True, slots=True)
class ServiceSettings(Section):
    """What every service has of its own."""

    wait: str = _wait()
    cpu: str = _cpu()

    @property
    def cpus(self) -> tuple[int, ...]:
        """`cpu` as numbers, in order; none when the service may run anywhere."""
        return parse_cpus(self.cpu)


@dataclass(frozen=True, slots=True)
class GatewaySettings(ServiceSettings):
    """What the gateway lets clients do."""

    endpoint: str = setting(
        DEFAULT_ENDPOINT,
        "Where the gateway listens for clients.",
        check=check_endpoint,
        settle=absolute,
    )
    max_batch: int = setting(
        65_536,
        "Operations in one request, and in one batch that the gateway gathers.",
        minimum=1,
        maximum=1_048_576,
    )
    max_request_wait_ms: int = setting(
        60_000,
        "Milliseconds that the gateway holds a request at most, whatever the client asks for.",
        minimum=1,
        maximum=86_400_000,
    )
    max_reads: int = setting(
        65_536, "Accounts or transactions in one read.", minimum=1, maximum=1_048_576
    )
    max_connections: int = setting(
        4_096,
        "Connections of clients over tcp at a time; beyond it those that never sent a request are "
        "closed, and then the newest.",
        minimum=1,
        maximum=1_000_000,
    )
    client_in_flight: int = setting(
        0,
        "Operations and reads of one client that may wait for an answer at a time; beyond it the "
        "client is told `overloaded`. 0: no limit of its own. With keys a client is a key, "
        "without them a connection.",
        maximum=2**31,
    )
    client_rate: int = setting(
        0,
        "Operations and reads that one client may ask for in a second; beyond it the client is "
        "told `overloaded`. 0: no limit.",
        maximum=2**31,
    )
    client_work_ms: int = setting(
        0,
        "Milliseconds of the transactor's time that one client's calls of functions may take in a "
        "second; beyond it the client is told `overloaded`. 0: no limit.",
        maximum=1_000,
    )
    client_message_bytes: int = setting(
        0,
        "Bytes of the longest request that one client may send. 0: as `max_batch` and `max_reads` "
        "say.",
        maximum=2**31,
    )
    page: str = setting(
        "",
        "Where the gateway serves a page that shows the pipeline as it is now, such as "
        "`127.0.0.1:5580`. Empty: there is none. Whoever reaches it may read every balance.",
        check=check_optional_host_and_port,
    )


@dataclass(frozen=True, slots=True)
class FunctionSettings(Section):
    """What the transactor lets functions use."""

    fuel: int = setting(
        1_000_000,
        "Fuel of one call: about one unit for each instruction, more for those that take longer; a "
        "million in one millisecond to ten. A call that needs more fails with QUOTA_EXCEEDED.",
        minimum=1,
        maximum=MAX_FUEL,
    )
    fuel_by_name: str = setting(
        "",
        "Functions that have another quota of fuel, such as `rates=5000000, audit=200000`.",
        check=parse_fuel_by_name,
    )
    memory_mib: int = setting(
        16, "MiB of memory that a function may have.", minimum=1, maximum=1_024
    )
    table_elements: int = setting(
        10_000, "Elements that a table of a function may have.", minimum=1, maximum=1_000_000
    )
    stack_kib: int = setting(256, "KiB of stack that a call may use.", minimum=32, maximum=1_024)
    max_functions: int = setting(
        1_024, "Functions that may be registered at a time.", minimum=1, maximum=100_000
    )
    submit_ms: int = setting(
        100,
        "Milliseconds of the transactor's time that the calls of one submit may take together. The "
        "calls behind the one that reaches it end NOT_RUN and may be submitted again.",
        minimum=1,
        maximum=60_000,
    )
    submit_entries: int = setting(
        1_048_576,
        "Entries that the calls of one submit may make together; 16 bytes each in the log. The "
        "calls behind the one that reaches it end NOT_RUN and may be submitted again.",
        minimum=255,
        maximum=100_000_000,
    )
    compile_seconds: int = setting(
        10,
        "Seconds of the processor that compiling a module may take. One that takes longer is not "
        "registered.",
        minimum=1,
        maximum=3_600,
    )
    compile_total_seconds: int = setting(
        120,
        "Seconds of the processor that compiling all registered functions may take together, each "
        "module once: a transactor that has lost their machine code makes it again before it goes "
        "on.",
        minimum=1,
        maximum=86_400,
    )
    compile_mib: int = setting(
        1_024,
        "MiB of memory that compiling a module may take, in a process of its own.",
        minimum=64,
        maximum=65_536,
    )
    code_mib: int = setting(
        512,
        "MiB of machine code that all registered functions may have together, in memory and in "
        "`compiled`.",
        minimum=1,
        maximum=65_536,
    )
    binaries_mib: int = setting(
        256,
        "MiB that the binaries of all functions may take on disk, replaced and unregistered "
        "versions included: none is ever deleted. What would take more is not registered.",
        minimum=1,
        maximum=1_048_576,
    )
    compiled: Path | None = setting(
        None,
        "Folder in which the transactor keeps the machine code of functions, so that a restart "
        "compiles nothing. Empty: `compiled` in the data folder.",
        kind="path",
    )

    @property
    def fuel_overrides(self) -> dict[str, int]:
        """`fuel_by_name` as numbers."""
        return parse_fuel_by_name(self.fuel_by_name)


@dataclass(frozen=True, slots=True)
class LoggingSettings(Section):
    """What the services tell their operator, on standard error."""

    level: str = setting(
        "info",
        "The least important messages that are written.",
        choices=("debug", "info", "warning", "error"),
    )
    format: str = setting(
        "auto",
        "`text` for people, `json` for machines (one object per line); `auto` is text on a "
        "terminal and json elsewhere.",
        choices=("auto", "text", "json"),
    )


@dataclass(frozen=True, slots=True)
class MetricsSettings(Section):
    """Where the services tell how they are."""

    address: str = setting(
        "",
        "The address on which every service serves `/metrics`, `/healthz` and `/readyz` over HTTP, "
        "such as `127.0.0.1`. Empty: nothing is served.",
        check=check_listen_address,
    )
    base_port: int = setting(
        9464,
        "The first of five ports, one for each of sequencer, transactor, wal, snapshotter, "
        "gateway.",
        minimum=1,
        maximum=65_531,
    )


@dataclass(frozen=True, slots=True)
class SecuritySettings(Section):
    """Who may reach the ledger over the network."""

    keys: Path | None = setting(
        None,
        "Folder of keys, made by `tallybus keys create`: then every tcp connection of clients and "
        "services is encrypted, and only who has a key is let in. Empty: tcp is plain.",
        kind="path",
    )
    unprotected: str = setting(
        "",
        "What may listen beyond this machine without keys: any of `clients`, `bus`, `metrics` and "
        "`page`, separated by commas. `metrics` and `page` never have keys.",
        check=parse_unprotected,
    )

    @property
    def exposed(self) -> frozenset[str]:
        """`unprotected` as a set."""
        return parse_unprotected(self.unprotected)


@dataclass(frozen=True, slots=True)
class Effective:
    """One effective value, and where it came from: for `tallybus config show`."""

    setting: Setting
    value: Value
    origin: str


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings, checked one by one and against each other. `Settings()` has the defaults.

    `origins` maps the keys of settings that are not at their default to where they came from:
    `file PATH`, `environment VARIABLE`, `command line`. It plays no part in comparison.
    """

    ledger: LedgerSettings = field(default_factory=LedgerSettings)
    bus: BusSettings = field(default_factory=BusSettings)
    gateway: GatewaySettings = field(default_factory=GatewaySettings)
    sequencer: ServiceSettings = field(default_factory=ServiceSettings)
    transactor: ServiceSettings = field(default_factory=ServiceSettings)
    wal: ServiceSettings = field(default_factory=ServiceSettings)
    snapshotter: ServiceSettings = field(default_factory=ServiceSettings)
    functions: FunctionSettings = field(default_factory=FunctionSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    origins: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    def __post_init__(self) -> None:
        _check_together(self)

    def service(self, name: str) -> ServiceSettings:
        """`wait` and `cpu` of the service called `name` (one of SERVICES; else KeyError)."""
        if name not in SERVICES:
            raise KeyError(name)
        section: ServiceSettings = getattr(self, name)
        return section

    def get(self, key: str) -> Value:
        """The value of the setting with this dotted name (else KeyError)."""
        row = SETTINGS[key]
        value: Value = getattr(getattr(self, row.section), row.name)
        return value

    def effective(self) -> Iterator[Effective]:
        """Every setting with its value and origin, in the order of the table."""
        for key, row in SETTINGS.items():
            yield Effective(row, self.get(key), self.origins.get(key, "default"))

    def to_environment(self) -> dict[str, str]:
        """Variables that give another process exactly these settings.

        They name every setting, and say that no file is to be read. Merge them over the environment
        of the child, which may have another working directory: paths are told as absolute ones.
        """
        variables = {CONFIG_VARIABLE: ""}
        for entry in self.effective():
            value = entry.value
            if isinstance(value, Path):
                value = os.path.abspath(value)
            variables[entry.setting.variable] = "" if value is None else str(value)
        return variables


_SECTIONS: Final[Mapping[str, type[Section]]] = MappingProxyType(
    {
        "ledger": LedgerSettings,
        "bus": BusSettings,
        "gateway": GatewaySettings,
        "sequencer": ServiceSettings,
        "transactor": ServiceSettings,
        "wal": ServiceSettings,
        "snapshotter": ServiceSettings,
        "functions": FunctionSettings,
        "logging": LoggingSettings,
        "metrics": MetricsSettings,
        "security": SecuritySettings,
    }
)

SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType(
    {row.key: row for name, section in _SECTIONS.items() for row in rows(section, name)}
)
"""Every setting by its dotted name."""

_BY_VARIABLE: Final = MappingProxyType({row.variable: row for row in SETTINGS.values()})


def _check_together(settings: Settings) -> None:
    """Refuse values that are right one by one and wrong together."""

    def refuse(key: str, reason: str) -> SettingsError:
        return SettingsError(key, settings.origins.get(key, "default"), reason)

    batch = settings.gateway.max_batch
    if batch > settings.bus.max_in_flight:
        raise refuse(
            "gateway.max_batch",
            f"a batch of {batch} never fits into bus.max_in_flight = {settings.bus.max_in_flight}",
        )
    needed = batch * OPERATION_BYTES + HEADER_BYTES
    if needed > settings.bus.max_message_bytes:
        raise refuse(
            "gateway.max_batch",
            f"a batch of {batch} takes up to {needed} bytes, but bus.max_message_bytes = "
            f"{settings.bus.max_message_bytes}; lower the one or raise the other",
        )
    if settings.bus.transport == "ipc" and settings.bus.run_folder is not None:
        try:
            check_ipc_path(_longest_socket(os.path.realpath(settings.bus.run_folder)))
        except ValueError as error:
            raise refuse("bus.run_folder", str(error)) from None


def load(
    config: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
    *,
    overrides_origin: str = "command line",
) -> Settings:
    """The effective settings.

    `config` is the path of a TOML file; without it the file named by TALLYBUS_CONFIG is read, if
    any. `environ` replaces the process's environment. `overrides` maps dotted names to values (as
    text or in their own type) from the command line, or from where `overrides_origin` says; those
    that are None were not given.

    Raises SettingsError for an unreadable file and for unknown or wrong settings.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Value] = {}
    origins: dict[str, str] = {}

    def take(row: Setting, value: object, origin: str, name: str) -> None:
        values[row.key] = row.parse(value, origin, name)
        origins[row.key] = origin

    path = os.fspath(config) if config is not None else environ.get(CONFIG_VARIABLE, "")
    if path:
        for row, value in _read_file(path):
            take(row, value, f"file {path}", row.key)
    for row, text in _read_environment(environ):
        take(row, text, f"environment {row.variable}", row.variable)
    for key, value in (overrides or {}).items():
        if key not in SETTINGS:
            raise SettingsError(key, overrides_origin, _unknown("setting", key, SETTINGS))
        if value is not None:
            take(SETTINGS[key], value, overrides_origin, key)

    sections: dict[str, Any] = {}
    for name, section in _SECTIONS.items():
        given = {
            row.name: values[row.key]
            for row in SETTINGS.values()
            if row.section == name and row.key in values
        }
        sections[name] = section(**given)
    return Settings(**sections, origins=MappingProxyType(origins))


def _read_file(path: str) -> Iterator[tuple[Setting, object]]:
    import tomllib  # only for those who have a file

    origin = f"file {path}"
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise SettingsError(path, origin, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, origin, f"is not valid TOML: {error}") from error
    for section, table in tree.items():
        if section not in _SECTIONS:
            raise SettingsError(section, origin, _unknown("section", section, _SECTIONS))
        if not isinstance(table, dict):
            raise SettingsError(section, origin, f"is a section: write [{section}] on its own line")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in SETTINGS:
                raise SettingsError(key, origin, _unknown("setting", key, SETTINGS))
            yield SETTINGS[key], value


def _read_environment(environ: Mapping[str, str]) -> Iterator[tuple[Setting, str]]:
    others = (CONFIG_VARIABLE, ENDPOINT_VARIABLE, KEY_VARIABLE)
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in others:
            continue
        if _of_an_engine(name, environ):
            continue
        if name not in _BY_VARIABLE:
            known = (*_BY_VARIABLE, *others)
            raise SettingsError(name, "environment", _unknown("variable", name, known))
        yield _BY_VARIABLE[name], environ[name]


_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+", re.IGNORECASE)
_ENGINE: Final = tuple(
    (re.compile(rf"{ENVIRONMENT_PREFIX}(\w+_)?{name}"), re.compile(value, re.IGNORECASE))
    for name, value in (
        (r"SERVICE_HOST", r"[0-9A-F.:]+(%\w+)?|None"),
        (r"SERVICE_PORT(_\w+)?", r"[0-9]{1,5}"),
        (r"PORT", _ADDRESS.pattern),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)", _ADDRESS.pattern),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PORT", r"[0-9]{1,5}"),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR", r"[0-9A-F.:]+"),
        # Links of containers also tell the other's name, which is a path.
        (r"NAME", r"/\S+"),
    )
)
"""Variables that engines of containers set for a service called `tallybus` or `tallybus-…`."""
_LINKED: Final = re.compile(rf"({ENVIRONMENT_PREFIX}(\w+_)?)ENV_\w+")


def _of_an_engine(name: str, environ: Mapping[str, str]) -> bool:
    """Whether Kubernetes or a container engine made this variable, by its form and its value.

    By both, so that `TALLYBUS_GATEWAY_PORT=5550`, which means a setting, is still told.
    """
    value = environ[name].strip()
    if name in _BY_VARIABLE:
        # A service may be called `tallybus-metrics-base`. No number is an address.
        return _BY_VARIABLE[name].kind == "integer" and bool(_ADDRESS.fullmatch(value))
    if any(form.fullmatch(name) and made.fullmatch(value) for form, made in _ENGINE):
        return True
    # The other container's own variables: what they hold is known to nobody.
    linked = _LINKED.fullmatch(name)
    return linked is not None and environ.get(f"{linked[1]}NAME", "").startswith("/")


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    import difflib  # seldom needed, and slow to load

    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else "`tallybus config show` lists what there is"
    return f"there is no {what} of that name; {hint}"


def data_folder(settings: Settings) -> Path:
    """The data folder as an absolute path without symbolic links, the same for every process."""
    return Path(os.path.realpath(settings.ledger.data))


def run_folder(settings: Settings) -> Path:
    """The folder of the `ipc` sockets and the locks of running services, as an absolute path.

    It is not made here: whoever makes it gives it mode 0700 and checks that it owns it.
    """
    if settings.bus.run_folder is not None:
        return Path(os.path.realpath(settings.bus.run_folder))
    data = data_folder(settings)
    derived = data / "run"
    if len(os.fsencode(_longest_socket(str(derived)))) <= MAX_IPC_PATH_BYTES:
        return derived
    return Path(_FALLBACK_FOLDER) / f"tallybus-{os.getuid()}-{_digest(data)}"


def _longest_socket(folder: str) -> str:
    return os.path.join(folder, f"{max(STAGES, key=len)}.{max(SOCKETS, key=len)}")


def _digest(data: Path) -> str:
    return hashlib.sha256(os.fsencode(data)).hexdigest()[:16]


def endpoint(settings: Settings, stage: str, socket: str, *, bind: bool = False) -> str:
    """The ZeroMQ endpoint of a stage's socket.

    `stage` is one of STAGES and `socket` one of SOCKETS, else KeyError. With `bind` it is the
    address to listen on, otherwise the one to connect to; they differ with `tcp` and `bind_host`.
    """
    if stage not in STAGES or socket not in SOCKETS:
        raise KeyError(f"{stage}.{socket}")
    bus = settings.bus
    explicit: str = getattr(bus, f"{stage}_{socket}")
    if explicit:
        return explicit
    if bus.transport == "inproc":
        name = bus.inproc_name or _digest(data_folder(settings))
        return f"inproc://tallybus-{name}/{stage}.{socket}"
    if bus.transport == "tcp":
        host = (bus.bind_host if bind and bus.bind_host else bus.host).replace("{stage}", stage)
        port = bus.base_port + len(SOCKETS) * STAGES.index(stage) + SOCKETS.index(socket)
        return f"tcp://{with_brackets(host)}:{port}"
    return f"ipc://{run_folder(settings) / f'{stage}.{socket}'}"


def metrics_address(settings: Settings, stage: str) -> tuple[str, int] | None:
    """Host and port on which a service (one of SERVICES, else KeyError) serves its metrics.

    None when they are off: by default, and in an embedded ledger, whose services are threads of
    somebody else's process.
    """
    if stage not in SERVICES:
        raise KeyError(stage)
    port = settings.metrics.base_port + PORTS.index(stage)
    if not settings.metrics.address or settings.bus.transport == "inproc":
        return None
    return without_brackets(settings.metrics.address), port


def page_address(settings: Settings) -> tuple[str, int] | None:
    """Host and port of the gateway's page; None when there is none, as in an embedded ledger."""
    if not settings.gateway.page or settings.bus.transport == "inproc":
        return None
    host, _, port = settings.gateway.page.rpartition(":")
    return without_brackets(host), int(port)
