"""`python -m tallybus.services.gateway`: this service as a process, with its settings from the
environment."""

from tallybus.common.process import run_service
from tallybus.services.gateway.service import GatewayService

if __name__ == "__main__":
    raise SystemExit(run_service(GatewayService))
