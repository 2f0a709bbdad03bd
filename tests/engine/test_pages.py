"""Whatever comes and goes, every page has the owners that name it, and none is lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dougong.engine.pages import HOLE, OutOfPages, Pages, Table, chain

pytestmark = pytest.mark.usefixtures("unchecked")

SLACK = 3


class Allocation(RuleBasedStateMachine):
    """Texts arrive (some beginning alike), grow, fork, are cut and leave, in any order, as the runner does it. Beside
    the tables stands a plain model of memory: what each page holds, and what each text must read there."""

    @initialize(total=st.integers(2, 12), size=st.sampled_from([1, 2, 4]), window=st.sampled_from([None, 1, 3, 9]))
    def begin(self, total: int, size: int, window: int | None) -> None:
        self.pages = Pages(total, size)
        self.size, self.window = size, window
        self.memory: dict[int, list[int | None]] = {}
        self.texts: list[tuple[Table, list[int]]] = []

    def _copy(self, copies: list[tuple[int, int]]) -> None:
        for old, new in copies:
            self.memory[new] = list(self.memory[old])

    def _publish(self, table: Table, text: list[int]) -> None:
        key = b""
        for place in range(len(text) // self.size):
            key = chain(key, text[place * self.size : (place + 1) * self.size])
            if table.entries[place] != HOLE:
                self.pages.publish(table.entries[place], key)

    def _write(self, table: Table, text: list[int], new: list[int]) -> None:
        before = list(table.entries), self.pages.free
        try:
            copies = table.cover(len(text), len(text) + len(new))
        except OutOfPages:
            assert (table.entries, self.pages.free) == before
            assert table.missing(len(text), len(text) + len(new)) > self.pages.free
            return
        self._copy(copies)
        for token in new:
            page = table.entries[len(text) // self.size]
            assert self.pages.private(page)
            self.memory.setdefault(page, [None] * self.size)[len(text) % self.size] = token
            text.append(token)
        self._publish(table, text)
        table.expire(len(text))

    @rule(new=st.lists(st.integers(0, 1), max_size=9))
    def arrive(self, new: list[int]) -> None:
        table, text = Table(self.pages, self.window, SLACK), []
        if self.window is None:
            key, found = b"", []
            for end in range(self.size, len(new) + 1, self.size):
                key = chain(key, new[end - self.size : end])
                if (page := self.pages.find(key)) is None:
                    break
                found.append(page)
            table.adopt(found)
            text = new[: len(found) * self.size]
            if text and len(text) == len(new):
                text.pop()  # a text that is known whole writes its last token anew
        self.texts.append((table, text))
        self._write(table, text, new[len(text) :])

    @rule(which=st.integers(0, 99), new=st.lists(st.integers(0, 1), min_size=1, max_size=5))
    def grow(self, which: int, new: list[int]) -> None:
        if self.texts:
            self._write(*self.texts[which % len(self.texts)], new)

    @rule(which=st.integers(0, 99))
    def fork(self, which: int) -> None:
        if self.texts:
            table, text = self.texts[which % len(self.texts)]
            free = self.pages.free
            self.texts.append((table.fork(), list(text)))
            assert self.pages.free == free

    @rule(which=st.integers(0, 99), length=st.integers(0, 30))
    def cut(self, which: int, length: int) -> None:
        if self.texts:
            table, text = self.texts[which % len(self.texts)]
            length = min(length, len(text))
            if table.can_truncate(length):
                table.truncate(length)
                del text[length:]
            else:
                assert self.window is not None and len(text) - length > SLACK

    @rule(which=st.integers(0, 99))
    def leave(self, which: int) -> None:
        if self.texts:
            self.texts.pop(which % len(self.texts))[0].close()

    @rule()
    def forget(self) -> None:
        self.pages.forget_all()
        assert self.pages.idle == 0

    @invariant()
    def owners_are_those_who_name_a_page(self) -> None:
        if not hasattr(self, "pages"):
            return
        named = Counter(page for table, _ in self.texts for page in table.entries if page != HOLE)
        for page in range(1, len(self.pages._owners)):
            assert self.pages.owners(page) == named[page]
        free, idle = self.pages._free, self.pages._idle
        assert len(set(free)) == len(free) and not set(free) & set(idle) and not set(named) & (set(free) | set(idle))
        assert len(named) + self.pages.free == self.pages.total
        assert set(self.pages._found.values()) == set(self.pages._keys)

    @invariant()
    def every_text_reads_itself(self) -> None:
        for table, text in getattr(self, "texts", []):
            first = 0 if self.window is None else max(0, len(text) - self.window)
            for place in range(first, len(text)):
                assert self.memory[table.entries[place // self.size]][place % self.size] == text[place]

    def teardown(self) -> None:
        if hasattr(self, "pages"):
            for table, _ in self.texts:
                table.close()
            assert self.pages.free == self.pages.total


Allocation.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
test_allocation = Allocation.TestCase


@given(st.lists(st.integers(0, 2), min_size=4, max_size=12), st.lists(st.integers(0, 2), min_size=4, max_size=12))
def test_keys_are_equal_where_the_whole_text_before_is(a: list[int], b: list[int]) -> None:
    def key(text: list[int]) -> bytes:
        return chain(chain(b"", text[:2]), text[2:])

    assert (key(a) == key(b)) == (a == b)
    assert chain(b"root", a) != chain(b"", a)


def test_the_longest_unused_goes_first() -> None:
    pages = Pages(3, 1)
    made = [pages.take() for _ in range(3)]
    for number, page in enumerate(made):
        pages.publish(page, bytes([number]))
    for page in (made[1], made[0], made[2]):
        pages.drop(page)
    assert pages.free == 3 and pages.idle == 3
    pages.hold(made[1])
    pages.drop(made[1])  # used again: now the newest
    assert pages.take() == made[0]
    assert pages.find(bytes([0])) is None and pages.find(bytes([1])) == made[1]
    assert [pages.take(), pages.take()] == [made[2], made[1]]
    with pytest.raises(OutOfPages):
        pages.take()


def test_a_page_given_back_twice_is_noticed() -> None:
    pages = Pages(2, 4)
    page = pages.take()
    pages.drop(page)
    with pytest.raises(AssertionError, match="has no owner"):
        pages.drop(page)
