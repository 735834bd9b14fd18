"""Fast path over runs of small blocks: verifies them and gathers their parts, in one numba kernel.

It knows the same rules as `block.Chain.problem` and `block.parse_header` (a test holds the two
against each other on damaged logs), but never judges: at the first block that it does not like it
stops in front of it, and the plain code says what is wrong. Only `common/wal/reader.py` uses it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tallybus.common.checksum import POLYNOMIAL
from tallybus.common.kernels.compiled import INPUT_LINE, inlined, kernel, types
from tallybus.common.wal.block import FORMAT_VERSION, HEADER_SIZE, MAGIC

MAX_GATEWAYS: Final = 64
"""Different gateways that one call can tell apart; at the next one it stops and is called again."""

_FIRST_WORD: Final = int.from_bytes(
    MAGIC + FORMAT_VERSION.to_bytes(2, "little") + HEADER_SIZE.to_bytes(2, "little"), "little"
)

(
    CLUSTER,
    SEGMENT,
    OFFSET,
    NEXT_ID,
    PREVIOUS_CRC,
    TERM,
    DURABLE,
    TIMESTAMP,
    PER_SEGMENT,
    RECORDS,
    LINKS,
    PARAMS,
    ENTRIES,
    BLOCKS,
    GATEWAYS,
    LAST_OFFSET,
    BATCHES,
) = range(17)
"""Slots of the kernel's state, uint64[17]. The first nine mirror `Chain` and must all be known;
then come what the call gathered, and the offset of the last block it stepped over."""
STATE_SIZE: Final = 17


def _make_tables() -> NDArray[np.uint64]:
    """Tables of the slice-by-8 method for CRC-32C: uint64[8, 256]."""
    first = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (POLYNOMIAL if value & 1 else 0)
        first.append(value)
    tables = [first]
    for _ in range(7):
        tables.append([(value >> 8) ^ first[value & 255] for value in tables[-1]])
    return np.array(tables, dtype=np.uint64)


TABLES: Final = _make_tables()


_SIGNATURE: Final = types.void(
    INPUT_LINE,
    types.int64,
    types.uint64,
    types.uint64,
    types.boolean,
    types.uint64[:, ::1],
    types.uint64[::1],
    types.uint64[:, ::1],
    types.uint64[::1],
    types.uint64[::1],
    types.uint64[::1],
    types.uint64[::1],
    types.uint64[:, ::1],
)


@inlined
def _crc_word(tables: Any, crc: Any, word: Any) -> Any:
    x = crc ^ word
    low = np.uint64(255)
    return (
        tables[7, x & low]
        ^ tables[6, (x >> np.uint64(8)) & low]
        ^ tables[5, (x >> np.uint64(16)) & low]
        ^ tables[4, (x >> np.uint64(24)) & low]
        ^ tables[3, (x >> np.uint64(32)) & low]
        ^ tables[2, (x >> np.uint64(40)) & low]
        ^ tables[1, (x >> np.uint64(48)) & low]
        ^ tables[0, x >> np.uint64(56)]
    )


@kernel(_SIGNATURE)
def scan_blocks(
    words: Any,
    end: int,
    last_id: Any,
    largest: Any,
    check_payload: bool,
    tables: Any,
    state: Any,
    gateways: Any,
    records: Any,
    links: Any,
    params: Any,
    entries: Any,
    batches: Any,
) -> None:
    """Step over whole small blocks from state[OFFSET] on, as many as fit.

    words uint64[n]: the file. end: word index at which to stop taking blocks. last_id: no block
    that goes beyond it is taken. largest: bytes of the largest payload taken. gateways
    uint64[MAX_GATEWAYS, 2]: gateway and its highest request. records, links, params, entries
    uint64[...]: where the parts are copied to (entries two words each); batches uint64[m, 4]: whose
    the transactions of each block that has any are (gateway, request, first id, count); with
    records of length 0 nothing is copied and nothing but `end` bounds the run.
    """
    mask = np.uint64(0xFFFFFFFF)
    half = np.uint64(32)
    one = np.uint64(1)
    first_word = np.uint64(_FIRST_WORD)
    gather = records.shape[0] > 0
    cluster = state[CLUSTER]
    segment = state[SEGMENT]
    segment_end = segment * state[PER_SEGMENT]
    at = np.int64(state[OFFSET] >> np.uint64(3))
    next_id = state[NEXT_ID]
    previous = state[PREVIOUS_CRC]
    term = state[TERM]
    durable = state[DURABLE]
    timestamp = state[TIMESTAMP]
    records_at = np.int64(0)
    links_at = np.int64(0)
    params_at = np.int64(0)
    entries_at = np.int64(0)
    blocks = np.int64(0)
    told = np.int64(0)
    used = np.int64(0)
    last = at
    total = words.shape[0]
    while at < end and at + 16 <= total:
        if at == 0 or words[at] != first_word:
            break
        crc = mask
        for i in range(at, at + 15):
            crc = _crc_word(tables, crc, words[i])
        tail = words[at + 15]
        x = (crc ^ tail) & mask
        low = np.uint64(255)
        crc = (
            tables[3, x & low]
            ^ tables[2, (x >> np.uint64(8)) & low]
            ^ tables[1, (x >> np.uint64(16)) & low]
            ^ tables[0, x >> np.uint64(24)]
        ) ^ mask
        if crc != tail >> half or tail & mask:
            break
        count = words[at + 8] & mask
        link_count = words[at + 8] >> half
        param_count = words[at + 9] & mask
        entry_count = words[at + 9] >> half
        length = words[at + 11]
        first_id = words[at + 4]
        if (
            length > largest
            or count * np.uint64(40)
            + (link_count + param_count) * np.uint64(8)
            + entry_count * np.uint64(16)
            != length
            or words[at + 1] != cluster
            or words[at + 2] != segment
            or words[at + 7] != state[PER_SEGMENT]
            or words[at + 10] != np.uint64(at) << np.uint64(3)
            or first_id != next_id
            or words[at + 14] & mask != previous
            or words[at + 3] < term
            or words[at + 6] < durable
            or words[at + 6] >= first_id
            or next_id > segment_end
            or first_id + count - one > segment_end
            or next_id > last_id
            or first_id + count - one > last_id
        ):
            break
        body = at + 16
        after = body + np.int64(length >> np.uint64(3))
        if after > total:
            break
        if check_payload:
            value = mask
            for i in range(body, after):
                value = _crc_word(tables, value, words[i])
            if value ^ mask != words[at + 14] >> half:
                break
        if gather and (
            records_at + np.int64(count) * 5 > records.shape[0]
            or links_at + np.int64(link_count) > links.shape[0]
            or params_at + np.int64(param_count) > params.shape[0]
            or entries_at + np.int64(entry_count) * 2 > entries.shape[0]
            or told == batches.shape[0]
        ):
            break
        gateway = words[at + 12]
        if gateway:
            slot = used - 1
            while slot >= 0 and gateways[slot, 0] != gateway:
                slot -= 1
            if slot < 0:
                if used == gateways.shape[0]:
                    break
                slot = used
                used += 1
                gateways[slot, 0] = gateway
                gateways[slot, 1] = words[at + 13]
            elif words[at + 13] > gateways[slot, 1]:
                gateways[slot, 1] = words[at + 13]
        if gather:
            for i in range(np.int64(count) * 5):
                records[records_at + i] = words[body + i]
            records_at += np.int64(count) * 5
            body += np.int64(count) * 5
            for i in range(np.int64(link_count)):
                links[links_at + i] = words[body + i]
            links_at += np.int64(link_count)
            body += np.int64(link_count)
            for i in range(np.int64(param_count)):
                params[params_at + i] = words[body + i]
            params_at += np.int64(param_count)
            body += np.int64(param_count)
            for i in range(np.int64(entry_count) * 2):
                entries[entries_at + i] = words[body + i]
            entries_at += np.int64(entry_count) * 2
            if count:
                batches[told, 0] = gateway
                batches[told, 1] = words[at + 13]
                batches[told, 2] = first_id
                batches[told, 3] = count
                told += 1
        blocks += 1
        last = at
        previous = crc
        term = words[at + 3]
        durable = words[at + 6]
        timestamp = words[at + 5]
        next_id += count
        at = after
    state[OFFSET] = np.uint64(at) << np.uint64(3)
    state[NEXT_ID] = next_id
    state[PREVIOUS_CRC] = previous
    state[TERM] = term
    state[DURABLE] = durable
    state[TIMESTAMP] = timestamp
    state[RECORDS] = np.uint64(records_at // 5)
    state[LINKS] = np.uint64(links_at)
    state[PARAMS] = np.uint64(params_at)
    state[ENTRIES] = np.uint64(entries_at // 2)
    state[BLOCKS] = np.uint64(blocks)
    state[BATCHES] = np.uint64(told)
    state[GATEWAYS] = np.uint64(used)
    state[LAST_OFFSET] = np.uint64(last) << np.uint64(3)
