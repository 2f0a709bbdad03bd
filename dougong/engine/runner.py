"""The one place that runs the model on stored sequences: a ragged step of prompt chunks and single tokens."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.engine.adapters import adapted
from dougong.engine.budget import divide
from dougong.engine.decode import PagedDecode, can_page, pages_pay
from dougong.engine.fixed import FixedRows
from dougong.engine.lanes import Lanes
from dougong.engine.pages import OutOfPages, Pages, Table
from dougong.engine.passes import LanePass, PagePass, Pass, States
from dougong.engine.prefix import Prefixes
from dougong.engine.sequence import Mark, Sequence
from dougong.engine.sources import Sources
from dougong.engine.store import KV, Buffer, Layout
from dougong.engine.taped import Taped, can_tape
from dougong.engine.work import Result, Work, by_cost, last_wanted
from dougong.model import Model
from dougong.parts.context import Context
from dougong.parts.shapes import Float, Int

_SHORT = 16  # new tokens of a row that runs in a lane
_AGAIN = 512  # tokens at a time of a text that is read again
_SLACK = 64  # tokens that `truncate` can take back although a window has passed them


class Runner:
    """Stores sequences within `budget_bytes` and runs the model on them.

    page_size   tokens a page
    kv_dtype    None: keys and values as the model makes them; "int8" or "fp8": as bytes, scaled by token and head
    sequences   at most this many at once
    prefixes    keep pages (and snapshots of fixed state) of closed sequences for texts that begin alike
    paged       single tokens attend to the pages where they lie (`decode`); None: where that pays

    Raises DougongError for a model whose tokens see later ones, and for a budget in which nothing fits.
    """

    def __init__(
        self,
        model: Model,
        budget_bytes: int,
        page_size: int = 16,
        kv_dtype: KV | None = None,
        sequences: int = 256,
        prefixes: bool = True,
        paged: bool | None = None,
    ):
        spec = model.spec
        if not spec.causal:
            raise DougongError("this model's tokens see the whole text, so it cannot read it in steps; give whole rows")
        if page_size < 1:
            raise DougongError(f"page_size is {page_size}; expected at least 1")
        self.model = model
        self.page_size = page_size
        self.device = model.like.device
        self.layout = Layout.of(list(spec.state_slots()), model.like.dtype, spec.context, kv_dtype)
        self.division = divide(self.layout, budget_bytes, page_size, spec.context, sequences, _SLACK)
        self.pages = [Pages(count, page_size) for count in self.division.pages]
        with torch.inference_mode():
            self.pools = [
                Buffer(group, (self.division.pages[group.table] + 2) * page_size, self.device)
                for group in self.layout.groups
            ]
            self.fixed = FixedRows(self.layout.fixed, self.division.rows, self.device)
        self.lanes = Lanes(self.layout.groups, self.division.lanes, self.device)
        self.prefixes = Prefixes(self.pages, self.layout, page_size, self.division.snapshots) if prefixes else None
        self._states = States(self.layout, self.fixed)
        paged = pages_pay(model, self.layout, self.device) if paged is None else paged
        if paged and not can_page(spec, self.layout):
            raise DougongError("this model's state is more than keys and values in floats; it cannot decode over pages")
        self.decode = PagedDecode(model, self.pools, self.layout, self._states, page_size) if paged else None
        self.taped = Taped(model, self.layout) if can_tape(model, self.layout) else None
        self._open = 0
        self._sequences = sequences
        self._by_length = spec.by_length()
        self._outgrown = any(rope.starts_anew for rope in self._by_length)
        self._sources = Sources()

    @property
    def recurrent(self) -> bool:
        """Whether some state has a fixed size: then tokens are taken back by `mark` and `back`, not by `truncate`."""
        return bool(self.layout.fixed)

    @property
    def open_sequences(self) -> int:
        return self._open

    @property
    def free_bytes(self) -> int:
        """Of the pages that can be taken."""
        return sum(
            pages.free * self.page_size * self.layout.token_bytes(table) for table, pages in enumerate(self.pages)
        )

    def needs(self, tokens: int, start: int = 0) -> list[int]:
        """Pages of each table for tokens start to `tokens` - 1 of one sequence that is fed in steps."""
        whole = -(-tokens // self.page_size) - start // self.page_size
        return [
            whole if window is None else min(whole, -(-(window + _SLACK) // self.page_size) + 1)
            for window in self.layout.windows
        ]

    def fits(self, tokens: int, sequences: int = 1, shared: int = 0, chunk: int = 1) -> bool:
        """Whether so many sequences of `tokens` tokens, the first `shared` in common, could be held if nothing else
        were. chunk: tokens a step, for a window's pages are given back only after it."""
        if sequences > min(self._sequences, self.division.rows):
            return False
        for pages, need, window in zip(self.pages, self.needs(tokens), self.layout.windows, strict=True):
            common = shared // self.page_size if window is None else 0
            if window is not None:
                need = min(need + -(-chunk // self.page_size), -(-tokens // self.page_size))
            if common + sequences * (need - common) > pages.total:
                return False
        return True

    def holds(self) -> str:
        """What could be held at most, in words."""
        tokens = [pages.total * self.page_size for pages in self.pages]
        parts = [f"{max(tokens)} tokens"] if tokens else []
        return " in ".join([*parts, f"{min(self._sequences, self.division.rows)} sequences"])

    def room_for(self, tokens: int, start: int = 0) -> bool:
        """Whether a sequence of `tokens` tokens, of which `start` are stored, fits beside those that are open."""
        if self._open >= self._sequences or (self.recurrent and not self.fixed.free):
            return False
        return all(need <= pages.free for need, pages in zip(self.needs(tokens, start), self.pages, strict=True))

    @torch.inference_mode()
    def open(
        self,
        prompt: Many[int],
        expect: int = 0,
        source: Float[Tensor, "S D"] | None = None,
        root: bytes = b"",
        adapter: str | None = None,
    ) -> Sequence:
        """A sequence that holds as much of the prompt as the prefix cache does (`seq.cached` tokens, never the last).

        expect  tokens it will have in the end, as far as known
        source  what cross-attention reads: the encoder's output for this sequence
        root    told apart from equal prompts with another root (another source, another adapter)
        adapter that serves it: None for all that are on, "" for the base alone

        Raises OutOfPages.
        """
        if self._open >= self._sequences:
            raise OutOfPages
        seq = Sequence([], self._empty(), expect, root, told=len(prompt))
        seq.root += self._stage(seq.told)
        seq.source, seq.adapter = source, adapter
        self.fixed.open(seq)
        self._open += 1
        if self.prefixes is not None:
            state = self.prefixes.begin(seq, prompt)
            if state is not None:
                self.fixed.restore(seq, state)
        return seq

    def _empty(self) -> list[Table]:
        return [Table(pages, window, _SLACK) for pages, window in zip(self.pages, self.layout.windows, strict=True)]

    def _stage(self, length: int) -> bytes:
        """What the length of a text decides about its keys: texts that begin alike share them only where it is one."""
        return b"".join(rope.stage(length).to_bytes(8, "big") for rope in self._by_length)

    @torch.inference_mode()
    def fork(self, seq: Sequence) -> Sequence:
        """A sequence with the same text so far; pages are shared until one of them writes. Raises OutOfPages."""
        if self._open >= self._sequences:
            raise OutOfPages
        other = Sequence(list(seq.tokens), [], seq.expect, seq.root, seq.cached, list(seq.keys))
        other.source, other.adapter, other.told = seq.source, seq.adapter, seq.told
        self.fixed.open(other, self.fixed.copy(seq) if self.recurrent else None)
        other.tables = [table.fork() for table in seq.tables]
        self._open += 1
        return other

    def truncate(self, seq: Sequence, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if length == seq.length:
            return
        if self.recurrent:
            raise DougongError("a recurrence cannot forget its last tokens; take them back by mark and back")
        self._cut(seq, length)

    def _cut(self, seq: Sequence, length: int) -> None:
        if not 0 <= length <= seq.length:
            raise DougongError(f"a sequence of {seq.length} tokens cannot be cut to {length}")
        if not all(table.can_truncate(length) for table in seq.tables):
            raise DougongError(f"cut to {length} of {seq.length} tokens: what its windows read there is gone already")
        del seq.tokens[length:], seq.keys[length // self.page_size :]
        seq.synced = min(seq.synced, length)
        for table in seq.tables:
            table.truncate(length)

    @torch.inference_mode()
    def mark(self, seq: Sequence) -> Mark:
        """The sequence as it is now."""
        return Mark(seq.length, self.fixed.copy(seq) if self.recurrent else ())

    @torch.inference_mode()
    def back(self, seq: Sequence, mark: Mark) -> None:
        """The sequence as it was at the mark: what came after it is forgotten."""
        self._cut(seq, mark.length)
        if mark.fixed:
            self.fixed.restore(seq, mark.fixed)

    def close(self, seq: Sequence) -> None:
        """Give everything back; closing twice does nothing."""
        if seq.closed:
            return
        seq.closed = True
        self._open -= 1
        self.lanes.leave(seq)
        self.fixed.close(seq)
        for table in seq.tables:
            table.close()
        seq.source = None
        self._sources.leave(seq)

    @torch.inference_mode()
    def scrub(self, seq: Sequence) -> None:
        """Zero what a sequence with broken numbers has stored and nobody else reads: a masked place weighs nothing, but
        nothing times NaN is NaN, for whoever comes there next."""
        self.lanes.clear()
        for pool in self.pools:
            table = seq.tables[pool.group.table]
            for page in table.entries:
                if page and table.pages.owners(page) == 1:
                    table.pages.forget(page)
                    pool.clear(slice(page * self.page_size, (page + 1) * self.page_size))

    def forget(self) -> None:
        """Empty the prefix cache, and with it what the old weights made."""
        for each in (self.decode, self.taped):
            if each is not None:
                each.forget()
        if self.prefixes is not None:
            self.prefixes.forget()

    @torch.inference_mode()
    def step(self, work: Many[Work]) -> list[Result]:
        """Run all work; results come in its order. Raises OutOfPages before anything is run or stored.

        Rows whose lengths differ little share a pass, padded at their end; a pass of its own is taken where padding
        would cost more than reading the weights once more.
        """
        for each in work:
            self._renew(each.seq, len(each.tokens))
            self._cover(each.seq, len(each.tokens))
        results: list[Result | None] = [None] * len(work)
        groups = by_cost([len(each.tokens) for each in work])
        short = [group for group in groups if all(self._runs_in_lane(work[number]) for number in group)]
        laned = max(short, key=len, default=None)
        for group in groups:
            self._run(work, group, results, group is laned)
        return [result for result in results if result is not None]

    def _runs_in_lane(self, work: Work) -> bool:
        return 0 < len(work.tokens) <= _SHORT and work.seq.length > 0

    def _renew(self, seq: Sequence, tokens: int) -> None:
        """Read a text again that `tokens` more make so long that its keys would have been turned otherwise."""
        after = max(seq.told, seq.length + tokens)
        old, new = self._stage(max(seq.told, seq.length)), self._stage(after)
        if not self._outgrown or not seq.length or old == new:
            return
        if any(need > own.pages.free + own.alone for need, own in zip(self.needs(after), seq.tables, strict=True)):
            raise OutOfPages
        text = seq.tokens
        self.lanes.leave(seq)
        if seq.row is not None:
            self.fixed.restore(seq, None)
        for table in seq.tables:
            table.close()
        seq.tables, seq.tokens, seq.keys, seq.synced = self._empty(), [], [], 0
        seq.told, seq.root = after, seq.root.removesuffix(old) + new
        for start in range(0, len(text), _AGAIN):
            piece = Work(seq, text[start : start + _AGAIN])
            self._cover(seq, len(piece.tokens))
            self._run([piece], [0], [None], laned=False)

    def _cover(self, seq: Sequence, tokens: int) -> None:
        for number, table in enumerate(seq.tables):
            for taken, given in table.cover(seq.length, seq.length + tokens):
                steps = torch.arange(self.page_size, device=self.device)
                for pool in self.pools:
                    if pool.group.table == number:
                        pool.copy(pool, taken * self.page_size + steps, given * self.page_size + steps)

    def _run(self, work: Many[Work], group: list[int], results: list[Result | None], laned: bool) -> None:
        """One forward pass over the work numbered in `group`."""
        tokens = max(len(work[number].tokens) for number in group)
        order = [work[number].seq for number in group]
        if laned and tokens == 1 and self.decode is not None and all(seq.adapter is None for seq in order):
            self._decode(self.decode, work, group, results)
            return
        number_of = {id(work[number].seq): number for number in group}
        if laned:
            if self.layout.groups:
                found = self.lanes.arrange(order, tokens, self.pools)
                laned, order = found is not None, found or order
            else:
                laned = False
                order.sort(key=lambda seq: seq.row or 0)  # whoever stands first already is not moved
            self.fixed.arrange(order)
        rows = [work[number_of[id(seq)]] for seq in order]
        counts = [len(each.tokens) for each in rows]
        ids = torch.tensor([each.tokens + [0] * (tokens - len(each.tokens)) for each in rows], device=self.device)
        ctx = self._context(order, counts, tokens)
        chosen = self._by_tape(rows, ids, ctx, laned)
        if chosen is None:
            self._states.now = self._pass(order, counts, tokens, laned)
            self.fixed.begin(order)
            with adapted(self.model, [seq.adapter for seq in order]):
                chosen = last_wanted(rows, self.model.run(ids, ctx, self._states).hidden)
            self._states.now.finish()
        for each in rows:
            self._advance(each.seq, each.tokens, laned)
        self._collect(rows, [number_of[id(seq)] for seq in order], chosen, results)

    def _by_tape(
        self, rows: Many[Work], ids: Int[Tensor, "B T"], ctx: Context, laned: bool
    ) -> Float[Tensor, "N D"] | None:
        """The hidden states that are wanted, if a tape can make them."""
        order = [each.seq for each in rows]
        if self.taped is None or any(seq.adapter is not None for seq in order):
            return None
        if not laned:
            counts, wanted = [len(each.tokens) for each in rows], [each.want for each in rows]
            return self.taped.read(ids, ctx, self.pools, order, counts, wanted)
        hidden = self.taped.run(ids, ctx, self.lanes, order) if ids.shape[1] == 1 else None
        if hidden is None:
            return None
        self._pass(order, [1] * len(order), 1, laned).finish()
        return last_wanted(rows, hidden)

    def _decode(self, decode: PagedDecode, work: Many[Work], group: list[int], results: list[Result | None]) -> None:
        """One token of each row, over pages."""
        rows = [work[number] for number in group]
        hidden, logits = decode.run([each.seq for each in rows], [each.tokens[0] for each in rows])
        for place, (number, each) in enumerate(zip(group, rows, strict=True)):
            self._advance(each.seq, each.tokens, laned=False)
            own = slice(place, place + each.want)
            results[number] = Result(hidden[own], logits[own], logits, place)

    def _pass(self, order: list[Sequence], counts: list[int], tokens: int, laned: bool) -> Pass:
        if laned:
            return LanePass(self.lanes, self.pools, self.layout, order, counts, tokens)
        return PagePass(self.pools, self.layout, order, counts, tokens)

    def _context(self, order: list[Sequence], counts: list[int], tokens: int) -> Context:
        lengths = [seq.length for seq in order]
        steps = torch.arange(tokens, device=self.device)
        aligned = all(length == lengths[0] for length in lengths)
        held = torch.tensor(lengths, device=self.device)
        positions = steps[None] + (lengths[0] if aligned else held[:, None])
        # At the beginning the keys are the new tokens alone.
        keys = torch.arange(max(lengths) + tokens, device=self.device)[None] if max(lengths) else None
        real = torch.tensor(counts, device=self.device)
        ragged = any(count < tokens for count in counts)
        whole = held + real
        if self._by_length:  # a prompt that is read in pieces is as long as it will be from the first of them on
            whole = whole.maximum(torch.tensor([seq.told for seq in order], device=self.device))
        ctx = Context(positions, keys, lengths=whole, counts=real if ragged else None)
        if self.layout.crosses:
            sources = self._sources.of(order)
            ctx.source, ctx.source_padding = sources.hidden, sources.padding
            self._states.kept = sources.kept
        return ctx

    def _advance(self, seq: Sequence, tokens: list[int], laned: bool) -> None:
        seq.tokens += tokens
        if laned:
            seq.synced = seq.length
        if self.prefixes is not None:
            self.prefixes.grown(seq)
            if self.recurrent and seq.length % self.page_size == 0 and len(tokens) > 1:
                self.prefixes.remember(seq, self.fixed.copy(seq))
        for table in seq.tables:
            table.expire(seq.length)

    def _collect(
        self, rows: list[Work], numbers: list[int], chosen: Float[Tensor, "N D"], results: list[Result | None]
    ) -> None:
        with adapted(self.model, [each.seq.adapter for each in rows for _ in range(each.want)]):
            logits = self.model.logits(chosen) if len(chosen) else chosen.new_empty(0, self.model.spec.vocab)
        start = 0
        for each, number in zip(rows, numbers, strict=True):
            own = slice(start, start + each.want)
            results[number] = Result(chosen[own], logits[own], logits, start)
            start += each.want
