"""The sections of those who run the services: logs, metrics, and who may reach the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tallybus.common.settings.table import Section, check_listen_address, parse_unprotected, setting


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
        "services is encrypted, and only a client or service with a key is let in. Empty: tcp is "
        "plain.",
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
