"""Where settings are read from beside the command line: a TOML file, and the environment."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Final

from tallybus.common.errors import SettingsError
from tallybus.common.settings.table import ENVIRONMENT_PREFIX, Setting

CONFIG_VARIABLE: Final = "TALLYBUS_CONFIG"
"""Names the TOML file to read. Empty: none."""
ENDPOINT_VARIABLE: Final = "TALLYBUS_ENDPOINT"
"""Where clients look for the gateway. Not a setting of the services, which ignore it."""
KEY_VARIABLE: Final = "TALLYBUS_KEY"
"""Names the file with a client's key. Not a setting of the services, which ignore it."""


def read_file(
    path: str, settings: Mapping[str, Setting], sections: Collection[str]
) -> Iterator[tuple[Setting, object]]:
    """The settings in a TOML file, each with its value as it stands there. Raises SettingsError."""
    import tomllib  # only for those who have a file

    origin = f"file {path}"
    try:
        with open(path, "rb") as file:
            tree = tomllib.load(file)
    except OSError as error:
        raise SettingsError(path, origin, f"cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(path, origin, f"is not valid TOML: {error}") from error
    for section, table in tree.items():
        if section not in sections:
            raise SettingsError(section, origin, unknown("section", section, sections))
        if not isinstance(table, dict):
            raise SettingsError(section, origin, f"is a section: write [{section}] on its own line")
        for name, value in table.items():
            key = f"{section}.{name}"
            if key not in settings:
                raise SettingsError(key, origin, unknown("setting", key, settings))
            yield settings[key], value


def read_environment(
    environ: Mapping[str, str], settings: Mapping[str, Setting]
) -> Iterator[tuple[Setting, str]]:
    """The settings among these variables, each with its text. Raises SettingsError for one of ours
    that names none."""
    by_variable = {row.variable: row for row in settings.values()}
    others = (CONFIG_VARIABLE, ENDPOINT_VARIABLE, KEY_VARIABLE)
    for name in sorted(environ):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in others:
            continue
        if _of_an_engine(name, environ, by_variable):
            continue
        if name not in by_variable:
            known = (*by_variable, *others)
            raise SettingsError(name, "environment", unknown("variable", name, known))
        yield by_variable[name], environ[name]


_ADDRESS: Final = re.compile(r"(tcp|udp|sctp)://\S+", re.IGNORECASE)
_ENGINE: Final = tuple(
    (re.compile(rf"{ENVIRONMENT_PREFIX}(\w+_)?{name}"), re.compile(value, re.IGNORECASE))
    for name, value in (
        (r"SERVICE_HOST", r"[0-9A-F.:]+(%\w+)?|None"),
        (r"SERVICE_PORT(_\w+)?", r"[0-9]{1,5}"),
        (r"PORT", _ADDRESS.pattern),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)", _ADDRESS.pattern),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_PORT", r"[0-9]{1,5}"),
        (r"PORT_[0-9]+_(TCP|UDP|SCTP)_ADDR", r"[0-9A-F.:]+"),
        # Links of containers also tell the other's name, which is a path.
        (r"NAME", r"/\S+"),
    )
)
"""Variables that engines of containers set for a service called `tallybus` or `tallybus-…`."""
_LINKED: Final = re.compile(rf"({ENVIRONMENT_PREFIX}(\w+_)?)ENV_\w+")


def _of_an_engine(
    name: str, environ: Mapping[str, str], by_variable: Mapping[str, Setting]
) -> bool:
    """Whether Kubernetes or a container engine made this variable, by its form and its value.

    By both, so that `TALLYBUS_GATEWAY_PORT=5550`, which means a setting, is still told.
    """
    value = environ[name].strip()
    if name in by_variable:
        # A service may be called `tallybus-metrics-base`. No number is an address.
        return by_variable[name].kind == "integer" and bool(_ADDRESS.fullmatch(value))
    if any(form.fullmatch(name) and made.fullmatch(value) for form, made in _ENGINE):
        return True
    # The other container's own variables: what they hold is known to nobody.
    linked = _LINKED.fullmatch(name)
    return linked is not None and environ.get(f"{linked[1]}NAME", "").startswith("/")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Why `name` is refused, with the known one that it is like."""
    import difflib  # seldom needed, and slow to load

    close = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {close[0]}?" if close else "`tallybus config show` lists what there is"
    return f"there is no {what} of that name; {hint}"
