"""Damage to a snapshot or its sidecar, everywhere: an older one is loaded, or exactly this one.

The older snapshot has other balances, so whatever is loaded is told apart by its content.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tallybus.common.files import Storage
from tallybus.common.snapshot.balances import (
    DamagedSnapshot,
    SnapshotFields,
    load_latest_snapshot,
    sidecar_path,
    snapshot_path,
    verify_snapshot,
)
from tests.support.snapshots import write_snapshot

ACCOUNTS = 3 * 4096
BALANCES_AT = 128 + 8


class Damaged:
    """A folder with a valid snapshot of segment 1 and one of segment 2 to be damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.balances: dict[int, NDArray[np.int64]] = {}
        for segment, account in ((1, 5), (2, 4000)):
            balances = np.zeros(ACCOUNTS, np.int64)
            balances[[0, account]] = (-segment, segment)
            touched = np.array([1, 0, 0], np.uint8)
            fields = SnapshotFields(7, segment, 10, 1, 99)
            write_snapshot(Storage(), folder, fields, balances, touched)
            self.balances[segment] = balances
        self.path = snapshot_path(folder, 2)
        self.sidecar = sidecar_path(self.path)

    def loaded_segment(self) -> int:
        """What a start finds; its balances are compared with those that were written."""
        snapshot, rejected = load_latest_snapshot(
            self.folder,
            cluster_id=7,
            transactions_per_segment=10,
            max_accounts=ACCOUNTS,
            durable_index=1000,
        )
        assert snapshot is not None
        segment = snapshot.fields.segment
        assert snapshot.fields == SnapshotFields(7, segment, 10, 1, 99)
        assert [error.path for error in rejected] == [self.path] * (2 - segment)
        # The bytes, and only of the used chunk: thousands of cases are compared.
        assert snapshot.touched.tolist() == [1, 0, 0]
        assert snapshot.balances[:4096].tobytes() == self.balances[segment][:4096].tobytes()
        return segment


@pytest.fixture
def damaged(tmp_path: Path) -> Damaged:
    damaged = Damaged(tmp_path)
    assert damaged.loaded_segment() == 2
    return damaged


def flips(damaged: Damaged, path: Path, places: Iterator[tuple[int, int]]) -> None:
    content = path.read_bytes()
    descriptor = os.open(path, os.O_RDWR)
    try:
        for offset, bit in places:
            os.pwrite(descriptor, bytes([content[offset] ^ (1 << bit)]), offset)
            assert damaged.loaded_segment() == 1, f"byte {offset}, bit {bit}"
            os.pwrite(descriptor, content[offset : offset + 1], offset)
    finally:
        os.close(descriptor)
    assert damaged.loaded_segment() == 2


def cuts(damaged: Damaged, path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content) - 1, -1, -1):
        os.truncate(path, size)
        with pytest.raises(DamagedSnapshot):
            verify_snapshot(damaged.path)
        # A whole start takes longer than the check that it goes by.
        if size < 300 or size % 61 == 0:
            assert damaged.loaded_segment() == 1, f"{size} bytes"
    path.write_bytes(content)
    assert damaged.loaded_segment() == 2


def test_cutting_the_snapshot_anywhere_is_noticed(damaged: Damaged) -> None:
    cuts(damaged, damaged.path)


def test_cutting_the_sidecar_anywhere_is_noticed(damaged: Damaged) -> None:
    cuts(damaged, damaged.sidecar)


def test_every_flipped_bit_of_header_chunk_numbers_and_first_balances_is_noticed(
    damaged: Damaged,
) -> None:
    flips(
        damaged,
        damaged.path,
        ((offset, bit) for offset in range(BALANCES_AT + 64) for bit in range(8)),
    )


def test_a_flipped_bit_in_every_balance_is_noticed(damaged: Damaged) -> None:
    # Over the balances every byte of a word and every bit of a byte has its turn.
    places = ((BALANCES_AT + 8 * i + i % 8, i // 8 % 8) for i in range(4096))
    flips(damaged, damaged.path, places)


def test_every_flipped_bit_of_the_sidecar_is_noticed(damaged: Damaged) -> None:
    size = damaged.sidecar.stat().st_size
    flips(damaged, damaged.sidecar, ((offset, bit) for offset in range(size) for bit in range(8)))


@pytest.mark.parametrize("name", ["path", "sidecar"])
@pytest.mark.parametrize("extra", [b"\0", b"\n", b"x" * 4096])
def test_anything_appended_is_noticed(damaged: Damaged, name: str, extra: bytes) -> None:
    path: Path = getattr(damaged, name)
    path.write_bytes(path.read_bytes() + extra)
    assert damaged.loaded_segment() == 1


@pytest.mark.parametrize(
    ("start", "fill"),
    [(0, b"\0"), (0, b"\xff"), (4096, b"\xff"), (28_672, b"\0"), (28_672, b"\xff")],
)
def test_a_lost_or_stale_page_is_noticed(damaged: Damaged, start: int, fill: bytes) -> None:
    content = bytearray(damaged.path.read_bytes())
    end = min(start + 4096, len(content))
    content[start:end] = fill * (end - start)
    damaged.path.write_bytes(content)
    assert damaged.loaded_segment() == 1


@pytest.mark.parametrize("keep_sidecar", [False, True])
def test_the_content_of_the_older_one_is_not_taken_for_the_newer(
    damaged: Damaged, keep_sidecar: bool
) -> None:
    older = snapshot_path(damaged.folder, 1)
    damaged.path.write_bytes(older.read_bytes())
    if not keep_sidecar:
        damaged.sidecar.write_bytes(sidecar_path(older).read_bytes())
    assert damaged.loaded_segment() == 1


def test_damage_to_both_leaves_the_log(damaged: Damaged) -> None:
    for segment in (1, 2):
        path = snapshot_path(damaged.folder, segment)
        path.write_bytes(path.read_bytes()[:-1])
    snapshot, rejected = load_latest_snapshot(
        damaged.folder,
        cluster_id=7,
        transactions_per_segment=10,
        max_accounts=ACCOUNTS,
        durable_index=1000,
    )
    assert snapshot is None
    assert [error.path.name for error in rejected] == [
        "snapshot_000002.bin",
        "snapshot_000001.bin",
    ]
