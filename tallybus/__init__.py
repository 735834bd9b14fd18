"""Tallybus: a financial ledger of five services on a ZeroMQ bus, its clients and its embedded form.

This is the public package: everything listed in `__all__` is stable, everything else is not.
Each name is loaded when it is first asked for: a program that only talks to a ledger needs neither
numba nor wasmtime, and a service, whose modules lie in this package too, loads no client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tallybus.client import AsyncClient, Client, Pending
    from tallybus.embedded import Ledger
    from tallybus.errors import (
        AccessDenied,
        AlreadyExists,
        ClientClosed,
        InvalidFunction,
        InvalidRequest,
        LostTransaction,
        NotRegistered,
        OutcomeUnknown,
        Overloaded,
        ProtocolError,
        ServerError,
        TallybusError,
        Timeout,
        TransactionNotFound,
        Unavailable,
    )
    from tallybus.functions import (
        FunctionInfo,
        FunctionVersion,
        OperationBatch,
        Reason,
        Trial,
        function_calls,
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
    from tallybus.pipeline import GatewayInfo, LedgerTime, PipelineIndex, ServiceInfo
    from tallybus.transactions import Direction, Entry, Kind, Transaction
    from tallybus.trials import try_function

__version__: Final = "0.1.0"

__all__ = [
    "OPERATION_DTYPE",
    "AccessDenied",
    "AlreadyExists",
    "AsyncClient",
    "Balance",
    "Balances",
    "BatchResult",
    "Client",
    "ClientClosed",
    "Deposit",
    "Direction",
    "Entry",
    "Function",
    "FunctionInfo",
    "FunctionVersion",
    "GatewayInfo",
    "InvalidFunction",
    "InvalidRequest",
    "Kind",
    "Ledger",
    "LedgerTime",
    "LostTransaction",
    "NotRegistered",
    "Operation",
    "OperationBatch",
    "OutcomeUnknown",
    "Overloaded",
    "Pending",
    "PipelineIndex",
    "ProtocolError",
    "Reason",
    "Result",
    "ServerError",
    "ServiceInfo",
    "Stage",
    "Status",
    "TallybusError",
    "Timeout",
    "Transaction",
    "TransactionNotFound",
    "TransactionStatus",
    "TransactionStatuses",
    "Transfer",
    "Trial",
    "Unavailable",
    "WaitLevel",
    "Withdrawal",
    "__version__",
    "deposits",
    "function_calls",
    "transfers",
    "try_function",
    "withdrawals",
]


_MODULES: Final = {
    "tallybus.embedded": ("Ledger",),
    "tallybus.client": (
        "AsyncClient",
        "Client",
        "Pending",
    ),
    "tallybus.errors": (
        "AccessDenied",
        "AlreadyExists",
        "ClientClosed",
        "InvalidFunction",
        "InvalidRequest",
        "LostTransaction",
        "NotRegistered",
        "OutcomeUnknown",
        "Overloaded",
        "ProtocolError",
        "ServerError",
        "TallybusError",
        "Timeout",
        "TransactionNotFound",
        "Unavailable",
    ),
    "tallybus.functions": (
        "FunctionInfo",
        "FunctionVersion",
        "OperationBatch",
        "Reason",
        "Trial",
        "function_calls",
    ),
    "tallybus.operations": (
        "OPERATION_DTYPE",
        "Balance",
        "Balances",
        "BatchResult",
        "Deposit",
        "Function",
        "Operation",
        "Result",
        "Stage",
        "Status",
        "TransactionStatus",
        "TransactionStatuses",
        "Transfer",
        "WaitLevel",
        "Withdrawal",
        "deposits",
        "transfers",
        "withdrawals",
    ),
    "tallybus.pipeline": (
        "GatewayInfo",
        "LedgerTime",
        "PipelineIndex",
        "ServiceInfo",
    ),
    "tallybus.transactions": (
        "Direction",
        "Entry",
        "Kind",
        "Transaction",
    ),
    "tallybus.trials": ("try_function",),
}
_WHERE: Final = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
