"""`scripts/test-compose`: the containers of compose.yaml, built, started and broken for real.

Needs nothing but Python's standard library and a Docker engine with compose; where there is none,
and this is root on a Debian-like system, it takes both from Debian's packages into a temporary
folder (`engine.py`). All names are its own, all ports are on loopback, and it leaves nothing
behind: containers, volumes, networks, images that it made, the engine that it started.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from tests.compose.engine import Unavailable, base_image, engine
from tests.compose.scenario import Scenario
from tests.compose.stack import Failed, Stack
from tests.support.bank_data import BankFile, bank_file, read_bank_file

CSV_VARIABLE = "LEDGER_TEST_CSV"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/test-compose", description=__doc__)
    parser.add_argument(
        "--csv",
        default=os.environ.get(CSV_VARIABLE),
        help=f"a bank's file with the columns of tests/support/bank_data.py; also {CSV_VARIABLE}. "
        "Without it one is made",
    )
    parser.add_argument("--folder", help="where the temporary folder is made (needs 3 GB)")
    parser.add_argument("--without-tcp", action="store_true", help="leave tcp and keys out")
    arguments = parser.parse_args()
    started = time.monotonic()
    # So that everything is cleared away then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="tc-", dir=arguments.folder))
        )
        try:
            docker = engine(folder, stack)
            base_image(docker, folder, stack)
            bank = _bank(arguments.csv, folder)
            built = docker.build(stack)
            pipeline = Stack(docker, built, ("compose.yaml", "compose.page.yaml"))
            stack.callback(pipeline.remove)
            Scenario(pipeline, bank, folder).run()
            if not arguments.without_tcp:
                over_tcp = Stack(docker, built, ("compose.yaml", "compose.tcp.yaml"))
                stack.callback(over_tcp.remove)
                Scenario(over_tcp, bank, folder).run_briefly()
                files = ("compose.yaml", "compose.tcp.yaml", "compose.keys.yaml")
                with_keys = Stack(docker, built, files)
                stack.callback(with_keys.remove)
                Scenario(with_keys, bank, folder).run_with_keys()
        except (Failed, Unavailable) as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print(f"all of it works; {time.monotonic() - started:.0f} s", flush=True)
    return 0


def _bank(csv: str | None, folder: Path) -> BankFile:
    return read_bank_file(Path(csv)) if csv else bank_file(folder)


if __name__ == "__main__":
    raise SystemExit(main())
