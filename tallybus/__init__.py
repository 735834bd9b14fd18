"""Tallybus: a financial ledger of five services on a ZeroMQ bus, its clients and its embedded form.

This is the public package: everything listed in `__all__` is stable, everything else is not.
Each name is loaded when it is first asked for: a program that only talks to a ledger needs neither
numba nor wasmtime, and a service, whose modules lie in this package too, loads no client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tallybus.client import (
        AsyncClient,
        Client,
        Pending,
    )
    from tallybus.common.errors import (
        ReplayError,
        ServiceError,
        SettingsError,
    )
    from tallybus.common.files import (
        FileMissing,
        LockHeld,
        NoDescriptors,
        StorageError,
    )
    from tallybus.common.functions.binaries import (
        BinaryDamaged,
    )
    from tallybus.common.functions.registry import (
        RegistrationError,
    )
    from tallybus.common.record import (
        FunctionStatus,
    )
    from tallybus.common.snapshot.format import (
        AccountLimitTooLow,
        DamagedSnapshot,
        SnapshotError,
        SnapshotMismatch,
        SnapshotUnreadable,
        UnbalancedSnapshot,
    )
    from tallybus.common.wal.reader import (
        DamagedLog,
        ForeignLog,
        LogEndsEarly,
        LogRefused,
    )
    from tallybus.embedded import (
        Ledger,
        ServiceFailed,
    )
    from tallybus.errors import (
        AccessDenied,
        AlreadyExists,
        ClientClosed,
        ForkedProcess,
        InvalidFunction,
        InvalidRequest,
        LostTransaction,
        MissingExtra,
        NotRegistered,
        OutcomeUnknown,
        Overloaded,
        ProtocolError,
        ServerError,
        TallybusError,
        Timeout,
        TooManyOpenFiles,
        TransactionNotFound,
        Unavailable,
        Unreachable,
        WrongEventLoop,
    )
    from tallybus.functions import (
        FunctionInfo,
        FunctionUsage,
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
        user_ref_of,
        withdrawals,
    )
    from tallybus.pipeline import (
        GatewayInfo,
        LedgerTime,
        PipelineIndex,
        ServiceInfo,
    )
    from tallybus.settings import (
        Settings,
        load_settings,
    )
    from tallybus.transactions import (
        Direction,
        Entry,
        Kind,
        Transaction,
    )
    from tallybus.trials import try_function

__version__: Final = "0.1.0"

__all__ = [
    "AccessDenied",
    "AccountLimitTooLow",
    "AlreadyExists",
    "AsyncClient",
    "Balance",
    "Balances",
    "BatchResult",
    "BinaryDamaged",
    "Client",
    "ClientClosed",
    "DamagedLog",
    "DamagedSnapshot",
    "Deposit",
    "Direction",
    "Entry",
    "FileMissing",
    "ForeignLog",
    "ForkedProcess",
    "Function",
    "FunctionInfo",
    "FunctionStatus",
    "FunctionUsage",
    "FunctionVersion",
    "GatewayInfo",
    "InvalidFunction",
    "InvalidRequest",
    "Kind",
    "Ledger",
    "LedgerTime",
    "LockHeld",
    "LogEndsEarly",
    "LogRefused",
    "LostTransaction",
    "MissingExtra",
    "NoDescriptors",
    "NotRegistered",
    "OPERATION_DTYPE",
    "Operation",
    "OperationBatch",
    "OutcomeUnknown",
    "Overloaded",
    "Pending",
    "PipelineIndex",
    "ProtocolError",
    "Reason",
    "RegistrationError",
    "ReplayError",
    "Result",
    "ServerError",
    "ServiceError",
    "ServiceFailed",
    "ServiceInfo",
    "Settings",
    "SettingsError",
    "SnapshotError",
    "SnapshotMismatch",
    "SnapshotUnreadable",
    "Stage",
    "Status",
    "StorageError",
    "TallybusError",
    "Timeout",
    "TooManyOpenFiles",
    "Transaction",
    "TransactionNotFound",
    "TransactionStatus",
    "TransactionStatuses",
    "Transfer",
    "Trial",
    "Unavailable",
    "UnbalancedSnapshot",
    "Unreachable",
    "WaitLevel",
    "Withdrawal",
    "WrongEventLoop",
    "deposits",
    "function_calls",
    "load_settings",
    "transfers",
    "try_function",
    "user_ref_of",
    "withdrawals",
    "__version__",
]


_MODULES: Final = {
    "tallybus.client": (
        "AsyncClient",
        "Client",
        "Pending",
    ),
    "tallybus.common.errors": (
        "ReplayError",
        "ServiceError",
        "SettingsError",
    ),
    "tallybus.common.files": (
        "FileMissing",
        "LockHeld",
        "NoDescriptors",
        "StorageError",
    ),
    "tallybus.common.functions.binaries": ("BinaryDamaged",),
    "tallybus.common.functions.registry": ("RegistrationError",),
    "tallybus.common.wal.reader": (
        "DamagedLog",
        "ForeignLog",
        "LogEndsEarly",
        "LogRefused",
    ),
    "tallybus.common.record": ("FunctionStatus",),
    "tallybus.common.snapshot.format": (
        "AccountLimitTooLow",
        "DamagedSnapshot",
        "SnapshotError",
        "SnapshotMismatch",
        "SnapshotUnreadable",
        "UnbalancedSnapshot",
    ),
    "tallybus.embedded": (
        "Ledger",
        "ServiceFailed",
    ),
    "tallybus.errors": (
        "AccessDenied",
        "AlreadyExists",
        "ClientClosed",
        "ForkedProcess",
        "InvalidFunction",
        "InvalidRequest",
        "LostTransaction",
        "MissingExtra",
        "NotRegistered",
        "OutcomeUnknown",
        "Overloaded",
        "ProtocolError",
        "ServerError",
        "TallybusError",
        "Timeout",
        "TooManyOpenFiles",
        "TransactionNotFound",
        "Unavailable",
        "Unreachable",
        "WrongEventLoop",
    ),
    "tallybus.functions": (
        "FunctionInfo",
        "FunctionUsage",
        "FunctionVersion",
        "OperationBatch",
        "Reason",
        "Trial",
        "function_calls",
    ),
    "tallybus.operations": (
        "Balance",
        "Balances",
        "BatchResult",
        "Deposit",
        "Function",
        "OPERATION_DTYPE",
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
        "user_ref_of",
        "withdrawals",
    ),
    "tallybus.pipeline": (
        "GatewayInfo",
        "LedgerTime",
        "PipelineIndex",
        "ServiceInfo",
    ),
    "tallybus.settings": (
        "Settings",
        "load_settings",
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
