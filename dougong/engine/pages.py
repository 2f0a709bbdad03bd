"""Who owns which page: bookkeeping without tensors.

State that grows with the text lives in pages of `page_size` tokens (Kwon et al. 2023, PagedAttention). A page has as
many owners as tables name it; who wants to write into a shared one gets a copy (copy on write). A full page whose
tokens, and all tokens before them, are known may be published under a key; when its last owner leaves it stays idle, to
be found by the next text that begins alike, until its memory is needed (the one left longest ago goes first).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence

HOLE = 0  # the page that stands for tokens which nobody reads any more: zeros, without an owner


class OutOfPages(Exception):
    """No page is free. For the scheduler, which then takes a request's pages away; users never see it."""


def chain(before: bytes, tokens: Sequence[int]) -> bytes:
    """The key of a page: a digest of its tokens and of the key of the page before it, so of all text up to its end."""
    return hashlib.blake2b(array("q", tokens).tobytes(), key=before, digest_size=16).digest()


class Pages:
    """`total` pages, numbered from 1."""

    def __init__(self, total: int, page_size: int):
        self.total = total
        self.page_size = page_size
        self._made = 0  # pages 1 to this one have been in use
        self._free: list[int] = []
        self._owners: list[int] = [0]
        self._keys: dict[int, bytes] = {}
        self._found: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # published, without an owner; the oldest first

    @property
    def free(self) -> int:
        """Pages that can be taken, the idle ones among them."""
        return self.total - self._made + len(self._free) + len(self._idle)

    @property
    def idle(self) -> int:
        """Pages that are kept only because a text might begin as theirs does."""
        return len(self._idle)

    def owners(self, page: int) -> int:
        return self._owners[page]

    def take(self) -> int:
        """A page with one owner, its contents undefined. Raises OutOfPages."""
        if self._free:
            page = self._free.pop()
        elif self._made < self.total:
            self._made += 1
            page = self._made
            self._owners.append(0)
        elif self._idle:
            self.forget(next(iter(self._idle)))
            page = self._free.pop()
        else:
            raise OutOfPages
        self._owners[page] = 1
        return page

    def hold(self, page: int) -> None:
        """One more owner."""
        self._idle.pop(page, None)
        self._owners[page] += 1

    def drop(self, page: int) -> None:
        """One owner less; the last one leaves the page idle if it is published, else free."""
        assert self._owners[page] > 0, f"page {page} has no owner"
        self._owners[page] -= 1
        if self._owners[page] == 0:
            if page in self._keys:
                self._idle[page] = None
            else:
                self._free.append(page)

    def private(self, page: int) -> bool:
        """Whether its owner may write into it."""
        return self._owners[page] == 1 and page not in self._keys

    def find(self, key: bytes) -> int | None:
        """The page published under `key`; it is the caller's to hold."""
        return self._found.get(key)

    def publish(self, page: int, key: bytes) -> None:
        """Let others find a full page. Where the same text is published already, this copy stays private."""
        if key not in self._found and page not in self._keys:
            self._found[key] = page
            self._keys[page] = key

    def forget(self, page: int) -> None:
        """Take back what `publish` said, before the page changes."""
        key = self._keys.pop(page, None)
        if key is not None:
            del self._found[key]
        if page in self._idle:
            del self._idle[page]
            self._free.append(page)

    def forget_all(self) -> None:
        """Publish nothing any more: the weights have changed, and with them what a text's state is."""
        for page in list(self._keys):
            self.forget(page)


class Table:
    """The pages of one sequence, in order of its tokens.

    window: tokens further back than this are never read again, so `expire` gives their pages back; `slack` tokens more
    are kept, for those who take tokens back (`truncate`).
    """

    def __init__(self, pages: Pages, window: int | None = None, slack: int = 0):
        self.pages = pages
        self.entries: list[int] = []
        self._window = window
        self._slack = slack
        self._gone = 0  # leading entries that are holes

    @property
    def gone(self) -> int:
        """Leading pages that have been given back."""
        return self._gone

    @property
    def alone(self) -> int:
        """Pages that nobody else holds: free when this table is closed."""
        return sum(page != HOLE and self.pages.owners(page) == 1 for page in self.entries)

    def missing(self, start: int, end: int) -> int:
        """Pages that must be taken before tokens start to end - 1 can be written."""
        size, pages = self.pages.page_size, self.pages
        fresh = -(-end // size) - len(self.entries)
        shared = sum(pages.owners(page) > 1 for page in self.entries[start // size : -(-end // size)])
        return max(fresh, 0) + shared

    def cover(self, start: int, end: int) -> list[tuple[int, int]]:
        """Make the places of tokens start to end - 1 this table's own, to be written. Returns the copies to be made:
        (from, to) pages, whose earlier tokens go along. Raises OutOfPages, and then nothing has changed."""
        size, pages = self.pages.page_size, self.pages
        first, last = start // size, -(-end // size)
        touched = self.entries[first:last]
        if len(self.entries) >= last and all(map(pages.private, touched)):
            return []
        if self.missing(start, end) > pages.free:
            raise OutOfPages
        copies = []
        for place, page in enumerate(touched, first):
            if pages.owners(page) > 1:
                self.entries[place] = pages.take()
                copies.append((page, self.entries[place]))
                pages.drop(page)
            else:
                pages.forget(page)
        while len(self.entries) < last:
            self.entries.append(pages.take())
        return copies

    def adopt(self, found: Sequence[int]) -> None:
        """Begin with pages of another text; holes among them stay holes."""
        assert not self.entries
        for page in found:
            if page != HOLE:
                self.pages.hold(page)
        self.entries = list(found)
        self._gone = next((place for place, page in enumerate(found) if page != HOLE), len(found))

    def fork(self) -> Table:
        """A table that shares all pages."""
        other = Table(self.pages, self._window, self._slack)
        other.adopt(self.entries)
        return other

    def can_truncate(self, length: int) -> bool:
        """Whether all tokens that the token after the first `length` may read are still there."""
        return self._window is None or max(0, length - self._window) >= self._gone * self.pages.page_size

    def truncate(self, length: int) -> None:
        """Keep the pages of the first `length` tokens."""
        keep = -(-length // self.pages.page_size)
        for page in self.entries[keep:]:
            if page != HOLE:
                self.pages.drop(page)
        del self.entries[keep:]
        self._gone = min(self._gone, keep)

    def expire(self, length: int) -> None:
        """Give back the pages that no token after the first `length` reads."""
        if self._window is None:
            return
        past = min((length - self._window - self._slack) // self.pages.page_size, len(self.entries))
        while self._gone < past:
            self.pages.drop(self.entries[self._gone])
            self.entries[self._gone] = HOLE
            self._gone += 1

    def close(self) -> None:
        self.truncate(0)
