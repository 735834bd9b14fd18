"""The functions that a ledger has, as rows that tests compare."""

from __future__ import annotations

from tallybus import Client

Registry = list[tuple[str, int, int, int]]


def registry(client: Client) -> Registry:
    return [(row.name, row.version, row.crc32c, row.tx_id) for row in client.list_functions()]
