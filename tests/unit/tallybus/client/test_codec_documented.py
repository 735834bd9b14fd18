"""The examples and tables of docs/protocol.md are what the client's codec does."""

import re

from tallybus import Result, Status, WaitLevel
from tallybus.client.codec import encode, read_answer, read_header, reply_id
from tallybus.client.submit import SubmitOne
from tallybus.common.record import ENTRY_DTYPE, FAILURE_DTYPE, RECORD_DTYPE, STATUS_DTYPE
from tallybus.operations import Transfer, encode_operation
from tests.support.folders import DOCS

PROTOCOL = DOCS / "protocol.md"


def example(title: str) -> list[bytes]:
    """The frames of an example in the protocol's description: one fenced block of hex per title."""
    text = PROTOCOL.read_text()
    match = re.search(rf"{re.escape(title)}\n\n```text\n(.*?)```", text, re.DOTALL)
    assert match, title
    frames: list[bytes] = []
    for line in match[1].splitlines():
        if line.startswith("frame"):
            frames.append(b"")
        else:
            frames[-1] += bytes.fromhex(line.split("|")[0])
    return frames


def test_the_documented_request_is_what_the_client_sends() -> None:
    record, names, params = encode_operation(Transfer(source=1, target=2, amount=300, user_ref=42))
    request = SubmitOne(record, WaitLevel.COMMITTED, names, params)
    assert encode(request, 7, 30_000, again=False) == example("**The request, byte by byte:**")


def test_the_documented_replies_mean_what_is_said() -> None:
    record, _, _ = encode_operation(Transfer(source=1, target=2, amount=300, user_ref=42))
    request = SubmitOne(record, WaitLevel.COMMITTED)
    for title, expected in (
        ("**Its reply, when it succeeds:**", Result(1001, Status.NONE, WaitLevel.COMMITTED)),
        (
            "**Its reply, when the reference was used before:**",
            Result(1001, Status.DUPLICATE, WaitLevel.COMMITTED, 1001, Status.OK),
        ),
    ):
        frames = example(title)
        header = read_header(frames)
        assert reply_id(header) == 7
        assert read_answer(request, header, frames[1:], again=False) == expected


def test_the_documented_offsets_are_those_of_the_layouts() -> None:
    text = PROTOCOL.read_text()
    for name, dtype in (
        ("Operation record", RECORD_DTYPE),
        ("Failure", FAILURE_DTYPE),
        ("Entry", ENTRY_DTYPE),
        ("Transaction status", STATUS_DTYPE),
    ):
        section = text.split(f"### {name},", 1)[1].split("\n###", 1)[0].split("\n## ", 1)[0]
        assert section.startswith(f" {dtype.itemsize} bytes"), name
        rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
        assert dtype.fields is not None
        layout = [(str(dtype.fields[field][1]), field) for field in dtype.names or ()]
        assert rows == layout, name
