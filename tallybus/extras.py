"""What a client does not need and services do: `pip install 'tallybus[server]'`."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from tallybus.errors import MissingExtra

SERVER: Final = ("crc32c", "llvmlite", "numba", "prometheus_client", "wasmtime")
"""What the extra `server` brings, by its modules."""


def need_server(what: str, modules: tuple[str, ...] = SERVER) -> None:
    """Raises MissingExtra when one of these modules is not installed; `what` is to be done."""
    missing = tuple(name for name in modules if not _is_there(name))
    if missing:
        raise MissingExtra(
            f"{what} needs packages that a client does not have ({', '.join(missing)}): "
            "pip install 'tallybus[server]'",
            extra="server",
            missing=missing,
        )


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except (ImportError, ValueError):
        return False
