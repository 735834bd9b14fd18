"""One call of a function, with the limits that a test names."""

from collections.abc import Mapping, Sequence

from tallybus.common.settings.sections import LedgerSettings
from tallybus.services.transactor.functions.limits import FunctionLimits
from tallybus.services.transactor.functions.once import Call
from tallybus.services.transactor.functions.trial import TrialSandbox, balances_of


def try_function(
    binary: bytes,
    params: Sequence[int],
    balances: Mapping[int, int],
    limits: FunctionLimits | None = None,
    max_accounts: int = LedgerSettings().max_accounts,
) -> Call:
    """Run `execute` once with up to eight parameters (int64) on these balances (by account; the
    others are 0).

    Raises what `TrialSandbox`, its `call` and `balances_of` raise.
    """
    held = balances_of(balances, max_accounts)
    sandbox = TrialSandbox(binary, limits)
    try:
        return sandbox.call(params, held)
    finally:
        sandbox.close()
