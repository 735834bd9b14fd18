"""Submissions that call functions: their turn, their bounds in a batch, and who pays."""

import numpy as np

from tallybus.common.bus.messages import Results
from tallybus.common.record import RECORD_DTYPE, Kind
from tests.unit.services.gateway.rig import MAX_WAIT_MS, ME, MS, Rig


def call_records(count: int) -> bytes:
    records = np.zeros(count, RECORD_DTYPE)
    records["kind"] = Kind.FUNCTION
    return records.tobytes()


def submit_calls(rig: Rig, request: int, count: int = 1, *, client: bytes = b"c") -> None:
    rig.ask(
        "submit", request, call_records(count), bytes(64 * count),
        client=client, count=count, wait=1, names=["f"],
    )  # fmt: skip


def test_submits_that_were_joined_keep_their_bounds_on_the_way() -> None:
    rig = Rig()
    submit_calls(rig, 1, 2, client=b"a")
    submit_calls(rig, 1, 3, client=b"b")
    (request,) = rig.sent()
    assert request.counts == [2, 3]
    rig.now += 10**9
    submit_calls(rig, 2, 4, client=b"a")
    (request,) = rig.sent()
    assert request.counts == []


def test_plain_submits_pass_the_calls_that_wait_for_their_turn() -> None:
    rig = Rig()
    for number in range(1, 4):
        submit_calls(rig, number, 30, client=b"a")
    (calls,) = rig.sent()
    assert calls.count == 30, "nobody knows how long they take"
    rig.submit(4, client=b"b")
    (plain,) = rig.sent()
    assert plain.count == 1
    rig.submit(5, client=b"a")
    assert rig.sent() == [], "it stays behind its own client's calls"


def test_calls_that_waited_in_vain_had_no_effect() -> None:
    rig = Rig()
    for number in (1, 2):
        submit_calls(rig, number, 30)
    assert len(rig.sent()) == 1
    rig.now += MAX_WAIT_MS * MS
    first, second = rig.answers()
    assert (first["id"], first["error"]) == (1, "timeout")
    assert (second["id"], second["error"]) == (2, "overloaded")
    assert "nothing was done" in second["message"]
    rig.results(1, 1, 30)
    rig.now += 10**9
    assert rig.sent() == []
    assert not rig.core.under_way


def test_the_time_of_each_submit_is_charged_to_its_client() -> None:
    rig = Rig()
    charged: list[tuple[bytes, int]] = []
    rig.core.submissions.work.charged = lambda owner, ns: charged.append((owner, ns))
    submit_calls(rig, 1, 2, client=b"a")
    submit_calls(rig, 1, 3, client=b"b")
    (request,) = rig.sent()
    rig.core.on_results(
        Results(
            rig.term,
            rig.lives["transactor"],
            1,
            2,
            [[ME, request.request, 1, 2, 0]],
        )
    )
    assert charged == []
    rig.core.on_results(
        Results(
            rig.term,
            rig.lives["transactor"],
            3,
            3,
            [[ME, request.request, 3, 3, 0]],
            work=[20, 30],
        )
    )
    assert charged == [(b"a", 20), (b"b", 30)]
    assert len(rig.answers()) == 2
