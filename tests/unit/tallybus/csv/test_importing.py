"""The rules of an importable CSV file: what passes, what is refused and where."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tallybus.csv.importing import CHUNK_ROWS, KINDS, Tally, derived_refs, parse_csv
from tallybus.csv.text import MAX_LINE_BYTES, MalformedCsv
from tests.unit.tallybus.csv.files import HEADER, digest_of, parse, place, records, refused, rows


def test_reads_every_kind_in_file_order() -> None:
    text = HEADER + "deposit,1,100,,7\nwithdrawal,2,200,0,8\ntransfer,3,300,4,9\n"
    parsed = parse(text)
    assert rows(parsed) == [(1, 1, 100, 0, 7), (2, 2, 200, 0, 8), (3, 3, 300, 4, 9)]
    assert (parsed.rows, parsed.derived_refs) == (3, 0)
    made = records(parsed)
    assert not made["status"].any()
    assert not made["entry_count"].any()
    assert not made["function"].any()


def test_columns_stand_in_any_order_and_others_are_ignored() -> None:
    text = 'note,amount,user_ref,kind,date,account\n"a,\n""b""",5,1,deposit,x\x0by,6\n'
    assert rows(parse(text)) == [(1, 6, 5, 0, 1)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("tail", ["", "end", "endendend"])
def test_line_ends_byte_order_mark_and_blank_lines_at_the_end(
    end: str, bom: str, tail: str
) -> None:
    text = bom + "kind,account,amount" + end + "deposit,1,2" + end + '"deposit","3","4"' + tail
    found = rows(parse(text.replace("end", end)))
    assert [row[:3] for row in found] == [(1, 1, 2), (1, 3, 4)]


def test_limits_of_every_number() -> None:
    big = 2**64 - 1
    text = HEADER + f"transfer,{big},{2**63 - 1},{big},{big}\n" + "deposit,0,1,,\n"
    assert rows(parse(text))[0] == (3, big, 2**63 - 1, big, big)


def test_leading_zeros_do_not_matter() -> None:
    zeros = "0" * 5_000
    assert rows(parse(HEADER + f"deposit,{zeros}1,{zeros}2,{zeros},{zeros}9\n")) == [
        (1, 1, 2, 0, 9)
    ]


def test_header_alone_is_a_file_without_rows() -> None:
    parsed = parse(HEADER)
    assert parsed.rows == 0
    assert list(parsed.batches(10)) == []


@pytest.mark.parametrize("text", ["", "\n\r\n\n", "\ufeff"])
def test_an_empty_file_is_refused(text: str) -> None:
    error = refused(text)
    assert error.line == 1
    assert "empty" in str(error)


@pytest.mark.parametrize(
    ("row", "column", "name", "words"),
    [
        ("depozit,1,1,,", 1, "kind", "none of deposit, withdrawal, transfer, function"),
        ("function,,,,", None, None, "no column function"),
        ("Deposit,1,1,,", 1, "kind", "none of"),
        (",1,1,,", 1, "kind", "none of"),
        ("deposit,,1,,", 2, "account", "empty"),
        ("deposit,1,,,", 3, "amount", "empty"),
        ("deposit,-1,1,,", 2, "account", "negative"),
        ("deposit,1,-5,,", 3, "amount", '"-5" is negative'),
        ("deposit,1,0,,", 3, "amount", "at least 1"),
        ("deposit,1,000,,", 3, "amount", "at least 1"),
        ("deposit,1,+5,,", 3, "amount", "not a whole number"),
        ("deposit,1,1_000,,", 3, "amount", "not a whole number"),
        ("deposit,1, 5,,", 3, "amount", "not a whole number"),
        ("deposit,1,1.50,,", 3, "amount", "not a whole number"),
        ("deposit,1,1e3,,", 3, "amount", "not a whole number"),
        ("deposit,1,٣,,", 3, "amount", "not a whole number"),
        ("deposit,1,5²,,", 3, "amount", "not a whole number"),
        (f"deposit,1,{2**63},,", 3, "amount", f"more than {2**63 - 1}"),
        (f"deposit,{2**64},1,,", 2, "account", f"more than {2**64 - 1}"),
        (f"deposit,1,{'9' * 5000},,", 3, "amount", "more than"),
        (f"transfer,1,1,{2**64},", 4, "counterparty", "more than"),
        (f"deposit,1,1,,{2**64}", 5, "user_ref", "more than"),
        ("deposit,1,1,,x", 5, "user_ref", "not a whole number"),
        ("transfer,1,1,,", 4, "counterparty", "needs the account"),
        ("transfer,1,1,0,", 4, "counterparty", "needs the account"),
        ("deposit,1,1,9,", 4, "counterparty", "a deposit has no counterparty"),
        ("withdrawal,1,1,9,", 4, "counterparty", "a withdrawal has no counterparty"),
        ("deposit,1", 3, "amount", "ends after 2 of 5 fields"),
        ("deposit,1,1,,,x", 6, None, "6 fields"),
        ('deposit,"1"x,1,,', 2, None, "closing quote"),
        ('"deposit";"1";"1"', 1, None, "separated by semicolon, those of the header by comma"),
        ('"deposit"\t"1"\t"1"', 1, None, "separated by tab, those of the header by comma"),
        ('deposit,1,1,,"', 5, None, "not closed"),
        ("deposit,1,1\r2,,", 3, None, "carriage return"),
        ("deposit,1,1,\x00,", 4, None, "zero byte"),
    ],
)
@pytest.mark.parametrize("before", [0, 3, CHUNK_ROWS])
def test_a_wrong_row_is_refused_with_its_place(
    before: int, row: str, column: int | None, name: str | None, words: str
) -> None:
    error = refused(HEADER + "deposit,1,1,,\n" * before + row + "\n" + "deposit,1,1,,\n")
    assert place(error) == (before + 2, column, name)
    assert words in error.reason
    assert f"line {before + 2}" + (f", column {column}" if column else ": ") in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 250


def test_transfer_without_a_counterparty_column_is_refused() -> None:
    error = refused("kind,account,amount\ntransfer,1,1\n")
    assert error.line == 2
    assert "no column counterparty" in error.reason


def test_line_numbers_count_blank_lines_and_line_ends_inside_quotes() -> None:
    text = 'note,kind,account,amount\n\n"a\nb",deposit,1,1\n\n"c\n\nd",deposit,1,x\n'
    assert place(refused(text)) == (8, 4, "amount")
    assert parse(text.replace("x", "1")).line_of(2) == 8


def test_the_first_wrong_row_is_named_even_before_broken_quotes() -> None:
    assert refused(HEADER + 'deposit,1,0,,\ndeposit,"1"x,1,,\n').line == 2


@pytest.mark.parametrize(
    ("header", "line", "column", "words"),
    [
        ("kind,account\n", 1, None, 'no column amount; the header has "kind", "account"'),
        ("kind:account:amount\n", 1, None, "separated by comma here, which --delimiter changes"),
        ("Kind;account; amount\n", 1, None, '"Kind" has to be written kind'),
        ("kind;account; Amount\n", 1, None, '" Amount" has to be written amount'),
        ("kind,account,amount,account\n", 1, 4, "there twice"),
        ("\n\nkind,amount\n", 3, None, "no column account"),
        ("deposit,1,100\n", 1, None, "no column kind"),
        ('kind,"acc"ount,amount\n', 1, 2, "closing quote"),
    ],
)
def test_a_wrong_header_is_refused(header: str, line: int, column: int | None, words: str) -> None:
    error = refused(header + "deposit,1,1\n")
    assert (error.line, error.column) == (line, column)
    assert words in error.reason


def test_a_column_that_is_ignored_may_be_there_twice() -> None:
    assert parse("x,kind,account,amount,x,,\n,deposit,1,1,,,\n").rows == 1


def test_the_same_user_ref_twice_is_refused_naming_both_lines() -> None:
    error = refused(HEADER + "\ndeposit,1,1,,5\ndeposit,1,1,,6\ndeposit,1,1,,\ndeposit,2,2,,5\n")
    assert place(error) == (6, 5, "user_ref")
    assert error.first_line == 3
    assert "user_ref 5 is already that of line 3" in str(error)


def test_a_repeated_user_ref_is_found_across_chunks() -> None:
    body = "".join(f"deposit,1,1,,{ref}\n" for ref in range(1, CHUNK_ROWS + 10))
    error = refused(HEADER + body + "deposit,1,1,,2\n")
    assert (error.line, error.first_line) == (CHUNK_ROWS + 11, 3)


def test_rows_without_a_user_ref_get_one_that_follows_from_content_and_row() -> None:
    text = HEADER + "deposit,1,1,,\ndeposit,1,1,,0\ndeposit,1,1,,77\n"
    first, again = parse(text), parse(text, block=7)
    refs = records(first)["user_ref"]
    assert first.derived_refs == 2
    assert refs[2] == 77
    assert len(set(refs.tolist()) - {0}) == 3
    assert refs.tolist() == records(again)["user_ref"].tolist()
    other = records(parse(text + "deposit,1,1,,\n"))["user_ref"]
    assert not set(refs[:2].tolist()) & set(other.tolist())


def test_derived_refs_keep_their_values() -> None:
    """Changed values would let a file that was imported before be applied again."""
    text = "kind,account,amount\ndeposit,1,100\n"
    assert records(parse(text))["user_ref"].tolist() == [5450925792895902310]


@given(st.integers(0, 2**64 - 1))
def test_derived_refs_differ_and_are_never_zero(digest: int) -> None:
    stride = 0x9E3779B97F4A7C15
    to_zero = (-digest * pow(stride, -1, 2**64)) % 2**64
    numbers = {1, 2, 3, 10**9, 2**63 - 1} | ({to_zero} if 0 < to_zero < 2**63 else set())
    refs = derived_refs(digest, np.array(sorted(numbers), np.uint64)).tolist()
    assert 0 not in refs
    assert len(set(refs)) == len(refs)


def test_the_row_whose_ref_would_be_zero_gets_another() -> None:
    stride = 0x9E3779B97F4A7C15
    digest = (-5 * stride) % 2**64
    refs = derived_refs(digest, np.arange(1, 10, dtype=np.uint64)).tolist()
    assert 0 not in refs
    assert len(set(refs)) == 9


def test_batches_keep_the_order_and_may_start_later() -> None:
    count = CHUNK_ROWS + 100
    parsed = parse(HEADER + "".join(f"deposit,{row},1,,{row}\n" for row in range(1, count + 1)))
    parts = list(parsed.batches(5_000))
    assert max(map(len, parts)) == 5_000
    assert np.concatenate(parts)["account"].tolist() == list(range(1, count + 1))
    for start in (1, 2, CHUNK_ROWS, CHUNK_ROWS + 1, count):
        later = np.concatenate(list(parsed.batches(5_000, start)))
        assert later["account"].tolist() == list(range(start, count + 1))


def test_bytes_that_are_no_text_are_refused_where_they_stand() -> None:
    assert place(refused(b"kind,account,amount\ndeposit,1,\xff\n")) == (2, 3, None)
    assert "UTF-16" in str(refused("kind,account\n".encode("utf-16")))
    assert "not UTF-8" in str(refused(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10))


def test_an_endless_line_is_refused_without_reading_on() -> None:
    def endless() -> Iterator[bytes]:
        yield HEADER.encode()
        for _ in range(3 * MAX_LINE_BYTES // 65_536):
            yield b"1" * 65_536
        raise AssertionError("read on")

    with pytest.raises(MalformedCsv) as caught:
        parse_csv(endless())
    assert caught.value.line == 2
    assert "longer than" in str(caught.value)


def test_a_quote_that_is_never_closed_is_refused_where_it_opens() -> None:
    body = "deposit,1,1,,\n" * 10 + 'deposit,1,1,,"5\n' + "deposit,1,1,,\n" * 20_000
    error = refused(HEADER + body)
    assert place(error) == (12, 5, None)
    assert "quote" in error.reason


CELL = st.one_of(
    st.sampled_from(
        ["deposit", "withdrawal", "transfer", "", "0", "1", "12", "-1", "x", "٣", " 1"]
    ),
    st.integers(0, 2**65).map(str),
    st.text('0123456789",\r\n a', max_size=4),
)


@given(st.lists(st.lists(CELL, min_size=5, max_size=5), max_size=8), st.integers(1, 60))
def test_agrees_with_a_plain_reading(table: list[list[str]], block: int) -> None:
    """Every file either gives exactly the rows that plain Python reads, or is refused."""
    out = io.StringIO(newline="")
    csv.writer(out).writerows([HEADER.strip().split(","), *table])
    text = out.getvalue()

    def plain() -> list[tuple[int, ...]] | None:
        seen: set[int] = set()
        found: list[tuple[int, ...]] = []
        for kind, *cells in table:
            numbers = []
            for cell, optional in zip(cells, (False, False, True, True), strict=True):
                cell = "0" if optional and not cell else cell
                if not cell or set(cell) - set("0123456789") or int(cell) >= 2**64:
                    return None
                numbers.append(int(cell))
            account, amount, counterparty, ref = numbers
            if kind not in KINDS or not 1 <= amount < 2**63 or ref in seen:
                return None
            if (kind == "transfer") != (counterparty != 0):
                return None
            seen |= {ref} - {0}
            found.append((KINDS[kind], account, amount, counterparty, ref))
        return found

    expected = plain()
    if expected is None:
        refused(text, block)
        return
    found = rows(parse(text, block))
    assert [row[:4] for row in found] == [row[:4] for row in expected]
    assert all(new[4] == old[4] or old[4] == 0 for new, old in zip(found, expected, strict=True))
    assert all(row[4] for row in found)


@given(st.binary(max_size=200), st.integers(1, 50), st.booleans())
def test_any_bytes_are_read_or_refused(data: bytes, block: int, headed: bool) -> None:
    with contextlib.suppress(MalformedCsv):
        parse((HEADER.encode() if headed else b"") + data, block)


def test_where_blocks_end_does_not_matter() -> None:
    text = ("\ufeff" + HEADER + "deposit,1,1,,\r\n\r\n" + 'transfer,"1",2,3,4\n').encode()
    expected = rows(parse(text))
    for block in range(1, len(text) + 1):
        assert rows(parse(text, block)) == expected


def test_tally_counts_by_reason() -> None:
    tally = Tally()
    tally.add(1, np.array([0, 1, 7, 0, 1, 8], np.uint8))
    tally.add(7, np.array([0, 200, 6], np.uint8))
    assert (tally.rows, tally.applied, tally.duplicates, tally.last_tx_id) == (9, 3, 1, 9)
    assert tally.rejected == {
        "INSUFFICIENT_FUNDS": 2,
        "BALANCE_OVERFLOW": 1,
        "FUNCTION_200": 1,
        "ACCOUNT_LIMIT_EXCEEDED": 1,
    }
    assert tally.rejected_total() == 5
    assert tally.rows == tally.applied + tally.duplicates + tally.rejected_total()


@pytest.mark.parametrize("cell", ["10.50", "10,50", "1.000,00", "1,000.00", "1'000.5"])
def test_decimal_amounts_are_told_to_be_minor_units(cell: str) -> None:
    error = refused(f'kind;account;amount\ndeposit;1;"{cell}"\n')
    assert place(error) == (2, 3, "amount")
    assert "whole minor units" in error.reason
    assert "1250" in error.reason


def test_rows_of_only_delimiters_and_blanks_are_blank_lines() -> None:
    text = ",,,\n" + HEADER + ',,,,\ndeposit,1,2,,\n , ,"",\t,\n,\n,,,,,,,,\n"  "\n'
    parsed = parse(text + "deposit,3,4,,9\n" + ",,,,\n" * 3)
    assert [row[:3] for row in rows(parsed)] == [(1, 1, 2), (1, 3, 4)]
    assert [parsed.line_of(row) for row in (1, 2)] == [4, 9]
    assert parsed.rows == 2
    error = refused(text + "deposit,3,0,,9\n")
    assert place(error) == (9, 3, "amount")
    assert rows(parse(HEADER + ",,,,\n" * 5)) == []


def test_blank_rows_among_many_change_neither_refs_nor_lines() -> None:
    body = "".join(f"deposit,{row},1,,\n" + ",,,,\n" * (row % 3) for row in range(1, 30_000))
    parsed = parse(HEADER + body)
    assert parsed.rows == 29_999
    assert records(parsed)["account"].tolist() == list(range(1, 30_000))
    assert parsed.line_of(4) == 2 + 3 + (1 + 2 + 0)
    assert (
        records(parsed)["user_ref"]
        == derived_refs(digest_of(HEADER + body), np.arange(1, 30_000, dtype=np.uint64))
    ).all()
