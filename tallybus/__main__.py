"""`python -m tallybus` is the command `tallybus`."""

from __future__ import annotations

from tallybus.cli import main

if __name__ == "__main__":
    main(prog_name="tallybus")
