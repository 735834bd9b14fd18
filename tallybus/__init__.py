"""Tallybus: a financial ledger of five services on a ZeroMQ bus, its clients and its embedded form.

This is the public package: everything listed in `__all__` is stable, everything else is not.
Importing it loads the clients alone; `Ledger` (all services in this process) is loaded when it is
first asked for, so that a program that only talks to a ledger needs neither numba nor wasmtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from tallybus.client import AsyncClient, Client, Pending
from tallybus.errors import (
    ClientClosed,
    InvalidRequest,
    LostTransaction,
    OutcomeUnknown,
    Overloaded,
    ProtocolError,
    ServerError,
    TallybusError,
    Timeout,
    Unavailable,
)
from tallybus.operations import (
    OPERATION_DTYPE,
    Balance,
    Balances,
    BatchResult,
    Deposit,
    Function,
    Operation,
    Result,
    Stage,
    Status,
    TransactionStatus,
    TransactionStatuses,
    Transfer,
    WaitLevel,
    Withdrawal,
    deposits,
    transfers,
    withdrawals,
)
from tallybus.pipeline import GatewayInfo, PipelineIndex, ServiceInfo

if TYPE_CHECKING:
    from tallybus.embedded import Ledger

__version__: Final = "0.1.0"

__all__ = [
    "OPERATION_DTYPE",
    "AsyncClient",
    "Balance",
    "Balances",
    "BatchResult",
    "Client",
    "ClientClosed",
    "Deposit",
    "Function",
    "GatewayInfo",
    "InvalidRequest",
    "Ledger",
    "LostTransaction",
    "Operation",
    "OutcomeUnknown",
    "Overloaded",
    "Pending",
    "PipelineIndex",
    "ProtocolError",
    "Result",
    "ServerError",
    "ServiceInfo",
    "Stage",
    "Status",
    "TallybusError",
    "Timeout",
    "TransactionStatus",
    "TransactionStatuses",
    "Transfer",
    "Unavailable",
    "WaitLevel",
    "Withdrawal",
    "__version__",
    "deposits",
    "transfers",
    "withdrawals",
]


def __getattr__(name: str) -> Any:
    if name == "Ledger":
        from tallybus.embedded import Ledger

        return Ledger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
