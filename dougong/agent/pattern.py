"""Regular expressions of schemas, matched in time linear in the text.

Python's own matcher may take longer than anyone lives for a stranger's pattern, and lets no other thread work
meanwhile. So a pattern is read by Python's parser and run as a set of states (Thompson 1968), as JSON Schema means it:
found anywhere unless anchored, \\d and \\w of ASCII alone, $ at the very end.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from re import _constants as ops  # pyright: ignore[reportAttributeAccessIssue]
from re import _parser as parser  # pyright: ignore[reportAttributeAccessIssue]
from typing import Any, final

STATES = 2_000
"""of one pattern: counts such as {1000} are written out"""
WORK = 500_000
"""states times characters"""

_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    ops.CATEGORY_DIGIT: lambda char: char in "0123456789",
    ops.CATEGORY_NOT_DIGIT: lambda char: char not in "0123456789",
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    ops.CATEGORY_WORD: lambda char: _wordly(char),
    ops.CATEGORY_NOT_WORD: lambda char: not _wordly(char),
}
_PLACES: dict[Any, Callable[[str, int], bool]] = {
    ops.AT_BEGINNING: lambda text, at: at == 0,
    ops.AT_BEGINNING_STRING: lambda text, at: at == 0,
    ops.AT_END: lambda text, at: at == len(text),
    ops.AT_END_STRING: lambda text, at: at == len(text),
    ops.AT_BOUNDARY: lambda text, at: _wordly(text[at - 1 : at] if at else "") != _wordly(text[at : at + 1]),
    ops.AT_NON_BOUNDARY: lambda text, at: _wordly(text[at - 1 : at] if at else "") == _wordly(text[at : at + 1]),
}


class Unread(Exception):
    """A pattern that this matcher does not know: a look around, a reference back, another dialect, too long."""


def found(pattern: str, text: str) -> bool | None:
    """Whether a pattern is found in a text; None where that cannot be said (see Unread), or not in reasonable time."""
    try:
        machine = _machine(pattern)
    except Unread:
        return None
    return None if len(machine.steps) * len(text) > WORK else machine.found(text)


@final
@dataclass
class _Machine:
    """States by number. A step is a character's test, a place's test, or (None, ...) a choice, and where it leads; the
    last state has no step."""

    steps: list[tuple[Callable[[str], bool] | None, Callable[[str, int], bool] | None, tuple[int, ...]]] = field(
        default_factory=list
    )

    def add(self, char: Callable[[str], bool] | None, place: Callable[[str, int], bool] | None, *to: int) -> int:
        if len(self.steps) >= STATES:
            raise Unread
        self.steps.append((char, place, to))
        return len(self.steps) - 1

    def found(self, text: str) -> bool:
        now: set[int] = set()
        for at in range(len(text) + 1):
            reached = self._reached({*now, len(self.steps) - 1}, text, at)
            if 0 in reached:
                return True
            if at < len(text):
                now = {self.steps[each][2][0] for each in reached if self._takes(each, text[at])}
        return False

    def _takes(self, state: int, char: str) -> bool:
        test = self.steps[state][0]
        return test is not None and test(char)

    def _reached(self, states: set[int], text: str, at: int) -> set[int]:
        """All states that are reached without a character."""
        seen, left = set(states), list(states)
        while left:
            char, place, to = self.steps[left.pop()]
            if char is None and (place is None or place(text, at)):
                new = [each for each in to if each not in seen]
                seen.update(new)
                left += new
        return seen


@lru_cache(256)
def _machine(pattern: str) -> _Machine:
    """Raises Unread."""
    try:
        tree = parser.parse(pattern, re.ASCII)
        if tree.state.flags & (re.IGNORECASE | re.MULTILINE | re.DOTALL | re.VERBOSE | re.LOCALE):
            raise Unread  # set in the pattern itself
        machine = _Machine()
        end = machine.add(None, None)  # state 0 is the end, the last one made the beginning
        machine.add(None, None, _sequence(machine, tree, end))
    except (re.error, OverflowError, RecursionError, ValueError, Warning):
        raise Unread from None
    return machine


def _sequence(machine: _Machine, items: Any, to: int) -> int:
    """States for parsed items (operator, value), one after the other, that lead to `to`; their first."""
    for op, value in reversed(list(items)):
        to = _item(machine, op, value, to)
    return to


def _item(machine: _Machine, op: Any, value: Any, to: int) -> int:
    if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
        least, most, inner = value
        return _repeat(machine, least, most, inner, to)
    if op is ops.SUBPATTERN:
        _, added, removed, inner = value
        if added or removed:
            raise Unread
        return _sequence(machine, inner, to)
    if op is ops.BRANCH:
        return machine.add(None, None, *[_sequence(machine, each, to) for each in value[1]])
    if op is ops.AT:
        return machine.add(None, _PLACES[value], to)
    return machine.add(_test(op, value), None, to)


def _repeat(machine: _Machine, least: int, most: int, inner: Any, to: int) -> int:
    if most == ops.MAXREPEAT:
        loop = machine.add(None, None)  # leads to itself: filled in below
        machine.steps[loop] = (None, None, (_sequence(machine, inner, loop), to))
        to = loop
    else:
        end = to
        for _ in range(most - least):
            to = machine.add(None, None, _sequence(machine, inner, to), end)
    for _ in range(least):
        to = _sequence(machine, inner, to)
    return to


def _test(op: Any, value: Any) -> Callable[[str], bool]:
    """What one character has to be."""
    if op is ops.LITERAL:
        return lambda char: ord(char) == value
    if op is ops.NOT_LITERAL:
        return lambda char: ord(char) != value
    if op is ops.ANY:
        return lambda char: char not in "\n\r\u2028\u2029"
    if op is not ops.IN:
        raise Unread
    tests = list(_tests(value))
    wanted = not (value and value[0][0] is ops.NEGATE)
    return lambda char: any(test(char) for test in tests) is wanted


def _tests(items: Any) -> Iterator[Callable[[str], bool]]:
    for op, value in items:
        if op is ops.RANGE:
            low, high = value
            yield lambda char, low=low, high=high: low <= ord(char) <= high
        elif op is ops.CATEGORY:
            yield _CATEGORIES[value]
        elif op is not ops.NEGATE:
            yield _test(op, value)


def _wordly(char: str) -> bool:
    return char.isascii() and (char.isalnum() or char == "_") if char else False
