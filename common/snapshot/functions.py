"""Snapshots of all functions: writing, verifying and reading their files.

`function_snapshot_000002.bin` holds every version of every function that was registered up to the
end of segment 2, `function_snapshot_000002.crc` proves that it is complete. It belongs to the
snapshot of the balances with the same number, and is written before it. Which of them count, and
which are removed, is for `common/snapshot/balances.py` to say.

May read the snapshots in the data folder. Writes only through the given `Storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from tallybus.common.checksum import crc32c
from tallybus.common.files import Storage, flat
from tallybus.common.functions.names import MAX_NAME_BYTES
from tallybus.common.functions.registry import FunctionRegistry, FunctionVersion, RegistrationError
from tallybus.common.snapshot.file import ReadableFile, read_sidecar
from tallybus.common.snapshot.format import (
    FUNCTION_SIZE,
    HEADER_SIZE,
    DamagedSnapshot,
    FunctionsHeader,
    SnapshotFields,
    decode_functions_header,
    function_snapshot_path,
    sidecar_line,
    sidecar_path,
)

FUNCTION_DTYPE: Final = np.dtype(
    [
        ("name", f"S{MAX_NAME_BYTES}"),
        ("version", "<u4"),
        ("crc32c", "<u4"),
        ("transaction_id", "<u8"),
    ]
)
"""One version of a function; `crc32c` 0 ends it. Names are padded with zeros."""

if FUNCTION_DTYPE.itemsize != FUNCTION_SIZE:
    raise AssertionError(
        f"FUNCTION_DTYPE has {FUNCTION_DTYPE.itemsize} bytes, the format says {FUNCTION_SIZE}"
    )


def write_function_snapshot(
    storage: Storage, folder: Path, fields: SnapshotFields, versions: Sequence[FunctionVersion]
) -> Path:
    """Writes a snapshot of `versions` (all, in order), then its sidecar, each durably.

    Returns the snapshot's path. Raises StorageError, and ValueError before anything is written for
    versions from after the snapshot.
    """
    if versions and versions[-1].transaction_id > fields.last_tx_id:
        raise ValueError(f"{versions[-1]} comes after the snapshot, which is of {fields}")
    rows = np.zeros(len(versions), FUNCTION_DTYPE)
    for row, version in zip(rows, versions, strict=True):
        row["name"] = version.name.encode("ascii")
        row["version"] = version.version
        row["crc32c"] = version.crc32c
        row["transaction_id"] = version.transaction_id
    payload = flat(rows)
    header = FunctionsHeader(fields, len(rows), crc32c(payload))
    head = header.encode()
    path = function_snapshot_path(folder, fields.segment)
    line = sidecar_line(path.name, crc32c(payload, crc32c(head)), header.file_size)
    storage.atomic_write(path, [head, payload])
    storage.atomic_write(sidecar_path(path), [line])
    return path


def read_function_snapshot(path: Path) -> tuple[SnapshotFields, FunctionRegistry]:
    """What the snapshot `path` says about itself, and its functions; everything is checked.

    Raises DamagedSnapshot, SnapshotUnreadable.
    """
    with ReadableFile(path) as file:
        sidecar = read_sidecar(path)
        size = file.size()
        head = file.read(min(size, HEADER_SIZE), 0)
        header = decode_functions_header(path, head, size)
        payload = file.read(size - HEADER_SIZE, HEADER_SIZE)
    if crc32c(payload) != header.payload_crc:
        raise DamagedSnapshot(path, HEADER_SIZE, "the payload's checksum does not match")
    if sidecar != sidecar_line(path.name, crc32c(payload, crc32c(head)), size):
        raise DamagedSnapshot(path, 0, f"its sidecar {sidecar_path(path).name} does not match it")
    return header.fields, _registry(path, header, payload)


def _registry(path: Path, header: FunctionsHeader, payload: bytes) -> FunctionRegistry:
    registry = FunctionRegistry()
    rows = np.frombuffer(payload, FUNCTION_DTYPE)
    for number, (name, version, crc, transaction_id) in enumerate(rows.tolist()):
        offset = HEADER_SIZE + number * FUNCTION_SIZE
        if transaction_id > header.fields.last_tx_id:
            raise DamagedSnapshot(path, offset, f"transaction {transaction_id} comes after it")
        try:
            text = name.decode("ascii", "replace")
            registry.apply(FunctionVersion(text, version, crc, transaction_id))
        except RegistrationError as error:
            raise DamagedSnapshot(path, offset, error.reason) from error
    return registry
