"""Whether messages get from one socket of the bus to another."""

import logging

from tallybus.common.bus.sockets import Port

LOG = logging.getLogger("tallybus.test")


def passes(listening: Port, connecting: Port, kind: str) -> bool:
    """Whether a message gets through now."""
    giving, taking = (listening, connecting) if kind == "index" else (connecting, listening)
    giving.send([b"message"])
    message = taking.receive()
    return message is not None and message[-1] == b"message"
