"""CSV files as text, and what an import reads in them or refuses."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest

from tallybus.common.record import RECORD_DTYPE
from tallybus.csv.importing import CHUNK_ROWS, ParsedCsv, parse_csv
from tallybus.csv.text import MalformedCsv

HEADER = "kind,account,amount,counterparty,user_ref\n"


def digest_of(text: str) -> int:
    """What the references of rows without one are derived from."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def parse(text: str | bytes, block: int = 1 << 20) -> ParsedCsv:
    data = text.encode() if isinstance(text, str) else text
    return parse_csv(data[at : at + block] for at in range(0, len(data), block))


def records(parsed: ParsedCsv, batch: int = CHUNK_ROWS) -> np.ndarray:
    parts = list(parsed.batches(batch))
    return np.concatenate(parts) if parts else np.zeros(0, RECORD_DTYPE)


def rows(parsed: ParsedCsv) -> list[tuple[int, ...]]:
    names = ("kind", "account", "amount", "counterparty", "user_ref")
    return list(zip(*(records(parsed)[name].tolist() for name in names), strict=True))


def refused(text: str | bytes, block: int = 1 << 20) -> MalformedCsv:
    with pytest.raises(MalformedCsv) as caught:
        parse(text, block)
    return caught.value


def place(error: MalformedCsv) -> tuple[int, int | None, str | None]:
    return error.line, error.column, error.name
