"""Runs commands in this process, and the module that they register."""

from __future__ import annotations

from click.testing import CliRunner, Result
from crc32c import crc32c

from tallybus.cli import main
from tests.support.fake_gateway import FakeGateway

BINARY = b"\0asm\1\0\0\0"
CRC = f"{crc32c(BINARY):08x}"


def run(*arguments: object, given: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], input=given)


def at(gateway: FakeGateway, *arguments: object, given: bytes | None = None) -> Result:
    return run(*arguments, "--endpoint", gateway.endpoint, given=given)
