"""Options and argument types that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from tallybus.cli.measure.transports import IPC, TRANSPORTS
from tallybus.cli.setting_options import parse_assignments as parse_assignments
from tallybus.cli.setting_options import settings_options as settings_options
from tallybus.common.functions.names import NAME_RULE, is_function_name
from tallybus.common.record import MAX_AMOUNT, MAX_PARAMS, MAX_U64, Level
from tallybus.common.settings.sections import DEFAULT_ENDPOINT, ENDPOINT_VARIABLE, KEY_VARIABLE

F = TypeVar("F", bound=Callable[..., Any])

LEVELS: Final = {level.name.lower(): level for level in Level}


class WholeNumber(click.ParamType[int]):
    """A number in ASCII digits alone; `int` also takes signs, underscores and other digits."""

    def __init__(self, name: str, minimum: int = 0, maximum: int = MAX_U64) -> None:
        self.name = name
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        if not (text.isascii() and text.isdigit()) or len(text) > 4000:
            self.fail(f"{text[:40]!r} is not a whole number in the digits 0 to 9", param, ctx)
        number = int(text)
        if not self.minimum <= number <= self.maximum:
            shown = text if len(text) <= 40 else f"{text[:39]}…"
            self.fail(f"{shown} is not in {self.minimum}..{self.maximum}", param, ctx)
        return number


ACCOUNT: Final = WholeNumber("account")
AMOUNT: Final = WholeNumber("amount", 1, MAX_AMOUNT)
USER_REF: Final = WholeNumber("user_ref")
TX_ID: Final = WholeNumber("tx_id", 1)


class Parameter(click.ParamType[int]):
    """A function's parameter: a number in ASCII digits alone, perhaps with a minus sign."""

    name = "param"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        text = str(value)
        sign = -1 if text.startswith("-") else 1
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit()) or len(text) > 4000:
            self.fail(f"{text[:40]!r} is not a whole number in the digits 0 to 9", param, ctx)
        number = sign * int(digits)
        if not -MAX_AMOUNT - 1 <= number <= MAX_AMOUNT:
            shown = text if len(text) <= 40 else f"{text[:39]}…"
            self.fail(f"{shown} is not in {-MAX_AMOUNT - 1}..{MAX_AMOUNT}", param, ctx)
        return number


class FunctionName(click.ParamType[str]):
    """What a function may be called."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not is_function_name(text):
            self.fail(f"{text[:40]!r} is no name of a function: {NAME_RULE}", param, ctx)
        return text


PARAMETER: Final = Parameter()
FUNCTION_NAME: Final = FunctionName()


def checked_params(
    ctx: click.Context, param: click.Parameter, values: tuple[int, ...]
) -> tuple[int, ...]:
    """Callback of options and arguments that take a function's parameters."""
    if len(values) > MAX_PARAMS:
        raise click.BadParameter(
            f"{len(values)} parameters, a function takes up to {MAX_PARAMS}", ctx, param
        )
    return values


class LevelType(click.Choice[str]):
    """A wait level by its name in lower case."""

    def __init__(self, *names: str) -> None:
        super().__init__(names or tuple(LEVELS), case_sensitive=False)

    def convert(  # type: ignore[override]
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Level:
        if isinstance(value, Level):
            return value
        return LEVELS[super().convert(value, param, ctx)]


def client_options(timeout_s: float = 10.0) -> Callable[[F], F]:
    """`--endpoint`, `--key` and `--timeout` of a command that talks to a running ledger."""

    def decorate(function: F) -> F:
        function = click.option(
            "--timeout",
            type=click.FloatRange(min=0.001, max=86_400),
            default=timeout_s,
            show_default=True,
            metavar="SECONDS",
            help="How long to wait for an answer.",
        )(function)
        return ledger_options(function)

    return decorate


endpoint_option = click.option(
    "--endpoint",
    envvar=ENDPOINT_VARIABLE,
    default=DEFAULT_ENDPOINT,
    show_default=True,
    show_envvar=True,
    help="Where the ledger listens.",
)

key_option = click.option(
    "--key",
    envvar=KEY_VARIABLE,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    show_envvar=True,
    help="Key file of this client, for a ledger on tcp that asks for a key.",
)


def ledger_options(function: F) -> F:
    """`--endpoint` and `--key`: where the ledger is, and with what to be let in."""
    return endpoint_option(key_option(function))


def transport_option(function: F) -> F:
    """`--transport`, with `checked_transport` of a command that starts a ledger with --spawn."""
    return click.option(
        "--transport",
        type=click.Choice(TRANSPORTS),
        help="With --spawn: how its services and clients talk; curve is encrypted tcp.  "
        "[default: ipc]",
    )(function)


def checked_transport(transport: str | None, *, spawn: bool) -> str:
    """The transport of a ledger that is started. Raises UsageError when none is."""
    if transport is not None and not spawn:
        raise click.UsageError("--transport takes effect only on a ledger started with --spawn")
    return transport or IPC


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object to standard output."
)

min_tx_id_option = click.option(
    "--min-tx-id",
    type=WholeNumber("tx_id"),
    help="Wait until this transaction can be read, then answer.",
)


def wait_option() -> Callable[[F], F]:
    """`--wait LEVEL`."""
    return click.option(
        "--wait",
        "level",
        type=LevelType(),
        default="committed",
        show_default=True,
        help="What to wait for: the id alone, the result, the result on disk, or readable.",
    )
