"""The sockets of a stage: what it binds, what it connects to, whom it lets in, what it closes.

Every stage of the pipeline binds three: `data` for batches, `index` for broadcasts and `control`
for hellos and questions. It connects to its successor's `data` and `control`, and subscribes to the
`index` of those who acknowledge to it. What is opened to be read goes to the loop, with its handler
of the inbox; what is opened to be written goes to the outbox. The lock in the run folder is held
before anything is bound (`run_folder`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tallybus.common.bus.handshakes import BAD_HANDSHAKE, NO_ENCRYPTION
from tallybus.common.bus.sockets import Bus, BusLimits, Context
from tallybus.common.security import pairs
from tallybus.common.service.inbox import Inbox
from tallybus.common.service.loop import Loop, Output
from tallybus.common.service.outbox import Outbox
from tallybus.common.settings import sections as configuration
from tallybus.common.settings.sections import Settings

if TYPE_CHECKING:
    from tallybus.common.security.doorkeeper import Doorkeeper


class StageSockets:
    """Opens and closes the sockets of one stage; `bus` makes those that only one service has."""

    def __init__(
        self,
        settings: Settings,
        stage: str,
        context: Context,
        loop: Loop,
        inbox: Inbox,
        outbox: Outbox,
    ) -> None:
        self.bus = Bus(
            context,
            lambda stage, socket, bind: configuration.endpoint(settings, stage, socket, bind=bind),
            BusLimits(settings.bus.high_water_mark, settings.bus.max_message_bytes),
        )
        self.doorkeeper: Doorkeeper | None = None
        """Who judges keys, where something listens over tcp and there are any."""
        self._stage = stage
        self._context = context
        self._loop = loop
        self._inbox = inbox
        self._outbox = outbox

    def secure(self, settings: Settings, refused: dict[str, int], log: logging.Logger) -> None:
        """With keys: read those of this service, and let in nobody else from the first socket on.
        Those who are not let in are counted in `refused`.

        Raises KeyFileError.
        """
        keys = pairs.load(settings, self._stage)
        self.bus.security = keys
        folder = settings.security.keys
        if keys is None or folder is None:
            return
        if (keys.clients if self._stage == "gateway" else keys.bus) is None:
            return  # nothing of it listens over tcp
        # Told from the start, as 0: rates of them are right from the first one on.
        refused.update({NO_ENCRYPTION: 0, BAD_HANDSHAKE: 0})
        # Not for those who do without.
        from tallybus.common.security.doorkeeper import Doorkeeper

        self.doorkeeper = Doorkeeper(
            self._context, keys, folder, log, refused, changed=self._loop.wake
        )
        self.doorkeeper.start()

    def open_stage(self, successor: str | None, *, hello: bool = True) -> None:
        """Bind `index`, unless `open_publisher` did, and `control`; connect to the successor.

        With `hello`, also to its `control`, to say hello there.
        """
        if self._outbox.publisher is None:
            self.open_publisher()
        router = self._outbox.control = self.bus.router(self._stage)
        self._loop.read(router, self._inbox.control)
        if successor is not None:
            self.open_successor(successor)
            if hello:
                self.open_questions(successor)

    def open_publisher(self) -> None:
        """Bind `index` alone, for a stage that recovers before it opens the others."""
        self._outbox.publisher = self.bus.publisher(self._stage)

    def open_successor(self, stage: str) -> None:
        """Connect to the `data` of the stage that gets the batches."""
        output = self._outbox.successor = Output(self.bus.push(stage))
        self._loop.write(output)

    def open_questions(self, stage: str) -> None:
        """Connect to the `control` of the stage that is asked what the core requests."""
        dealer = self._outbox.questions = self.bus.dealer(stage)
        self._loop.read(dealer, self._inbox.reply)

    def subscribe(self, stages: Sequence[str], topics: Sequence[bytes], most: int = 256) -> None:
        """Connect to the `index` of these stages; read at most so many broadcasts in a turn."""
        self._loop.read(self.bus.subscriber(stages, topics), self._inbox.broadcast, most=most)

    def open_data(self, wanted: Callable[[], bool] = lambda: True, most: int = 64) -> None:
        """Bind `data`; read it whenever it is wanted, at most so many batches in a turn."""
        self._loop.read(self.bus.pull(self._stage), self._inbox.data, wanted, most)

    def close(self) -> None:
        """Close all of them; others may listen where this stage did. May be called again."""
        self.bus.close()
        if self.doorkeeper is not None:
            # After the sockets: one that listens and asks nobody looks like another's to clients.
            self.doorkeeper.close()
            self.doorkeeper = None
        self.bus.release_files()
