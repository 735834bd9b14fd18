"""Two of one service: the second is refused, or the older steps down. Never two histories."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from msgpack import packb, unpackb

from tallybus import (
    Client,
    LostTransaction,
    OutcomeUnknown,
    TallybusError,
    WaitLevel,
    deposits,
)
from tallybus.common.bus.messages import Assigned, Request, Results, StageStatus
from tallybus.common.errors import EXIT_BUSY
from tallybus.common.settings.sections import SOCKETS, Settings, run_folder
from tallybus.common.stages import STAGES, START_ORDER
from tallybus.services.gateway.clients.protocol import Limits
from tallybus.services.gateway.core import GatewayCore
from tests.processes.acknowledged import (
    ACCOUNTS,
    Acknowledged,
    Load,
    assert_all_on_disk,
    random_batch,
    terms_of,
)
from tests.processes.pipeline import (
    PATIENCE_S,
    assert_balances,
    eventually,
    make_settings,
    quiet_endpoint,
)
from tests.processes.services import Service, Services, Up, left_over, meeting


def make(tmp_path: Path, **overrides: object) -> Settings:
    return make_settings(
        tmp_path / "data",
        ledger__max_accounts=1_000,
        ledger__transactions_per_segment=2_000,
        **overrides,
    )


def beside(settings: Settings, tmp_path: Path, *shared: str) -> Settings:
    """Settings on the same data folder with a run folder and a gateway of their own, which reach
    the stages in `shared` where `settings` has them."""
    other = tmp_path / "other"
    other.mkdir(mode=0o700, exist_ok=True)
    return make(tmp_path, bus__run_folder=other, **meeting(settings, *shared))


def assert_refused(service: Service, lock: Path, holder: Service) -> None:
    assert service.wait() == EXIT_BUSY, service.text
    line = service.lines[-1]
    assert line["level"] == "error"
    assert str(lock) in line["message"]
    assert f"held by process {holder.pid};" in line["message"]


def assert_fenced(service: Service, by: str, newer: Service) -> None:
    """It has stopped by itself, because there is a newer one, which goes on."""
    eventually(
        lambda: not (service.running and newer.running),
        f"{service.path.name} makes room for {newer.path.name}",
    )
    assert newer.running, f"the newer one ended:\n{newer.text}"
    code = service.wait()
    assert code not in (0, -signal.SIGKILL), service.text
    line = service.lines[-1]
    assert (line["level"], line["error"]) == ("error", "Fenced"), service.text
    assert f"was replaced by {by}" in line["message"]


def assert_one_history(
    settings: Settings, *loads: Load, allowed: tuple[type[TallybusError], ...] = ()
) -> None:
    """Every answer agrees with the log, the log with the oracle, the balances with the log."""
    log = assert_all_on_disk(settings, *loads)
    with Client(settings.gateway.endpoint, timeout=PATIENCE_S) as client:
        assert_balances(client, log.oracle, ACCOUNTS, len(log.records))
    for load in loads:
        assert all(isinstance(error, allowed) for error in load.errors), load.errors


def test_a_second_of_each_service_on_one_run_folder_is_refused_by_its_lock(tmp_path: Path) -> None:
    settings = make(tmp_path)
    elsewhere = beside(settings, tmp_path)
    with Services(tmp_path) as services, Load(settings.gateway.endpoint, seed=1) as load:
        services.start_all(settings)
        load.goes_on()
        seconds = {
            stage: services.start(stage, settings, f"second-{stage}") for stage in START_ORDER
        }
        # On the same data folder, but with a run folder where nobody holds a lock.
        foreign = services.start("wal", elsewhere, "foreign-wal")
        for stage, second in seconds.items():
            lock = run_folder(settings) / f"{stage}.lock"
            assert_refused(second, lock, services[stage])
        assert_refused(foreign, settings.ledger.data / "wal.lock", services["wal"])
        # One that stands still is no invitation: it may come back.
        services["transactor"].freeze()
        second = services.start("transactor", settings, "late-transactor")
        assert_refused(second, run_folder(settings) / "transactor.lock", services["transactor"])
        services["transactor"].thaw()
        load.goes_on()
        load.finish()
        assert all(services[stage].running for stage in START_ORDER)
        assert_one_history(settings, load)


def test_a_second_up_on_one_run_folder_is_refused_before_it_starts_anything(
    tmp_path: Path,
) -> None:
    settings = make(tmp_path)
    with Up(settings, tmp_path) as up, Load(settings.gateway.endpoint, seed=10) as load:
        up.wait_up()
        load.goes_on()
        before = up.services()
        with Up(settings, tmp_path) as second:
            assert_refused(second, run_folder(settings) / "supervisor.lock", up)
            assert len(second.lines) == 1, "none of its services has said anything"
        # Not even where a service is away and its lock is free.
        os.kill(before["transactor"], signal.SIGKILL)
        with Up(settings, tmp_path) as third:
            assert_refused(third, run_folder(settings) / "supervisor.lock", up)
        load.goes_on()
        load.finish()
        after = up.services()
        assert {name for name in before if before[name] != after[name]} == {"transactor"}
        assert_one_history(settings, load)


def test_a_second_up_on_one_data_folder_gives_up_and_the_first_goes_on(tmp_path: Path) -> None:
    settings = make(tmp_path)
    elsewhere = beside(settings, tmp_path)
    with Up(settings, tmp_path) as up, Load(settings.gateway.endpoint, seed=11) as load:
        up.wait_up()
        load.goes_on()
        before = up.services()
        with Up(elsewhere, tmp_path) as second:
            assert second.wait() == EXIT_BUSY
            assert str(settings.ledger.data / "supervisor.lock") in second.text
            assert left_over(elsewhere) == []
        load.goes_on()
        load.finish()
        assert up.services() == before
        assert not any(line.get("error") == "Fenced" for line in up.lines)
        assert_one_history(settings, load)


def test_a_second_up_cannot_take_the_sockets_of_the_first(tmp_path: Path) -> None:
    """Another ledger whose settings name the same sockets: its own run folder says nothing."""
    settings = make(tmp_path)
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    foreign = make_settings(other / "data", **meeting(settings, *STAGES))
    with Up(settings, tmp_path) as up, Load(settings.gateway.endpoint, seed=12) as load:
        up.wait_up()
        load.goes_on()
        before = up.services()
        with Up(foreign, other) as second:
            assert second.wait() == EXIT_BUSY
            assert "listens there" in second.text
        load.goes_on()
        load.finish()
        assert up.services() == before
        assert_one_history(settings, load)


def test_a_second_snapshotter_on_one_data_folder_is_refused(tmp_path: Path) -> None:
    """Both would write the same snapshots, and remove each other's."""
    settings = make(tmp_path)
    elsewhere = beside(settings, tmp_path, "wal")
    with Services(tmp_path) as services, Load(settings.gateway.endpoint, seed=13) as load:
        services.start_all(settings)
        load.goes_on()
        second = services.start("snapshotter", elsewhere, "second-snapshotter")
        lock = settings.ledger.data / "snapshotter.lock"
        assert_refused(second, lock, services["snapshotter"])
        # Its place is free at once when the first one dies, however that was.
        services["snapshotter"].kill()
        services.start("snapshotter", settings)
        load.goes_on()
        load.finish()
        assert_one_history(settings, load)


