"""Where requests count until they are answered, for a client that has limits."""

from __future__ import annotations


class Usage:
    """What one client has under way, and how far ahead of its rate it is.

    `paid_ns` is when everything it has asked for so far will be paid off at its rate, `worked_ns`
    when the time that its calls took will be.
    """

    __slots__ = ("heard_ns", "in_flight", "paid_ns", "worked_ns")

    def __init__(self) -> None:
        self.in_flight = 0
        self.paid_ns = 0
        self.worked_ns = 0
        self.heard_ns = 0
