"""Settings: what an operator may choose, checked once, the same for every service.

Values come from four places, and the later wins: defaults, a TOML file, the environment
(`TALLYBUS_<SECTION>_<NAME>`), the command line. Every value is checked when it is read, unknown
names are refused, and `Settings.origins` remembers where each effective value came from.

The fields of the section classes (in `pipeline`, `functions` and `operations`) are the one table of
all settings (`SETTINGS`): names, types, defaults, limits and help are taken from there and told
nowhere else in code. `sources` reads the file and the environment, `places` says where the services
meet. All of it is imported from here.

Nothing here writes, or imports anything but the standard library, so that a command line starts
quickly.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tallybus.common.errors import SettingsError
from tallybus.common.settings.endpoints import MAX_IPC_PATH_BYTES
from tallybus.common.settings.functions import FunctionSettings
from tallybus.common.settings.operations import LoggingSettings, MetricsSettings, SecuritySettings
from tallybus.common.settings.pipeline import (
    DEFAULT_ENDPOINT,
    HEADER_BYTES,
    OPERATION_BYTES,
    BusSettings,
    GatewaySettings,
    LedgerSettings,
    ServiceSettings,
)
from tallybus.common.settings.places import (
    SOCKETS,
    data_folder,
    endpoint,
    longest_socket,
    metrics_address,
    page_address,
    run_folder,
)
from tallybus.common.settings.sources import (
    CONFIG_VARIABLE,
    ENDPOINT_VARIABLE,
    KEY_VARIABLE,
    read_environment,
    read_file,
    unknown,
)
from tallybus.common.settings.table import (
    ENVIRONMENT_PREFIX,
    Section,
    Setting,
    Value,
    check_endpoint,
    check_ipc_path,
    parse_cpus,
    rows,
)
from tallybus.common.stages import SERVICES

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_ENDPOINT",
    "ENDPOINT_VARIABLE",
    "ENVIRONMENT_PREFIX",
    "HEADER_BYTES",
    "MAX_IPC_PATH_BYTES",
    "KEY_VARIABLE",
    "OPERATION_BYTES",
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
            check_ipc_path(longest_socket(os.path.realpath(settings.bus.run_folder)))
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
        for row, value in read_file(path, SETTINGS, _SECTIONS):
            take(row, value, f"file {path}", row.key)
    for row, text in read_environment(environ, SETTINGS):
        take(row, text, f"environment {row.variable}", row.variable)
    for key, value in (overrides or {}).items():
        if key not in SETTINGS:
            raise SettingsError(key, overrides_origin, unknown("setting", key, SETTINGS))
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