def test_the_newer_of_two_sequencers_wins(tmp_path: Path) -> None:
    """Over tcp there is no lock that could help."""
    endpoints = {
        f"bus__{stage}_{socket}": quiet_endpoint() for stage in STAGES for socket in SOCKETS
    }
    settings = make(tmp_path, bus__transport="tcp", **endpoints)
    for socket in SOCKETS:
        endpoints[f"bus__sequencer_{socket}"] = quiet_endpoint()
    elsewhere = make(tmp_path, bus__transport="tcp", **endpoints)
    with Services(tmp_path) as services, Load(settings.gateway.endpoint, seed=2) as load:
        services.start_all(settings)
        load.goes_on()
        newer = services.start("sequencer", elsewhere, "newer-sequencer")
        assert_fenced(services["sequencer"], "a sequencer of term 2", newer)
        # Where the gateway looks for one there is none now, until the newest wins in turn.
        newest = services.start("sequencer", settings)
        assert_fenced(newer, "a sequencer of term 3", newest)
        load.goes_on(10)
        load.finish()
        assert_one_history(settings, load)
        assert terms_of(settings) == [1, 3]
        assert services["sequencer"].running


def test_the_newer_of_two_transactors_wins(tmp_path: Path) -> None:
    settings = make(tmp_path)
    elsewhere = beside(settings, tmp_path, "wal")
    with Services(tmp_path) as services, Load(settings.gateway.endpoint, seed=3) as load:
        services.start_all(settings)
        load.goes_on()
        newer = services.start("transactor", elsewhere, "newer-transactor")
        assert_fenced(services["transactor"], "transactor ", newer)
        newest = services.start("transactor", settings)
        assert_fenced(newer, "transactor ", newest)
        load.goes_on(10)
        load.finish()
        assert_one_history(settings, load)
        assert terms_of(settings) == [1]


class Waiting:
    """Many batches at once, sent while nothing answers. A context, so that it is always closed."""

    def __init__(self, endpoint: str, count: int, seed: int) -> None:
        random_ = np.random.default_rng(seed)
        self.client = Client(endpoint, timeout=PATIENCE_S)
        self.batches = [random_batch(random_, 7) for _ in range(count)]
        self.pending = [
            self.client.begin_batch(batch, WaitLevel.COMMITTED) for batch in self.batches
        ]

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close(wait=False)

    def take(self, load: Load) -> None:
        """Wait for the answers, and have them checked with those of `load`."""
        for batch, pending in zip(self.batches, self.pending, strict=True):
            try:
                load.acknowledged.append(Acknowledged(batch, pending.result()))
            except TallybusError as error:
                load.errors.append(error)


