"""`python -m tallybus.services.wal`: this service as a process, with its settings from the
environment."""

from tallybus.common.process import run_service
from tallybus.services.wal.service import WalService

if __name__ == "__main__":
    raise SystemExit(run_service(WalService))
