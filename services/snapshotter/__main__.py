"""`python -m tallybus.services.snapshotter`: this service as a process, with its settings from the
environment."""

from tallybus.common.process import run_service
from tallybus.services.snapshotter.service import SnapshotterService

if __name__ == "__main__":
    raise SystemExit(run_service(SnapshotterService))
