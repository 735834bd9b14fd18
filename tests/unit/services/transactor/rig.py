"""A transactor's core with the real engine; the sequencer and the log are played by hand."""

from tallybus.common.bus.messages import Executed, Message, Results, StageStatus, Welcome
from tallybus.services.transactor.core import TransactorCore

ME = 100


LOG = 200


SEQUENCER = 300


GATEWAY = 400


HEARTBEAT = 100_000_000


PEER = b"sequencer/1"


def log_welcome(
    *, term: int = 4, next_id: int = 1, peer: int = ME, gateways: dict[int, int] | None = None
) -> Welcome:
    return Welcome("wal", LOG, peer, term, next_id, next_id - 1, 9, gateways or {})


def log_status(
    next_id: int, durable: int, *, peer: int = ME, life: int = LOG, gap: bool = False
) -> StageStatus:
    return StageStatus("wal", 4, life, durable, next_id, durable, gap=gap, peer=peer)


def taken(core: TransactorCore, now: int = 0) -> list[Executed]:
    messages: list[Message] = []
    while (message := core.next_data()) is not None:
        messages.append(message)
        core.data_sent(now)
    assert all(isinstance(message, Executed) for message in messages)
    return messages  # type: ignore[return-value]


def results_of(core: TransactorCore) -> list[Results]:
    found = [message for _, message in core.broadcasts if isinstance(message, Results)]
    core.broadcasts.clear()
    return found
