"""`python -m tallybus.services.transactor`: this service as a process, with its settings from the
environment."""

from tallybus.common.process import run_service
from tallybus.services.transactor.service import TransactorService

if __name__ == "__main__":
    raise SystemExit(run_service(TransactorService))
