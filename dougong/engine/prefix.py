"""The prefix cache: what is known of texts that begin alike is not computed again.

Full pages are published under the chained key of their text (`pages.chain`). A recurrence has no pages, only a state
now; of it snapshots are kept at the ends of pages, the longest unused dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Many

from torch import Tensor

from dougong.engine.pages import HOLE, Pages, chain
from dougong.engine.sequence import Sequence
from dougong.engine.store import Layout


class Prefixes:
    """snapshots: bytes that snapshots of fixed state may take."""

    def __init__(self, pages: Many[Pages], layout: Layout, page_size: int, snapshots: int):
        self._pages = pages
        self._windows = layout.windows
        self._recurrent = bool(layout.fixed)
        self._size = page_size
        self._most = snapshots // max(layout.row_bytes(), 1)
        self._snapshots: OrderedDict[bytes, tuple[Tensor, ...]] = OrderedDict()
        self.asked = 0  # prompt tokens of all sequences opened
        self.hit = 0  # of them found here

    def begin(self, seq: Sequence, prompt: Many[int]) -> tuple[Tensor, ...] | None:
        """Give an empty sequence the longest known beginning of the prompt; returns its fixed state, if it has one.

        The last token is never among it: the model must run on it, for its logits. So of a prompt that is known whole
        all pages are shared, and the last token's place is written anew (which copies its page).
        """
        keys: list[bytes] = []
        before = seq.root
        for end in range(self._size, len(prompt) + 1, self._size):
            before = chain(before, prompt[end - self._size : end])
            keys.append(before)
        self.asked += len(prompt)
        if self._recurrent:
            keys = keys[: (len(prompt) - 1) // self._size]  # its state cannot go one token back
        for count in range(len(keys), 0, -1):
            if self._recurrent and keys[count - 1] not in self._snapshots:
                continue
            found = [self._chained(table, keys[:count]) for table in range(len(self._pages))]
            if any(each is None for each in found):
                continue
            for table, pages in zip(seq.tables, found, strict=True):
                assert pages is not None
                table.adopt(pages)
            seq.cached = min(count * self._size, len(prompt) - 1)
            seq.tokens = list(prompt[: seq.cached])
            seq.keys = keys[: seq.cached // self._size]
            self.hit += seq.cached
            if not self._recurrent:
                return None
            self._snapshots.move_to_end(keys[count - 1])
            return self._snapshots[keys[count - 1]]
        return None

    def _chained(self, table: int, keys: list[bytes]) -> list[int] | None:
        """One table's pages of a beginning, holes before its window; None where one is missing."""
        window = self._windows[table]
        first = 0 if window is None else max(0, (len(keys) * self._size - window) // self._size)
        pages = [HOLE] * first
        # From the end: the pages of a text's end are missing sooner than those that many texts share.
        tail: list[int] = []
        for key in reversed(keys[first:]):
            page = self._pages[table].find(key)
            if page is None:
                return None
            tail.append(page)
        return pages + tail[::-1]

    def grown(self, seq: Sequence) -> None:
        """Publish the pages that have become full."""
        size = self._size
        while (len(seq.keys) + 1) * size <= seq.length:
            place = len(seq.keys)
            key = chain(seq.keys[-1] if seq.keys else seq.root, seq.tokens[place * size : (place + 1) * size])
            seq.keys.append(key)
            for table in seq.tables:
                if table.entries[place] != HOLE:
                    table.pages.publish(table.entries[place], key)

    def remember(self, seq: Sequence, state: tuple[Tensor, ...]) -> None:
        """Keep the fixed state of a sequence that ends with a page."""
        if self._most < 1 or not seq.keys:
            return
        self._snapshots[seq.keys[-1]] = state
        self._snapshots.move_to_end(seq.keys[-1])
        while len(self._snapshots) > self._most:
            self._snapshots.popitem(last=False)

    def forget(self) -> None:
        """Know nothing any more."""
        self._snapshots.clear()
        for pages in self._pages:
            pages.forget_all()
