"""`docs/bus.md` describes every message between services, field by field, and no other.

The client on `docs/protocol.md` runs as it stands.
"""

import re
from dataclasses import MISSING, fields
from typing import Any

import pytest

from tallybus.common.bus.messages import MESSAGE_TYPES
from tests.support.fake_gateway import FakeGateway
from tests.support.folders import PROJECT

DOCS = PROJECT / "docs"
BUS = (DOCS / "bus.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^#### `(\w+)`\n(.*?)(?=^#|\Z)", BUS, re.MULTILINE | re.DOTALL))
PROTOCOL = (DOCS / "protocol.md").read_text("utf-8")
CLIENT = re.compile(r"^```python\n(.*?)^```.*?^```text\n(.*?)^```", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| ((?:(?:frame )?`\w+`(?:, )?)+) \| (.*?) \|", re.MULTILINE)
TYPES = {
    "int": "u64",
    "bool": "bool",
    "str": "text",
    "list[str]": "list of text",
    "list[int]": "list of u64",
    "list[list[int]]": "list of lists of u64",
    "dict[int, int]": "map of u64 to u64",
    "dict[str, int | str]": "map",
    "list[dict[str, Any]]": "list of maps",
}


def rows(section: str) -> tuple[dict[str, str], list[str]]:
    """Header fields with what the column `type` says, and the payload frames in their order."""
    header: dict[str, str] = {}
    frames: list[str] = []
    for names, kind in ROW.findall(section):
        for frame, name in re.findall(r"(frame )?`(\w+)`", names):
            if frame:
                frames.append(name)
            else:
                header[name] = kind
    return header, frames


def test_every_message_is_described_and_no_other() -> None:
    assert set(SECTIONS) == set(MESSAGE_TYPES)


@pytest.mark.parametrize("kind", MESSAGE_TYPES)
def test_every_field_of_a_message_is_described(kind: str) -> None:
    message: type[Any] = MESSAGE_TYPES[kind]
    header, frames = rows(SECTIONS[kind])
    assert frames == list(message.payloads)
    plain = [field for field in fields(message) if field.name not in message.payloads]
    assert set(header) == {field.name for field in plain}
    for field in plain:
        optional = field.default is not MISSING or field.default_factory is not MISSING
        assert header[field.name].endswith("optional") == optional, field.name
        if header[field.name] != "optional":  # as in another message
            assert header[field.name].removesuffix(", optional") == TYPES[str(field.type)]


def test_the_client_of_the_protocol_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    match = CLIENT.search(PROTOCOL)
    assert match
    with FakeGateway() as gateway:
        source = match[1].replace("tcp://127.0.0.1:5550", gateway.endpoint)
        for expected in (match[2], match[2].replace("failures 0", "failures 1")):
            namespace: dict[str, Any] = {}
            exec(compile(source, "docs/protocol.md", "exec"), namespace)  # noqa: S102
            namespace["socket"].close()
            assert capsys.readouterr().out == expected
