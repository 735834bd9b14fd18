"""As much of Prometheus's language as the files in deploy/ speak, on the latest value of a series.

What matters here is which series a result has, and that two that cannot be told apart are an error
as they are there. Time does not pass: a rate is a share of the value, a change is one.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

Labels = frozenset[tuple[str, str]]
NAME: Final = "__name__"


class PromqlError(Exception):
    """The expression cannot be evaluated, or not be read by this module."""


@dataclass(frozen=True)
class Series:
    """A series with its latest value. Its name is a label."""

    labels: Labels
    value: float


Vector = list[Series]
Value = Vector | float

_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<number>\d+(?:\.\d+)?(?![\w]))
    | (?P<name>[a-zA-Z_:][\w:]*)
    | (?P<text>"(?:[^"\\]|\\.)*")
    | (?P<range>\[[^\]]*\])
    | (?P<operator>==|!=|=~|!~|>=|<=|[-+*/(){},=<>])
    )""",
    re.VERBOSE,
)
_ARITHMETIC: Final[dict[str, Callable[[float, float], float]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else float("nan"),
}
_COMPARISONS: Final[dict[str, Callable[[float, float], bool]]] = {
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
}
_AGGREGATIONS: Final[dict[str, Callable[[Iterable[float]], float]]] = {
    "sum": sum,
    "min": min,
    "max": max,
}
_SETS: Final = ("and", "or", "unless")
_LEVELS: Final = (("or",), ("and", "unless"), tuple(_COMPARISONS), ("+", "-"), ("*", "/"))


def series(name: str, value: float, **labels: str) -> Series:
    """One series. A label that is empty is none."""
    found = {NAME: name, **{label: text for label, text in labels.items() if text}}
    return Series(frozenset(found.items()), value)


def evaluate(expression: str, known: Vector) -> Value:
    """The expression's value where these series are known. Raises PromqlError."""
    parser = _Parser(expression, known)
    value = parser.binary(0)
    if parser.token is not None:
        raise PromqlError(f"{expression}: {parser.token!r} is one too many")
    if isinstance(value, list):
        _unique(value, expression)
    return value


def _unique(vector: Vector, what: str) -> Vector:
    if len({each.labels for each in vector}) != len(vector):
        raise PromqlError(f"{what}: vector cannot contain metrics with the same labelset")
    return vector


def _only(labels: Labels, kept: Iterable[str]) -> Labels:
    kept = set(kept)
    return frozenset(pair for pair in labels if pair[0] in kept)


def _without(labels: Labels, dropped: Iterable[str]) -> Labels:
    dropped = {*dropped, NAME}
    return frozenset(pair for pair in labels if pair[0] not in dropped)


class _Parser:
    def __init__(self, text: str, known: Vector) -> None:
        self._text = text
        self._known = known
        self._at = 0
        self.token: str | None = None
        self._kind = ""
        self._next()

    def _next(self) -> str:
        before = self.token or ""
        match = _TOKEN.match(self._text, self._at)
        if match is None:
            if self._text[self._at :].strip():
                raise PromqlError(f"{self._text}: cannot read {self._text[self._at :]!r}")
            self.token, self._kind = None, ""
        else:
            self._at = match.end()
            self._kind = match.lastgroup or ""
            self.token = match[self._kind]
        return before

    def _take(self, token: str) -> None:
        if self.token != token:
            raise PromqlError(f"{self._text}: {token!r} is missing before {self.token!r}")
        self._next()

    def _names(self) -> list[str]:
        self._take("(")
        names = []
        while self.token != ")":
            names.append(self._next())
            if self.token == ",":
                self._next()
        self._next()
        return names

    def binary(self, level: int) -> Value:
        if level == len(_LEVELS):
            return self._single()
        left = self.binary(level + 1)
        while self.token in _LEVELS[level]:
            sign = self._next()
            on: list[str] | None = None
            ignoring: list[str] = []
            many = False
            if self.token == "on":
                self._next()
                on = self._names()
            elif self.token == "ignoring":
                self._next()
                ignoring = self._names()
            if self.token == "group_left":
                self._next()
                many = True
                if self.token == "(":
                    self._names()
            right = self.binary(level + 1)

            def key(
                each: Series, on: list[str] | None = on, ignoring: list[str] = ignoring
            ) -> Labels:
                return _without(each.labels, ignoring) if on is None else _only(each.labels, on)

            left = self._joined(sign, left, right, key, many, on)
        return left

    def _joined(
        self,
        sign: str,
        left: Value,
        right: Value,
        key: Callable[[Series], Labels],
        many: bool,
        on: list[str] | None,
    ) -> Value:
        if not isinstance(left, list) or not isinstance(right, list):
            return self._with_number(sign, left, right)
        if sign in _SETS:
            keys = {key(each) for each in right}
            if sign == "or":
                mine = {key(each) for each in left}
                return left + [each for each in right if key(each) not in mine]
            return [each for each in left if (key(each) in keys) == (sign == "and")]
        others: dict[Labels, Series] = {}
        for each in right:
            if others.setdefault(key(each), each) is not each:
                raise PromqlError(
                    f"{self._text}: found duplicate series for the match group {set(key(each))} "
                    "on the right hand-side of the operation"
                )
        found: Vector = []
        seen: set[Labels] = set()
        for each in left:
            other = others.get(key(each))
            if other is None:
                continue
            if not many and key(each) in seen:
                raise PromqlError(
                    f"{self._text}: found duplicate series for the match group {set(key(each))} "
                    "on the left hand-side of the operation"
                )
            seen.add(key(each))
            if sign in _COMPARISONS:
                if _COMPARISONS[sign](each.value, other.value):
                    found.append(each)
                continue
            kept = _only(each.labels, on) if on is not None and not many else each.labels
            value = _ARITHMETIC[sign](each.value, other.value)
            found.append(Series(_without(kept, ()), value))
        return _unique(found, self._text)

    def _with_number(self, sign: str, left: Value, right: Value) -> Value:
        if isinstance(left, list) and not isinstance(right, list):
            if sign in _COMPARISONS:
                return [each for each in left if _COMPARISONS[sign](each.value, right)]
            made = [
                Series(_without(each.labels, ()), _ARITHMETIC[sign](each.value, right))
                for each in left
            ]
            return _unique(made, self._text)
        raise PromqlError(f"{self._text}: {sign!r} between these is not known here")

    def _single(self) -> Value:
        if self.token == "-":
            self._next()
            if self._kind != "number":
                raise PromqlError(f"{self._text}: {self.token!r} is not known here")
            return -float(self._next())
        if self._kind == "number":
            return float(self._next())
        if self.token == "(":
            self._next()
            value = self.binary(0)
            self._take(")")
            return value
        if self._kind != "name":
            raise PromqlError(f"{self._text}: {self.token!r} is not known here")
        name = self._next()
        if name in _AGGREGATIONS or name == "topk":
            return self._aggregated(name)
        if self.token == "(":
            return self._called(name)
        return self._selected(name)

    def _arguments(self) -> list[Value]:
        self._take("(")
        given: list[Value] = []
        while self.token != ")":
            given.append(self.binary(0))
            if self.token == ",":
                self._next()
        self._next()
        return given

    def _aggregated(self, name: str) -> Value:
        by: list[str] = []
        if self.token == "by":
            self._next()
            by = self._names()
        given = self._arguments()
        vector = given[-1]
        if self.token == "by":
            self._next()
            by = self._names()
        if not isinstance(vector, list):
            raise PromqlError(f"{self._text}: {name} of a number")
        groups: dict[Labels, Vector] = {}
        for each in vector:
            groups.setdefault(_only(each.labels, by), []).append(each)
        if name == "topk":
            most = given[0]
            if isinstance(most, list):
                raise PromqlError(f"{self._text}: topk needs a number")
            return [
                each
                for group in groups.values()
                for each in sorted(group, key=lambda each: -each.value)[: int(most)]
            ]
        combine = _AGGREGATIONS[name]
        return [
            Series(labels, combine(each.value for each in group))
            for labels, group in groups.items()
        ]

    def _called(self, name: str) -> Value:
        given = self._arguments()
        vector = given[-1]
        if not isinstance(vector, list):
            raise PromqlError(f"{self._text}: {name} of a number")
        if name in ("rate", "changes"):
            made = [Series(_without(each.labels, ()), each.value / 60) for each in vector]
            return _unique(made, self._text)
        if name == "histogram_quantile":
            groups: dict[Labels, float] = {}
            for each in vector:
                labels = _without(each.labels, ("le",))
                groups[labels] = max(groups.get(labels, 0.0), each.value)
            return [Series(labels, value) for labels, value in groups.items()]
        raise PromqlError(f"{self._text}: {name} is not known here")

    def _selected(self, name: str) -> Vector:
        matchers: list[tuple[str, str, str]] = []
        if self.token == "{":
            self._next()
            while self.token != "}":
                label, sign, text = self._next(), self._next(), self._next()
                matchers.append((label, sign, text[1:-1]))
                if self.token == ",":
                    self._next()
            self._next()
        if self._kind == "range":
            self._next()
        return [
            each
            for each in self._known
            if dict(each.labels)[NAME] == name
            and all(_matches(dict(each.labels).get(label, ""), *rest) for label, *rest in matchers)
        ]


def _matches(found: str, sign: str, wanted: str) -> bool:
    if sign in ("=~", "!~"):
        return (re.fullmatch(wanted, found) is not None) == (sign == "=~")
    if sign in ("=", "!="):
        return (found == wanted) == (sign == "=")
    raise PromqlError(f"{sign!r} does not match labels")
