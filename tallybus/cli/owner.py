"""A command that root calls on a folder of services works as the user to whom the folder belongs.

The services have to read what it makes there, and its owner alone may read it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """Inside of it, root works as the owner of the folder. Everyone else stays who they are, and so
    does root without a folder. Raises CommandFailed where root may not do that, as in containers
    without capabilities."""
    try:
        owner = os.stat(folder)
    except OSError:
        owner = None
    if owner is None or os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    try:
        os.setegid(owner.st_gid)
        try:
            os.seteuid(owner.st_uid)
        except PermissionError:
            os.setegid(group)
            raise
    except PermissionError as error:
        raise CommandFailed(
            f"{folder} belongs to user {owner.st_uid}, and root may not act as that user here; "
            "nothing was changed: call the command as that user",
            ExitCode.FAILED,
        ) from error
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


@contextmanager
def as_ourselves() -> Iterator[None]:
    """Inside of `as_owner`: work as the caller again."""
    user, group = os.geteuid(), os.getegid()
    os.seteuid(os.getuid())
    os.setegid(os.getgid())
    try:
        yield
    finally:
        os.setegid(group)
        os.seteuid(user)
