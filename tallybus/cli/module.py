"""Reads a function's module from a file: WebAssembly as a binary, or as text (WAT).

Which of the two is decided by the content. Only text loads wasmtime, which turns it into a binary.
"""

from __future__ import annotations

import re
from typing import Final

import click

from tallybus.cli.errors import CommandFailed
from tallybus.cli.exit_codes import ExitCode
from tallybus.common.functions.names import WASM_MAGIC
from tallybus.extras import need_server

MAX_FILE_BYTES: Final = 64 << 20
"""No text of a binary within the ledger's limit is nearly as long."""
_PLACE: Final = re.compile(r"-->\s*\S*:(\d+):(\d+)")


def read_module(path: str) -> bytes:
    """The binary in a file (`-`: standard input), or the binary of its text.

    What else is wrong with it is for the ledger to say. Raises CommandFailed, OSError.
    """
    with click.open_file(path, "rb") as file:
        content = bytes(file.read(MAX_FILE_BYTES + 1))
    if content.startswith(WASM_MAGIC):
        return content
    if len(content) > MAX_FILE_BYTES:
        raise _refused(f"{path} has more than {MAX_FILE_BYTES} bytes")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refused(
            f"{path} is neither a WebAssembly binary, which begins with \\0asm, nor text in UTF-8"
        ) from error
    if "\0" in text or not text.strip():
        raise _refused(f"{path} is neither a WebAssembly binary nor its text format (WAT)")
    return _assembled(path, text)


def _assembled(path: str, text: str) -> bytes:
    need_server(f"{path} is in the text format (WAT), and to assemble it", ("wasmtime",))
    from wasmtime import WasmtimeError, wat2wasm

    try:
        return bytes(wat2wasm(text))
    except WasmtimeError as error:
        lines = str(error).splitlines()
        place = _PLACE.search(str(error))
        if place is None:
            raise _refused(f"{path} cannot be read as WAT: {error}") from error
        line, column = int(place[1]), int(place[2])
        shown = _around(text.splitlines(), line, column)
        raise _refused(f"{path}, line {line}, column {column}: {lines[0]}{shown}") from error


def _around(lines: list[str], line: int, column: int) -> str:
    """The words at a place of a text, for a message of one line."""
    if not 1 <= line <= len(lines):
        return ""
    found = lines[line - 1][column - 1 :].strip()
    return f", at {found[:40]!r}" if found else ", at the end of the line"


def _refused(reason: str) -> CommandFailed:
    return CommandFailed(reason, ExitCode.USAGE)
