"""What a client's key allows: the role for each type of request, and what may be submitted. Pure.

Without keys every client may do everything. With keys, a client whose key is unknown or revoked may
do nothing, even if its key was good when it connected. ADR 0023 says why grants are for functions,
and not for accounts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from tallybus.common.buffers import size
from tallybus.common.bus.frames import shown
from tallybus.common.functions.names import is_function_name, name_matcher
from tallybus.common.protocol import ErrorCode
from tallybus.common.record import RECORD_DTYPE, Kind
from tallybus.common.security.keys import Grant, Role
from tallybus.services.gateway.clients.protocol import (
    AcceptClock,
    ClientRequest,
    Refusal,
    Register,
    Submit,
)

_FUNCTION: Final = np.uint8(Kind.FUNCTION)
"""Of the column's own type: a plain number would have the whole column converted first."""

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
            return Refusal(
                ErrorCode.FORBIDDEN, "this key is not known here any more", {"revoked": True}
            )
        if grant.revoked:
            return Refusal(
                ErrorCode.FORBIDDEN,
                f"the key {grant.name} was revoked",
                {"revoked": True, "key": grant.name},
            )
        needs = NEEDS.get(type(request), Role.READ)
        if grant.role >= needs:
            # A registration is a submit, too, and calls nothing.
            return _refused_submit(request, grant) if type(request) is Submit else None
        held, needed = grant.role.name.lower(), needs.name.lower()
        return Refusal(
            ErrorCode.FORBIDDEN,
            f"this request needs the role {needed}, and the key {grant.name} has {held}",
            {"role": held, "needs": needed, "key": grant.name},
        )


def _refused_submit(submit: Submit, grant: Grant) -> Refusal | None:
    """Why the holder of this grant may not submit all of this: then nothing of it is done."""
    if grant.functions is not None:
        granted = name_matcher(grant.functions)
        for name in submit.names:
            if not granted(name):
                told = name if is_function_name(name) else shown(name)
                return Refusal(
                    ErrorCode.FORBIDDEN,
                    f"the key {grant.name} may not call the function {told}",
                    {"function": told, "key": grant.name},
                )
        if not grant.functions and size(submit.params):
            return Refusal(
                ErrorCode.FORBIDDEN,
                f"the key {grant.name} may call no function",
                {"function": None, "key": grant.name},
            )
    if not grant.builtins:
        kinds = np.frombuffer(submit.records, RECORD_DTYPE, submit.count)["kind"]
        others = kinds != _FUNCTION
        if others.any():
            index = int(others.argmax())
            kind = int(kinds[index])
            what = Kind(kind).name if kind in set(Kind) else f"of the kind {kind}"
            return Refusal(
                ErrorCode.FORBIDDEN,
                f"the key {grant.name} may only call functions, and operation {index} of the "
                f"request is {what}",
                {"kind": kind, "index": index, "key": grant.name},
            )
    return None
