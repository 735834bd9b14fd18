"""`python -m tallybus` is the command `tallybus`, and this is where both begin."""

from __future__ import annotations

import sys

from tallybus.common.service import startup


def main() -> None:
    """Run the command line, and end with its exit code."""
    startup.prepare()
    if sys.argv[1:2] == ["serve"]:
        startup.hold_hangup()
    # After that: what they import must be the installed one.
    from tallybus.cli import main as command
    from tallybus.cli import streams

    code: str | int | None = 0
    try:
        command(prog_name="tallybus")
    except SystemExit as end:
        code = end.code
    except OSError as error:
        if not streams.is_lost():
            raise
        code = streams.tell_lost(error)
    sys.exit(streams.settled(code))


if __name__ == "__main__":
    main()
