"""Commands with an environment, and files with keys for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from click.testing import CliRunner, Result

from tallybus.cli import main
from tallybus.common.security.keys import client_key_text
from tests.support.fake_door import Door


def run(arguments: Sequence[object], **env: str | None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], env=env)


def key_file(folder: Path, door: Door, name: str = "ops") -> Path:
    path = folder / f"{name}.key"
    path.touch(0o600)
    path.write_text(client_key_text(door.key(name)))
    return path
