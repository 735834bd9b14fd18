"""Tells objects of a process that they now live in a child that was forked from it.

A fork copies the memory and one thread. So locks that other threads held stay held in the child.
The threads of libzmq are gone there, so its sockets must not be used. They must not be closed
either, because the connection is the parent's.
ADR 0019 says why.
"""

from __future__ import annotations

import os
import weakref
from typing import Any, Final, Protocol

_ABANDONED: Final[list[Any]] = []


class Inherited(Protocol):
    """What wants to know."""

    def _forked(self) -> None:
        """Called in the child, right after the fork, while it has one thread. Must not raise."""
        ...


_LIVING: Final[weakref.WeakSet[Inherited]] = weakref.WeakSet()


def watch(each: Inherited) -> None:
    """Call `each._forked` in every child that is forked from now on, as long as `each` lives."""
    _LIVING.add(each)


def abandon(each: object) -> None:
    """Keep what belongs to the parent for the life of the child, so that nothing finalizes it."""
    _ABANDONED.append(each)


def _in_child() -> None:
    for each in list(_LIVING):
        each._forked()


os.register_at_fork(after_in_child=_in_child)