def test_a_sequencer_that_comes_back_after_it_was_replaced_steps_down(tmp_path: Path) -> None:
    settings = make(tmp_path)
    elsewhere = beside(settings, tmp_path, "transactor", "wal", "snapshotter")
    with (
        Services(tmp_path) as services,
        Load(settings.gateway.endpoint, seed=4) as old,
        Load(elsewhere.gateway.endpoint, seed=5) as new,
        ExitStack() as stack,
    ):
        services.start_all(settings)
        old.goes_on()
        zombie = services["sequencer"]
        zombie.freeze()
        waiting = stack.enter_context(Waiting(settings.gateway.endpoint, 100, seed=6))
        services.start("sequencer", elsewhere, "newer-sequencer")
        services.start("gateway", elsewhere, "newer-gateway")
        new.goes_on(10)
        new.finish()
        zombie.thaw()
        newer = services["newer-sequencer"]
        assert_fenced(zombie, "a sequencer of term 2", newer)
        newest = services.start("sequencer", settings)
        assert_fenced(newer, "a sequencer of term 3", newest)
        waiting.take(old)
        old.goes_on()
        old.finish()
        assert_one_history(settings, old, new)
        assert terms_of(settings) == [1, 2, 3]


def test_a_transactor_that_comes_back_after_it_was_replaced_steps_down(tmp_path: Path) -> None:
    """Its replacement has a sequencer and a gateway of its own: there are two ways to the log."""
    settings = make(tmp_path)
    elsewhere = beside(settings, tmp_path, "wal", "snapshotter")
    with (
        Services(tmp_path) as services,
        Load(settings.gateway.endpoint, seed=7) as old,
        Load(elsewhere.gateway.endpoint, seed=8) as new,
        ExitStack() as stack,
    ):
        services.start_all(settings)
        old.goes_on()
        zombie = services["transactor"]
        zombie.freeze()
        waiting = stack.enter_context(Waiting(settings.gateway.endpoint, 100, seed=9))
        for stage in ("transactor", "sequencer", "gateway"):
            services.start(stage, elsewhere, f"newer-{stage}")
        new.goes_on(200)
        new.finish()
        zombie.thaw()
        newer = services["newer-transactor"]
        assert_fenced(zombie, "", newer)
        newest = services.start("transactor", settings)
        assert_fenced(newer, "transactor ", newest)
        # Its sequencer is of a lower term than the log's.
        assert_fenced(services["sequencer"], "a sequencer of term 2", newest)
        services.start("sequencer", settings)
        waiting.take(old)
        old.goes_on()
        old.finish()
        # Of these clients' way, the sequencer and the transactor were lost at the same time.
        assert_one_history(settings, old, new, allowed=(LostTransaction, OutcomeUnknown))
        assert terms_of(settings) == [1, 2, 3]


def test_a_gateway_that_missed_a_term_takes_nothing_of_the_one_before_for_committed() -> None:
    """What the transactor that came back had executed, and told, is not what the log has there."""
    core = GatewayCore(7, 1_000, 100_000_000, Limits(100, 100, 1_000), 60_000)

    def hear(stage: str, term: int, incarnation: int, index: int, **fields: int) -> None:
        core.on_status(
            StageStatus(
                stage=stage,
                term=term,
                incarnation=incarnation,
                index=index,
                next=index + 1,
                durable=fields.get("durable", 0),
                start=fields.get("start", 0),
                peer=fields.get("peer", 0),
            ),
            0,
        )

    hear("sequencer", 1, 11, 0, start=1)
    hear("wal", 1, 13, 0, peer=12)
    hear("transactor", 1, 12, 0, start=1)
    hear("snapshotter", 1, 14, 0)
    records = deposits([1, 2], [10, 20])
    header = {"v": 1, "op": "submit", "id": 5, "wait": int(WaitLevel.COMMITTED), "count": 2}
    core.on_client(b"client", [packb(header), records.tobytes()], 0)
    core.tick(0)
    request = core.next_data()
    assert isinstance(request, Request)
    core.data_sent(0)
    core.on_assigned(Assigned(1, [[7, request.request, 1, 2]]))
    core.on_results(
        Results(term=1, incarnation=12, first=1, count=2, batches=[[7, request.request, 1, 2, 0]])
    )
    assert not core.desk.answers, "computed, not committed"
    # Term 2 gave the ids 1 to 9 to clients of another gateway; this one hears of term 3 only.
    hear("sequencer", 3, 31, 9, start=10)
    hear("wal", 3, 13, 9, durable=9, peer=32)
    hear("transactor", 3, 32, 9, durable=9, start=10)
    hear("wal", 3, 13, 9, durable=9, peer=32)
    core.tick(0)
    for _, frames in core.desk.answers:
        answer = unpackb(bytes(frames[0]))
        assert answer.get("error") == "outcome_unknown", answer
