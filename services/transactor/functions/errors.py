"""What can be wrong with a function that a customer hands in. Touches nothing.

These are answers to a caller and never the end of the service.
"""

from __future__ import annotations


class InvalidFunction(ValueError):
    """A binary that cannot be registered: not WebAssembly, not valid, or outside of what a
    function may be.

    Fields: `reason` says what is wrong; `section` is the name of the section of the module it was
    found in (None where no single one is to blame); `offset` is its place in the binary, in bytes
    from the start (None where it has none).
    """

    def __init__(self, reason: str, section: str | None = None, offset: int | None = None) -> None:
        where = "" if section is None else f"{section} section: "
        place = "" if offset is None else f" (at byte {offset})"
        super().__init__(f"{where}{reason}{place}")
        self.reason = reason
        self.section = section
        self.offset = offset
