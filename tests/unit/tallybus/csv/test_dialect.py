"""What separates the fields of a file that a spreadsheet or another program wrote."""

from __future__ import annotations

import pytest

from tallybus.csv.importing import parse_csv
from tests.unit.tallybus.csv.files import parse, place, refused, rows


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quote", ["", '"'])
@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_header_shows_what_separates_the_fields(
    delimiter: str, quote: str, declared: bool, end: str
) -> None:
    table = [
        *(["note, with; all|of", "kind", "account", "amount"], ["x", "deposit", "1", "2"]),
        ["", "withdrawal", "3", "4"],
    ]
    if not quote:
        table[0][0] = "note"
    lines = [delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in table]
    text = "\ufeff" + end.join([*([f"sep={delimiter}"] if declared else []), *lines]) + end
    for block in (1, 7, 1 << 20):
        assert [row[:3] for row in rows(parse(text, block))] == [(1, 1, 2), (2, 3, 4)]


def test_a_delimiter_that_was_given_counts() -> None:
    text = "kind~account~amount~note\ndeposit~1~2~a,b;c\n"
    assert refused(text).line == 1
    parsed = parse_csv([text.encode()], "~")
    assert [row[:3] for row in rows(parsed)] == [(1, 1, 2)]


def test_faults_are_found_where_they_stand_whatever_separates_the_fields() -> None:
    header = '"kind";"account";"amount"\n'
    assert place(refused(header + '"deposit";"1";"-2"\n')) == (2, 3, "amount")
    assert place(refused(header + '"deposit";"1"x;"2"\n')) == (2, 2, None)
    assert place(refused(header.encode() + b"deposit;1;\xff\n")) == (2, 3, None)
    error = refused(header + "deposit;1;2;3\n")
    assert "holds a semicolon must be quoted" in str(error)
