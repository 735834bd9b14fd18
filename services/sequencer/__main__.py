"""`python -m tallybus.services.sequencer`: this service as a process, with its settings from the
environment."""

from tallybus.common.process import run_service
from tallybus.services.sequencer.service import SequencerService

if __name__ == "__main__":
    raise SystemExit(run_service(SequencerService))
