"""The functions of a ledger and all their versions, as its log registers them.

Shared by the transactor, which runs them, and the snapshotter, which tells which one a transaction
ran; both follow the same records of kind FUNCTION_REGISTERED. Names and versions in a log or a
snapshot are not trusted: what no transactor can have written is damage. No I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tallybus.common.batch import Batch, count_extras
from tallybus.common.errors import EXIT_DAMAGED, ServiceError
from tallybus.common.functions.names import NAME_RULE, is_function_name
from tallybus.common.record import MAX_U64, Kind, Status

UNREGISTERED: Final = 0
"""Instead of a CRC-32C: this version ends the function. It is also that of no bytes at all."""
MAX_VERSION: Final = 2**32 - 1

Array = npt.NDArray[Any]

# Of the column's own type: a plain number would have the whole column converted first.
_REGISTERED: Final = np.uint8(Kind.FUNCTION_REGISTERED)
_WORD_BYTES: Final = 8
_MAX_SHOWN_WORDS: Final = 32


class RegistrationError(ServiceError):
    """A registration that no transactor can have made. Fields: `transaction_id`, `reason`."""

    exit_code = EXIT_DAMAGED
    restart = False

    def __init__(self, transaction_id: int, reason: str) -> None:
        super().__init__(
            f"the registration of a function in transaction {transaction_id} cannot be: {reason}. "
            "The log is not as it was written: restore a backup"
        )
        self.transaction_id = transaction_id
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """One registration: `crc32c` of the binary, or UNREGISTERED; `version` counts from 1 per name.

    `transaction_id` is the registration's own: the function is live in all later ones. Raises
    RegistrationError for values that no registration has.
    """

    name: str
    version: int
    crc32c: int
    transaction_id: int

    def __post_init__(self) -> None:
        for reason, right in (
            (f"its name is not {NAME_RULE}", is_function_name(self.name)),
            (f"version {self.version}", 1 <= self.version <= MAX_VERSION),
            (f"checksum {self.crc32c}", 0 <= self.crc32c < 2**32),
            ("there is no such transaction", 1 <= self.transaction_id <= MAX_U64),
        ):
            if not right:
                raise RegistrationError(self.transaction_id, reason)

    @property
    def registered(self) -> bool:
        """Whether this version has a binary; otherwise it ended the function."""
        return self.crc32c != UNREGISTERED


class FunctionRegistry:
    """Every version of every function, up to the last transaction that was applied."""

    __slots__ = ("_by_name", "_history")

    def __init__(self) -> None:
        self._history: list[FunctionVersion] = []
        self._by_name: dict[str, list[FunctionVersion]] = {}

    def __len__(self) -> int:
        return len(self._history)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FunctionRegistry) and self._history == other._history

    __hash__ = None  # type: ignore[assignment]

    @property
    def last_transaction_id(self) -> int:
        """The transaction of the newest version, 0 if there is none."""
        return self._history[-1].transaction_id if self._history else 0

    def apply(self, version: FunctionVersion) -> None:
        """Adds the next version, in the order of transactions.

        Raises RegistrationError when it is not the next one of its name, does not come after the
        others, or ends a function that is not live; then nothing is changed.
        """
        if version.transaction_id <= self.last_transaction_id:
            raise RegistrationError(
                version.transaction_id, f"it comes after transaction {self.last_transaction_id}"
            )
        expected = self.next_version(version.name)
        if version.version != expected:
            raise RegistrationError(
                version.transaction_id,
                f"it makes version {version.version} of {version.name}, the next one is {expected}",
            )
        if not version.registered and self.live(version.name) is None:
            raise RegistrationError(
                version.transaction_id, f"it ends {version.name}, which is not registered"
            )
        self._history.append(version)
        self._by_name.setdefault(version.name, []).append(version)

    def live(self, name: str) -> FunctionVersion | None:
        """The version that a call of `name` runs now, or None."""
        versions = self._by_name.get(name)
        return versions[-1] if versions and versions[-1].registered else None

    def all_live(self) -> list[FunctionVersion]:
        """The live version of each function that has one, in the order of their registration."""
        live = [versions[-1] for versions in self._by_name.values() if versions[-1].registered]
        return sorted(live, key=lambda version: version.transaction_id)

    def next_version(self, name: str) -> int:
        """The version that the next registration of `name`, or its end, gets: they never fall."""
        return len(self._by_name.get(name, ())) + 1

    def versions(self) -> tuple[FunctionVersion, ...]:
        """All versions ever, in the order of their transactions."""
        return tuple(self._history)

    def resolve(
        self, registration: int, crc32c: int, transaction_id: int
    ) -> FunctionVersion | None:
        """The version that the call `transaction_id` ran, by what its record says of it.

        `registration` is the transaction that registered it, `crc32c` that of its binary. None if
        no such version was live then.
        """
        place = bisect_left(self._history, registration, key=lambda each: each.transaction_id)
        if place == len(self._history):
            return None
        found = self._history[place]
        if (found.transaction_id, found.crc32c) != (registration, crc32c) or not found.registered:
            return None
        following = self._by_name[found.name][found.version :]
        end = following[0].transaction_id if following else transaction_id
        return found if registration < transaction_id <= end else None


def name_words(name: str) -> npt.NDArray[np.int64]:
    """A name as a record of kind FUNCTION_REGISTERED has it in the params.

    int64[k], little-endian UTF-8, padded with zeros to whole words.
    """
    text = name.encode()
    return np.frombuffer(text + bytes(-len(text) % _WORD_BYTES), "<i8")


def shown_name(words: npt.NDArray[np.int64]) -> str:
    """The name that stands in these words, for people: never fails, whatever stands there."""
    return words[:_MAX_SHOWN_WORDS].tobytes().rstrip(b"\0").decode("utf-8", "replace")


def registration_of(
    record: Any, params: npt.NDArray[np.int64], transaction_id: int
) -> FunctionVersion | None:
    """The version that a record of kind FUNCTION_REGISTERED made; None if it failed.

    `record` RECORD_DTYPE, `params` int64[record amount]: its own. Raises RegistrationError.
    """
    if int(record["status"]) != Status.NONE:
        return None
    text = params.tobytes()
    try:
        name = text.rstrip(b"\0").decode("ascii")
    except UnicodeDecodeError as error:
        raise RegistrationError(transaction_id, f"its name is not {NAME_RULE}") from error
    version = FunctionVersion(name, int(record["account"]), int(record["function"]), transaction_id)
    if name_words(name).tobytes() != text:
        raise RegistrationError(transaction_id, "its name has more zeros behind it than belong")
    return version


def registrations(batch: Batch) -> list[FunctionVersion]:
    """The versions that a batch makes, in order. Most batches have none, which is cheap.

    Raises RegistrationError.
    """
    records, params = batch.records, batch.params
    rows = np.flatnonzero(records["kind"] == _REGISTERED)
    found: list[FunctionVersion] = []
    row = 0
    word = 0
    for at in rows.tolist():
        word += count_extras(records[row:at]).params
        own = params[word : word + int(records["amount"][at])]
        version = registration_of(records[at], own, batch.first_id + at)
        if version is not None:
            found.append(version)
        row = at
    return found
