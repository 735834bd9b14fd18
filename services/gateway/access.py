"""Who may ask for what: the roles of clients' keys, by type of request. Pure.

Without keys everyone may do everything. With them, a client whose key is unknown or revoked may do
nothing, whatever it was let in for when it connected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tallybus.common.keys import Grant, Role
from tallybus.services.gateway.protocol import (
    FORBIDDEN,
    AcceptClock,
    ClientRequest,
    Refusal,
    Register,
    Submit,
)

NEEDS: Final[Mapping[type[ClientRequest], Role]] = {
    Submit: Role.SUBMIT,
    Register: Role.ADMIN,
    AcceptClock: Role.ADMIN,
}
"""The role that a type of request needs; all others need READ."""


class Access:
    """`grants` by public key; None while there are no keys. Replaced whole when keys change."""

    def __init__(self) -> None:
        self.grants: Mapping[bytes, Grant] | None = None

    def grant(self, user: bytes) -> Grant | None:
        """What the holder of this public key was given, if anything. Nobody in particular: none."""
        return self.grants.get(user) if user and self.grants is not None else None

    def refusal(self, request: ClientRequest, user: bytes) -> Refusal | None:
        """Why this user may not ask for this; None: go ahead."""
        if self.grants is None or not user:
            return None  # no keys at all, or not over the network
        grant = self.grants.get(user)
        if grant is None:
            return Refusal(FORBIDDEN, "this key is not known here any more", {"revoked": True})
        if grant.revoked:
            return Refusal(
                FORBIDDEN,
                f"the key {grant.name} was revoked",
                {"revoked": True, "key": grant.name},
            )
        needs = NEEDS.get(type(request), Role.READ)
        if grant.role >= needs:
            return None
        held, needed = grant.role.name.lower(), needs.name.lower()
        return Refusal(
            FORBIDDEN,
            f"this request needs the role {needed}, and the key {grant.name} has {held}",
            {"role": held, "needs": needed, "key": grant.name},
        )
