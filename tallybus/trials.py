"""Functions tried out without a ledger, in the transactor's own sandbox and within its limits.

What runs here ends as it would in a ledger with the same limits and balances. Touches no file, no
socket and no ledger.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.checks import check_int
from tallybus.common.record import MAX_I64, MAX_PARAMS, MIN_I64, Reason
from tallybus.common.settings.sections import SETTINGS, Settings
from tallybus.errors import InvalidFunction, InvalidRequest
from tallybus.extras import need_server
from tallybus.functions import Trial, checked_binary
from tallybus.operations import status_of
from tallybus.transactions import entry_of

if TYPE_CHECKING:
    from tallybus.services.transactor.functions.limits import FunctionLimits

LIMIT_SETTINGS: Final[Mapping[str, str]] = {
    "max_accounts": "ledger.max_accounts",
    "fuel": "functions.fuel",
    "memory_mib": "functions.memory_mib",
    "table_elements": "functions.table_elements",
    "stack_kib": "functions.stack_kib",
}
"""The limits of a trial, and the setting that gives each of them in a ledger."""


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What a ledger lets a function use, and how many accounts it has."""

    functions: FunctionLimits
    max_accounts: int


def trial_limits(
    settings: Settings | None = None, name: str | None = None, **own: int | None
) -> TrialLimits:
    """The limits of a ledger with these settings (None: the defaults).

    `name` is the name that the function is registered under, for its own quota of fuel. `own` has
    limits to use in place of the settings', by the names of `LIMIT_SETTINGS`. Each is bounded as
    its setting is. Raises InvalidRequest.
    """
    need_server("trying a function out")
    from tallybus.services.transactor.functions.limits import limits_from

    base = Settings() if settings is None else settings
    if name is not None:
        own = {"fuel": base.functions.fuel_overrides.get(name)} | {
            limit: value for limit, value in own.items() if value is not None
        }
    given: dict[str, Any] = {}
    for limit, value in own.items():
        if value is not None:
            row = SETTINGS[LIMIT_SETTINGS[limit]]
            given[limit] = check_int(value, limit, row.minimum, row.maximum)
    max_accounts = int(given.pop("max_accounts", base.ledger.max_accounts))
    return TrialLimits(limits_from(replace(base.functions, **given)), max_accounts)


class TriedModule:
    """A module compiled once, to be called on balances of the caller's; to be closed, or used in a
    `with`."""

    def __init__(self, binary: bytes, limits: TrialLimits) -> None:
        """Raises InvalidFunction for what a ledger with these limits would not register,
        InvalidRequest for what is no binary at all."""
        from tallybus.services.transactor.functions import errors
        from tallybus.services.transactor.functions.trial import TrialSandbox

        data = checked_binary(binary)
        self.limits = limits
        try:
            self._sandbox = TrialSandbox(data, limits.functions)
        except errors.InvalidFunction as error:
            raise InvalidFunction(
                f"a ledger does not take this binary as a function: {error}",
                name="",
                reason=str(error),
            ) from error

    def __enter__(self) -> TriedModule:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def crc32c(self) -> int:
        """The CRC-32C of the module."""
        return self._sandbox.crc32c

    def call(self, params: Sequence[int], balances: Mapping[int, int]) -> Trial:
        """One call on these balances, by account; the others are 0. Raises InvalidRequest."""
        given = {
            check_int(account, "account", 0, self.limits.max_accounts - 1): check_int(
                amount, "balance", MIN_I64, MAX_I64
            )
            for account, amount in balances.items()
        }
        from tallybus.services.transactor.functions.trial import balances_of

        return self.call_on(params, balances_of(given, self.limits.max_accounts), given)

    def call_on(
        self, params: Sequence[int], held: NDArray[np.int64], shown: Mapping[int, int] | None = None
    ) -> Trial:
        """One call on balances int64[accounts] by number, which its entries change.

        `shown` are accounts whose balances the trial tells even if nothing moved. Raises
        InvalidRequest.
        """
        if len(params) > MAX_PARAMS:
            raise InvalidRequest(
                f"params has {len(params)} values, a function takes up to {MAX_PARAMS}",
                field="params",
                value=params,
            )
        values = [check_int(value, "params", MIN_I64, MAX_I64) for value in params]
        call = self._sandbox.call(values, held)
        accounts = {*(shown or ()), *(account for account, _ in call.entries)}
        return Trial(
            status=status_of(call.status),
            reason=Reason(call.reason),
            entries=tuple(entry_of(account, amount) for account, amount in call.entries),
            balances={account: int(held[account]) for account in sorted(accounts)},
            fuel_used=call.fuel_used,
            fuel_limit=self.limits.functions.fuel,
            trap=call.trap,
            returned=call.returned,
        )

    def close(self) -> None:
        """Free the code. It can be called no more."""
        self._sandbox.close()


def try_function(
    binary: bytes,
    params: Sequence[int] = (),
    balances: Mapping[int, int] | None = None,
    *,
    fuel: int | None = None,
    max_accounts: int | None = None,
    memory_mib: int | None = None,
    table_elements: int | None = None,
    stack_kib: int | None = None,
    settings: Settings | None = None,
    name: str | None = None,
) -> Trial:
    """Call a function once in a ledger's sandbox, without a ledger.

    `params` are up to 8 integers of 64 bits with a sign, missing ones are 0. `balances` are those
    of accounts before the call, 0 for all others. `fuel` to `stack_kib` limit the call as the
    settings of these names do (`functions.fuel`, `ledger.max_accounts`, …). A limit that is not
    given is taken from `settings`, and without `settings` it is a ledger's default. `name` is the
    function's name in the ledger, for `functions.fuel_by_name`.

    Raises InvalidFunction for a binary that a ledger with these limits would not register,
    InvalidRequest for anything else that is out of range.
    """
    limits = trial_limits(
        settings,
        name,
        fuel=fuel,
        max_accounts=max_accounts,
        memory_mib=memory_mib,
        table_elements=table_elements,
        stack_kib=stack_kib,
    )
    with TriedModule(binary, limits) as tried:
        return tried.call(params, balances or {})
