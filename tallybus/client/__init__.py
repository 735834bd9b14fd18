"""Clients of a running ledger: one sans-IO core (`core`, `codec`) under a sync and an asyncio
shell.
"""

from __future__ import annotations

from tallybus.client.aio import AsyncClient
from tallybus.client.sync import Client, Pending

__all__ = ["AsyncClient", "Client", "Pending"]
