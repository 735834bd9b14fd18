"""What the records of a submit may hold, against a rule written down record by record."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tallybus import InvalidRequest, OperationBatch
from tallybus.common.bus.submitted import RecordFault, count_calls
from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.operations import encode_operations

U64 = 2**64 - 1
FIELDS = RECORD_DTYPE.names or ()
ZERO = {
    1: {"status", "entry_count", "reason", "function", "counterparty"},
    2: {"status", "entry_count", "reason", "function", "counterparty"},
    3: {"status", "entry_count", "reason", "function"},
    4: {"status", "entry_count", "reason", "account", "counterparty", "amount"},
}


def good(kinds: list[int]) -> NDArray[np.void]:
    """Records of these kinds, with the largest values wherever one may stand."""
    records = np.zeros(len(kinds), RECORD_DTYPE)
    for row, kind in zip(records, kinds, strict=True):
        row["kind"] = kind
        for name in set(FIELDS) - ZERO[kind] - {"kind", "function"}:
            row[name] = U64
        row["function"] = 2 if kind == Kind.FUNCTION else 0
    return records


kinds = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=40)
uniform = st.builds(lambda kind, n: [kind] * n, st.sampled_from([1, 2, 3, 4]), st.integers(1, 150))
values = st.one_of(st.sampled_from([1, 2, 3, 77, 255, 256, 2**31, 2**32, U64]), st.integers(0, U64))


@given(st.one_of(kinds, uniform))
def test_calls_are_counted_where_every_record_is_good(of: list[int]) -> None:
    assert count_calls(good(of).tobytes(), len(of), 3) == of.count(4)


@given(st.one_of(kinds, uniform), st.data())
def test_the_first_field_that_may_not_be_is_told(of: list[int], data: st.DataObject) -> None:
    records = good(of)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(FIELDS))
        largest = np.iinfo(RECORD_DTYPE[name]).max
        index = data.draw(st.integers(0, len(of) - 1))
        records[name][index] = data.draw(values) % (int(largest) + 1)
    bad = []
    for index, row in enumerate(records):
        kind = int(row["kind"])
        if kind not in ZERO:
            bad += [(index, "kind", kind)]
            continue
        bad += [
            (index, name, int(row[name])) for name in FIELDS if name in ZERO[kind] and row[name]
        ]
        if kind == 4 and row["function"] >= 3:
            bad += [(index, "function", int(row["function"]))]
    if not bad:
        assert count_calls(records.tobytes(), len(of), 3) == np.count_nonzero(records["kind"] == 4)
        return
    with pytest.raises(RecordFault) as caught:
        count_calls(records.tobytes(), len(of), 3)
    fault = caught.value
    assert (fault.index, fault.field, fault.value) in bad
    assert fault.index == bad[0][0]
    assert f"operation {fault.index}: {fault.field} must be " in str(fault)
    # A client's arrays are looked at in the same way, before anything is sent.
    params = np.zeros((int(np.count_nonzero(records["kind"] == 4)), 8), "<i8")
    with pytest.raises(InvalidRequest) as refused:
        encode_operations(OperationBatch(records, ["a", "b", "c"], params))
    error = refused.value
    assert (error.index, error.field, error.value) == (fault.index, fault.field, fault.value)


def test_a_call_needs_a_name_to_choose() -> None:
    calls = good([4] * 3)
    calls["function"] = 0
    assert count_calls(calls.tobytes(), 3, 1) == 3
    for names in (0, 2):
        calls["function"][1] = 2
        with pytest.raises(RecordFault) as caught:
            count_calls(calls.tobytes(), 3, names)
        assert caught.value.field == "function"


@pytest.mark.parametrize("count", [63, 64, 65, 16_384, 16_400])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_one_bad_record_in_a_large_batch_is_found(kind: int, place: str, count: int) -> None:
    records = good([kind] * count)
    at = {"first": 0, "middle": count // 2, "last": count - 1}[place]
    records["reason"][at] = 1
    with pytest.raises(RecordFault) as caught:
        count_calls(records.tobytes(), len(records), 3)
    assert (caught.value.index, caught.value.field) == (at, "reason")


def test_records_may_lie_at_any_address() -> None:
    records = good([1, 2, 3, 4])
    shifted = memoryview(b"x" + records.tobytes())[1:]
    assert count_calls(shifted, 4, 3) == 1


def test_an_array_of_calls_without_their_names_is_refused_by_the_client() -> None:
    records = np.zeros(2, RECORD_DTYPE)
    records["kind"] = [Kind.DEPOSIT, Kind.FUNCTION]
    with pytest.raises(InvalidRequest) as caught:
        encode_operations(records)
    assert (caught.value.field, caught.value.index) == ("function", 1)


@pytest.mark.parametrize("kind", [0, 5, 6, 255])
def test_a_kind_that_no_submit_has_is_refused(kind: int) -> None:
    records = np.zeros(1, RECORD_DTYPE)
    records["kind"] = kind
    with pytest.raises(InvalidRequest) as caught:
        encode_operations(records)
    assert (caught.value.field, caught.value.value, caught.value.index) == ("kind", kind, 0)
    assert ("requests of their own" in caught.value.message) == (kind == 5)


@pytest.mark.parametrize("count", [2, 64, 65, 200])
@pytest.mark.parametrize("field", ["account", "counterparty", "amount"])
def test_one_call_with_a_field_that_means_nothing_is_found_wherever_it_is(
    field: str, count: int
) -> None:
    for at in range(count):
        records = good([4] * count)
        records[field][at] = 1
        with pytest.raises(RecordFault) as caught:
            count_calls(records.tobytes(), count, 3)
        assert (caught.value.index, caught.value.field) == (at, field)


@pytest.mark.parametrize("count", [2, 64, 65, 200])
def test_one_call_of_another_function_in_a_batch_of_calls_is_counted(count: int) -> None:
    for at in range(count):
        for function in (0, 1, 3):
            records = good([4] * count)
            records["function"][at] = function
            assert count_calls(records.tobytes(), count, 4) == count
