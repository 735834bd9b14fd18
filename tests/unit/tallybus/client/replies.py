"""Replies of a gateway as bytes, and what the client's codec makes of them."""

from typing import Any

import msgpack
import numpy as np

from tallybus import WaitLevel, deposits
from tallybus.client.codec import Request, read_answer, read_header, reply_id
from tallybus.client.submit import SubmitBatch
from tallybus.common.record import FAILURE_DTYPE


def reply(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"v": 1, "id": 1, **fields}))


def answer(request: Request[Any], *frames: bytes, again: bool = False) -> Any:
    """What the client makes of a reply."""
    header = read_header(frames)
    assert reply_id(header) == 1
    return read_answer(request, header, frames[1:], again)


def failures(*rows: tuple[int, int, int, int]) -> bytes:
    """Rows of offset, status, original status, duplicate_of."""
    table = np.zeros(len(rows), FAILURE_DTYPE)
    for target, row in zip(table, rows, strict=True):
        for name, value in zip(
            ("offset", "status", "original_status", "duplicate_of"), row, strict=True
        ):
            target[name] = value
    return table.tobytes()


def batch_of(count: int, level: WaitLevel = WaitLevel.COMMITTED, refs: Any = None) -> SubmitBatch:
    return SubmitBatch(deposits(np.arange(count), 5, refs).tobytes(), count, level)


def submitted(first: int, count: int, table: bytes = b"", level: int = 2) -> list[bytes]:
    header = reply(first=first, count=count, level=level, failures=len(table) // 16)
    return [header, table]
