"""`python -m tests.chaos.supervise`: `tallybus up` for services that are killed every second.

Settings come from the environment. A service that ran for a moment is started again at once: the
growing pauses of the supervisor are for services that cannot run.
"""

import sys
from typing import Final

from tallybus import supervisor
from tallybus.common import logs
from tallybus.common.settings.sections import load

HEALTHY_SECONDS: Final = 0.5


def main() -> int:
    settings = load()
    logs.setup("supervisor", level=settings.logging.level, format=settings.logging.format)
    setattr(supervisor, "HEALTHY_SECONDS", HEALTHY_SECONDS)  # noqa: B010 (it is Final)
    return supervisor.Supervisor(settings).run()


if __name__ == "__main__":
    sys.exit(main())
