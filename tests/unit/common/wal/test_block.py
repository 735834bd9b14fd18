"""The block: layout, checksums, what may follow what, and cutting batches."""

import random
import struct
from dataclasses import replace

import pytest
from crc32c import crc32c

from tallybus.common.batch import Batch
from tallybus.common.wal.block import (
    HEADER_FIELDS,
    HEADER_SIZE,
    BlockHeader,
    Chain,
    InvalidBlock,
    batch_in,
    checksum,
    find_evidence,
    parse_header,
    verify_payload,
)
from tests.support.log_samples import plain_batch, same, sample_batch

CLUSTER = 2**64 - 3


def opened(size: int = 100) -> Chain:
    """A chain behind the opening marker of a new log."""
    chain = Chain(size, cluster_id=CLUSTER)
    chain.advance(chain.seal_marker()[0])
    return chain


def block_bytes(chain: Chain, batch: Batch) -> bytes:
    _, packed = chain.seal(batch)
    return packed + b"".join(batch.buffers())


def test_every_header_field_stands_where_the_format_says() -> None:
    values = {name: position for position, (name, _, _) in enumerate(HEADER_FIELDS, start=1)}
    packed = BlockHeader(**values, header_crc=0).pack()
    assert len(packed) == 128
    assert packed[:8] == b"TBLK" + struct.pack("<HH", 1, 128)
    for name, offset, kind in HEADER_FIELDS:
        assert struct.unpack_from(kind, packed, offset)[0] == values[name], name
    assert packed[120:124] == bytes(4)
    assert struct.unpack_from("<I", packed, 124)[0] == crc32c(packed[:124])


def test_sealed_block_reads_back() -> None:
    chain = opened()
    batch = replace(sample_batch(1, 23), term=3, timestamp_ns=5, gateway=2**64 - 1, request=7)
    packed = block_bytes(chain, batch)
    data = memoryview(bytes(chain.offset) + packed)
    header = parse_header(data, chain.offset)
    assert chain.problem(header) is None
    verify_payload(data, header)
    assert same(batch_in(data, header), batch)
    assert header.last_id == 23
    assert header.end == len(data)
    assert (header.term, header.gateway, header.request) == (3, 2**64 - 1, 7)
    chain.advance(header)
    assert (chain.next_id, chain.offset, chain.term) == (24, len(data), 3)


def test_checksum_over_parts_is_that_of_the_whole() -> None:
    assert checksum([b"1234", b"", memoryview(b"56789")]) == 0xE3069283


def test_every_bit_of_a_block_is_checked() -> None:
    chain = opened()
    packed = block_bytes(chain, sample_batch(1, 4))
    prefix = bytes(chain.offset)
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        data = memoryview(prefix + damaged)
        with pytest.raises(InvalidBlock):
            verify_payload(data, parse_header(data, chain.offset))


def test_truncated_blocks_are_invalid() -> None:
    chain = opened()
    packed = bytes(chain.offset) + block_bytes(chain, sample_batch(1, 4))
    for length in range(chain.offset, len(packed)):
        data = memoryview(packed)[:length]
        with pytest.raises(InvalidBlock):
            verify_payload(data, parse_header(data, chain.offset))


@pytest.mark.parametrize(
    ("field", "value", "conclusive"),
    [
        ("cluster_id", 5, True),
        ("transactions_per_segment", 99, True),
        ("segment", 2, False),
        ("offset", 0, False),
        ("first_id", 2, False),
        ("previous_crc", 1, False),
        ("term", 1, False),
        ("durable_index", 1, False),
        ("record_count", 101, False),
    ],
)
def test_blocks_that_do_not_continue_the_log_are_refused(
    field: str, value: int, conclusive: bool
) -> None:
    chain = opened()
    chain.term = 2
    header, _ = chain.seal(plain_batch(1, 3, term=2))
    assert chain.problem(header) is None
    changed = header._replace(**{field: value})
    problem = chain.problem(changed)
    assert problem is not None
    assert problem.conclusive == conclusive
    assert str(value) in problem.reason or field in ("previous_crc", "record_count", "cluster_id")


def test_a_valid_header_of_another_version_is_never_taken_for_a_torn_write() -> None:
    packed = bytearray(block_bytes(opened(), plain_batch(1, 1)))
    packed[4] = 2
    packed[124:128] = struct.pack("<I", crc32c(bytes(packed[:124])))
    with pytest.raises(InvalidBlock, match="version 2") as caught:
        parse_header(memoryview(packed), 0)
    assert caught.value.conclusive


def test_a_segment_opens_with_a_marker() -> None:
    chain = Chain(10, cluster_id=CLUSTER)
    with pytest.raises(ValueError, match="opens with a marker"):
        chain.seal(plain_batch(1, 1))


def test_nothing_follows_in_a_full_segment_and_nothing_crosses_its_end() -> None:
    chain = opened(5)
    with pytest.raises(ValueError, match="goes beyond id 5"):
        chain.seal(plain_batch(1, 6))
    chain.advance(chain.seal(plain_batch(1, 5))[0])
    with pytest.raises(ValueError, match="goes beyond id 5"):
        chain.seal_marker(5)
    chain = chain.next_segment()
    chain.advance(chain.seal_marker(5)[0])
    assert chain.seal(plain_batch(6, 5))[0].last_id == 10


def test_the_durable_index_in_the_log_never_goes_back() -> None:
    chain = opened()
    for durable, expected in ((0, 0), (3, 3), (2, 3), (6, 6)):
        header, _ = chain.seal(plain_batch(chain.next_id, 3), durable_index=durable)
        assert header.durable_index == expected
        chain.advance(header)


def test_evidence_is_a_whole_header_of_this_cluster_only() -> None:
    chain = opened()
    chain.advance(chain.seal(plain_batch(1, 3))[0])
    _, marker = chain.seal_marker(3)
    data = b"TBLKxxxx" * 40 + marker
    assert find_evidence(memoryview(data), 0, CLUSTER, 3) == 320
    assert find_evidence(memoryview(data)[8:], 0, CLUSTER, 3) == 312
    assert find_evidence(memoryview(data), 321, CLUSTER, 3) is None
    assert find_evidence(memoryview(data), 0, CLUSTER, 4) is None
    assert find_evidence(memoryview(data), 0, 1, 3) is None
    for bit in range(HEADER_SIZE * 8):
        damaged = bytearray(data)
        damaged[320 + bit // 8] ^= 1 << bit % 8
        assert find_evidence(memoryview(damaged), 0, CLUSTER, 3) is None


def test_random_bytes_are_an_error_and_nothing_else() -> None:
    rng = random.Random(5)
    for _ in range(2000):
        data = bytearray(rng.randbytes(rng.randrange(300)))
        if rng.random() < 0.8 and len(data) > 128:
            data[:4] = b"TBLK"
            data[124:128] = struct.pack("<I", crc32c(bytes(data[:124])))
        with pytest.raises(InvalidBlock):
            verify_payload(memoryview(data), parse_header(memoryview(data), 0))
