"""Is the log in a folder whole, and where does it end? Reads everything, changes nothing.

The log stage decides with it what to repair at a start, and the offline tools report with it. Every
block of every segment is verified. The answer is one of: whole; whole with a torn tail, or with a
rotation that a crash interrupted (both repairable without loss); or a `LogRefused` with file and
offset. ADR 0006 says why everything is verified at every start.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tallybus.common.files import Storage
from tallybus.common.wal.block import HEADER_SIZE, Chain, InvalidBlock, find_evidence, parse_header
from tallybus.common.wal.reader import (
    ACTIVE_NAME,
    FRESH_NAME,
    BlockScanner,
    DamagedLog,
    KernelPolicy,
    Progress,
    closed_path,
    closed_segment_number,
    refusal,
)


class Layout(NamedTuple):
    """Which files of a log a folder holds."""

    closed: int
    """Closed segments: exactly the numbers 1 .. closed."""
    active: bool
    """There is a `wal.bin`."""
    fresh: bool
    """There is a `wal.new`: a rotation, or the making of the log, was interrupted."""

    @property
    def is_empty(self) -> bool:
        """No log yet, or one whose making was interrupted before it had a name."""
        return not self.closed and not self.active


class TornTail(NamedTuple):
    """What a crash left behind the last valid block of the active file; none of it was durable."""

    path: Path
    offset: int
    length: int
    reason: str


@dataclass(slots=True)
class LogState:
    """Where a whole log ends. `chain` is the state behind its last valid block."""

    layout: Layout
    chain: Chain
    gateways: dict[int, int] = field(default_factory=dict)
    torn: TornTail | None = None


def read_layout(folder: Path, names: Sequence[str]) -> Layout:
    """Sort the names in a data folder. Raises DamagedLog when a file must be missing."""
    numbers = sorted(n for n in map(closed_segment_number, names) if n is not None)
    for expected, found in enumerate(numbers, start=1):
        if found != expected:
            raise DamagedLog(
                closed_path(folder, expected), 0, f"the file is missing, but {found} exists"
            )
    layout = Layout(len(numbers), ACTIVE_NAME in names, FRESH_NAME in names)
    if layout.closed and not layout.active and not layout.fresh:
        raise DamagedLog(
            folder / ACTIVE_NAME, 0, f"the file is missing after {layout.closed} closed segments"
        )
    return layout


def check_log(
    folder: Path,
    transactions_per_segment: int | None = None,
    *,
    storage: Storage | None = None,
    progress: Progress | None = None,
    kernel: bool | None = None,
) -> LogState:
    """Verify all segments block by block.

    transactions_per_segment: as configured, or None to take it from the log itself. Of an empty
    folder (or one with nothing but an unfinished `wal.new`) the state has `layout.is_empty` and the
    chain stands at the very beginning. Raises LogRefused (DamagedLog, ForeignLog) and StorageError.
    """
    reader = storage or Storage()
    layout = read_layout(folder, reader.list_names(folder))
    paths = [closed_path(folder, number) for number in range(1, layout.closed + 1)]
    if not layout.is_empty:
        paths.append(folder / (ACTIVE_NAME if layout.active else FRESH_NAME))
    elif layout.fresh:
        _check_unborn(folder / FRESH_NAME, reader)
    if transactions_per_segment is None:
        transactions_per_segment = _size_of_segments(reader, paths)
    state = LogState(layout, Chain(transactions_per_segment))
    total = sum(reader.size(path) for path in paths)
    policy = KernelPolicy(kernel)
    done = 0
    for number, path in enumerate(paths, start=1):
        if number > 1:
            state.chain = state.chain.next_segment()
        data = reader.map_read(path)
        scanner = BlockScanner(data, state.chain, gateways=state.gateways, policy=policy)
        base = done
        report = (
            None if progress is None else lambda offset, base=base: progress(base + offset, total)
        )
        try:
            scanner.verify_rest(report)
        except InvalidBlock as error:
            if number <= layout.closed:
                raise refusal(path, error) from error
            state.torn = _judge_tail(path, data, state.chain, error)
        if not state.chain.offset:
            raise DamagedLog(path, 0, "the file is empty, but every segment opens with a marker")
        if number <= layout.closed and not state.chain.segment_is_full:
            raise DamagedLog(
                path,
                state.chain.offset,
                f"the file ends before id {state.chain.next_id}, but the closed segment goes to "
                f"{state.chain.segment_end}",
            )
        done += len(data)
    if layout.active and layout.fresh and not state.chain.segment_is_full:
        raise DamagedLog(
            folder / ACTIVE_NAME,
            state.chain.offset,
            f"the file ends before id {state.chain.next_id}, but {FRESH_NAME} shows that the "
            f"segment was durable up to {state.chain.segment_end}",
        )
    if progress is not None:
        progress(total, total)
    return state


def _judge_tail(path: Path, data: memoryview, chain: Chain, error: InvalidBlock) -> TornTail:
    """Torn by a crash, or damaged? A tail is torn when nothing shows that it had been durable."""
    if error.conclusive or not chain.offset:
        # The opening marker was durable before the file got its name; it cannot be torn.
        raise refusal(path, error) from error
    evidence = find_evidence(data, chain.offset, chain.cluster_id, chain.next_id)
    if evidence is not None:
        raise DamagedLog(
            path,
            error.offset,
            f"{error.reason}; the block at offset {evidence} shows that id {chain.next_id} had "
            f"been durable",
        ) from error
    return TornTail(path, chain.offset, len(data) - chain.offset, error.reason)


def _check_unborn(path: Path, storage: Storage) -> None:
    """A lone wal.new is the rest of an interrupted first start, or all that is left of a log."""
    data = storage.map_read(path)
    try:
        header = parse_header(data, 0)
    except InvalidBlock:
        header = None
    if len(data) > HEADER_SIZE or (header is not None and header.segment != 1):
        raise DamagedLog(path, 0, "it opens a later segment, but all files before it are missing")


def _size_of_segments(storage: Storage, paths: Sequence[Path]) -> int:
    if not paths:
        return 1
    try:
        return parse_header(storage.map_read(paths[0]), 0).transactions_per_segment
    except InvalidBlock as error:
        raise refusal(paths[0], error) from error
