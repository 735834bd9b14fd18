"""Endpoints as libzmq takes them."""

from __future__ import annotations

import os
from typing import cast


def as_given(endpoint: str) -> str:
    """What to hand over for an endpoint: its path has the bytes that the file system has for it,
    which need not be the UTF-8 that text becomes otherwise."""
    raw = os.fsencode(endpoint)
    try:
        if raw == endpoint.encode("utf-8"):
            return endpoint
    except UnicodeEncodeError:
        pass
    # The interface takes bytes as well, though its types do not say so.
    return cast(str, raw)
