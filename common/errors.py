"""Errors that any service may end with. The clients' exceptions live in `tallybus.errors`.

All of both kinds are a `TallybusError`.

A service raises one of these when it cannot go on. Its message says what happened, where, and what
to do. Its fields carry the same facts for programs. `exit_code` is the exit status of the process
that ends with it. Modules that know more about a failure derive their own errors from it.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final

# Exit codes as sysexits.h has them.
EXIT_DAMAGED: Final = 65
"""What is on disk cannot be used as it is."""
EXIT_MISSING: Final = 69
"""Packages are missing that only services need."""
EXIT_SOFTWARE: Final = 70
"""An error that should not happen."""
EXIT_HOPELESS: Final = 71
"""It would fail in the same way again: as it has three times, or because nothing on this machine
changes by itself."""
EXIT_STORAGE: Final = 74
"""The disk refused: full, read-only, or failing."""
EXIT_BUSY: Final = 75
"""Something else holds what is needed. That may pass, as when the last run is just ending."""
EXIT_REPLACED: Final = 76
"""A newer instance of the same service has taken over."""
EXIT_SETTINGS: Final = 78
"""A setting, or what it names, is wrong."""
EXIT_HANGUP: Final = 129
"""Stopped by SIGHUP, as shells have it. Not 0: whoever runs a single service starts it again."""
FINAL_EXIT_CODES: Final = frozenset(
    {EXIT_DAMAGED, EXIT_MISSING, EXIT_HOPELESS, EXIT_STORAGE, EXIT_SETTINGS}
)
"""After these another start of the same service cannot help: someone has to look first."""


class TallybusError(Exception):
    """Base of every exception that this package raises on purpose. `message` is the text."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[Any, ...]:
        # By its fields: a process pool hands exceptions over like any other value.
        return _rebuilt, (type(self), self.message, self.__dict__)


def _rebuilt(kind: type[TallybusError], message: str, fields: dict[str, Any]) -> TallybusError:
    error = kind.__new__(kind, message)
    error.__dict__.update(fields)
    return error


class ServiceError(TallybusError):
    """A service cannot start or cannot go on.

    `exit_code` is the exit status of a process that ends with this error. `restart` says whether
    starting the same process again can help: a supervisor gives up where it cannot.
    """

    exit_code: ClassVar[int] = 1
    restart: ClassVar[bool] = True


class SettingsError(ServiceError):
    """A setting was refused.

    Fields: `setting` is the refused name as the user wrote it (`ledger.max_accounts`,
    `TALLYBUS_LEDGER_MAX_ACCOUNTS`, or the path of an unreadable file); `origin` is where it came
    from (`command line`, `environment …`, `file …`); `reason` is what is wrong with it and what
    would be right.
    """

    exit_code: ClassVar[int] = EXIT_SETTINGS
    restart: ClassVar[bool] = False

    def __init__(self, setting: str, origin: str, reason: str) -> None:
        super().__init__(f"{setting} ({origin}): {reason}")
        self.setting = setting
        self.origin = origin
        self.reason = reason


class ReplayError(ServiceError):
    """Records were read that no execution can have written; balances and window are unusable now.

    Fields: `transaction_id` of the first such record (one past the last record if only entries are
    left over), `reason`.
    """

    exit_code = EXIT_DAMAGED
    restart = False

    def __init__(self, transaction_id: int, reason: str) -> None:
        super().__init__(
            f"replay stopped at transaction {transaction_id}: {reason}. If ledger.max_accounts is "
            "lower than when the transaction was executed, set it as it was. Otherwise the log and "
            "the state that it was applied to do not belong together: restore a backup"
        )
        self.transaction_id = transaction_id
        self.reason = reason
