"""What must hold of the ledger's time, whatever the wall clocks do."""

from __future__ import annotations

from tallybus.common.bus.messages import Welcome
from tallybus.services.sequencer.clock import LIMIT_NS, SLEW
from tallybus.services.sequencer.core import SequencerCore
from tests.simulation.world import SECOND, check


class Times:
    """Follows the time of each sequencer, by its incarnation, and the stamps in the log."""

    def __init__(self) -> None:
        self.logged = 0
        self._begun: dict[int, tuple[int, int]] = {}
        """The ledger's time and the true time, when a sequencer began or an operator accepted."""
        self._last: dict[int, tuple[int, int]] = {}

    def began(self, core: SequencerCore, welcome: Welcome, now: int) -> None:
        """A sequencer was granted a term."""
        time = core.clock.time_ns
        check(time >= welcome.stamp, f"it begins at {time}, the last stamp is {welcome.stamp}")
        if welcome.elapsed:
            # Somebody has lived on: a jump since is no downtime.
            most = welcome.stamp + welcome.elapsed + LIMIT_NS
            check(time <= most, f"it begins at {time}, {time - most} ns too late")
        self._begun[core.incarnation] = self._last[core.incarnation] = (time, now)

    def accepted(self, core: SequencerCore, now: int) -> None:
        self._begun[core.incarnation] = self._last[core.incarnation] = (core.clock.time_ns, now)

    def shown(self, core: SequencerCore, now: int) -> None:
        """The ledger's time, `now`."""
        begun = self._begun.get(core.incarnation)
        if begun is None:
            return
        time = core.clock.time_ns
        before, since = self._last[core.incarnation]
        passed = now - since
        check(time >= before + passed - passed // SLEW - 1, f"stands still: {before}, {time}")
        most = begun[0] + (now - begun[1]) * (SLEW + 1) // SLEW + 2 * LIMIT_NS + 2 * SECOND
        check(time <= most, f"{time} is {time - most} ns ahead of what may be followed")
        self._last[core.incarnation] = (time, now)

    def in_log(self, stamp: int) -> None:
        """The next block's stamp."""
        check(stamp >= self.logged, f"stamp {stamp} behind {self.logged} in the log")
        self.logged = stamp
