"""Where the binaries of functions are, and reading them with their checksum.

`functions/{name}_v{N}.wasm` in the data folder, one file per version, never deleted; an empty one
says that this version unregistered the function. The log stage writes a file before the record that
speaks of it, so whatever the log names is there. Reads files and writes none.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tallybus.common.checksum import crc32c
from tallybus.common.errors import EXIT_DAMAGED, ServiceError

FOLDER_NAME: Final = "functions"


class BinaryDamaged(ServiceError):
    """A function's binary is missing or is not the one that was registered.

    Fields: `path`, `name`, `version`, `reason`.
    """

    exit_code = EXIT_DAMAGED
    restart = False

    def __init__(self, path: Path, name: str, version: int, reason: str) -> None:
        super().__init__(
            f"version {version} of the function {name} cannot be used: {path} {reason}. Restore "
            "the file from a backup; until then this ledger does not start, because it could not "
            "execute what the log says is registered"
        )
        self.path = path
        self.name = name
        self.version = version
        self.reason = reason


def binary_path(folder: Path, name: str, version: int) -> Path:
    """The file of one version; `folder` is the data folder."""
    return folder / FOLDER_NAME / f"{name}_v{version}.wasm"


def read_binary(folder: Path, name: str, version: int, crc: int) -> bytes:
    """The binary with this CRC-32C (0: an empty one, for a version that unregistered).

    Raises BinaryDamaged when the file is missing, unreadable or another one.
    """
    path = binary_path(folder, name, version)
    try:
        binary = path.read_bytes()
    except OSError as error:
        raise BinaryDamaged(
            path, name, version, f"cannot be read ({error.strerror or error})"
        ) from error
    found = crc32c(binary)
    if found != crc or (not crc and binary):
        raise BinaryDamaged(
            path,
            name,
            version,
            f"has {len(binary)} bytes with the CRC-32C {found:08x}, not {crc:08x}",
        )
    return binary
