"""Requests made ready: what a user gives, checked, encoded, and handed to whoever decodes it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING, final

from torch import Tensor

from dougong.base import DougongError
from dougong.engine.adapters import check_adapter, virtual_ids
from dougong.engine.beam import BeamSearch
from dougong.engine.contrastive import ContrastiveSearch
from dougong.engine.driver import Driver, Plain
from dougong.engine.grammar import Grammars
from dougong.engine.prompts import prompt_ids
from dougong.engine.propose import DraftModel, FurtherLayers, PromptLookup, Proposer
from dougong.engine.request import Event, Request
from dougong.engine.runner import Runner
from dougong.engine.sampling import Sampling
from dougong.engine.scheduler import Job
from dougong.engine.setting import Setting
from dougong.engine.speculate import Several, Speculative

if TYPE_CHECKING:
    from dougong.hub import LanguageModel

Prompt = str | Sequence[int] | Tensor


@dataclass(eq=False)
class Ticket:
    """A request that was submitted. number: the index of its events. prompt: its ids. error: why it ended with the
    reason "error"; None otherwise."""

    number: int
    prompt: list[int]
    sampling: Sampling
    job: Job | None = None
    inbox: deque[Event] | None = field(default=None, repr=False)
    done: bool = False  # it has ended, and a step has told its last event

    @property
    def error(self) -> str | None:
        return None if self.job is None else self.job.error


@final
class Tickets:
    """Makes tickets for a model. runner: where sequences are stored. draft_runner: the same of the draft model; raises
    DougongError where there is none."""

    def __init__(
        self,
        lm: LanguageModel,
        runner: Callable[[], Runner],
        draft_runner: Callable[[], Runner],
        prefill_tokens: int,
    ):
        self.lm, self._runner, self._make_draft_runner = lm, runner, draft_runner
        self.prefill_tokens = prefill_tokens
        self._numbers = count()

    @property
    def runner(self) -> Runner:
        return self._runner()

    @cached_property
    def _draft_runner(self) -> Runner:
        return self._make_draft_runner()

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.lm.tokenizer, self.lm.spec.vocab)

    def several(
        self,
        prompts: Sequence[Prompt] | Tensor,
        sampling: Sampling | Sequence[Sampling] | None,
        sources: Sequence[Prompt] | None,
        adapters: str | Sequence[str | None] | None,
    ) -> list[Ticket]:
        """A ticket for each prompt; `Engine.stream` says what may be given."""
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if sampling is None or isinstance(sampling, Sampling):
            samplings = [sampling or Sampling()] * len(prompts)
        else:
            samplings = list(sampling)
        if len(samplings) != len(prompts):
            raise DougongError(f"{len(samplings)} samplings for {len(prompts)} prompts; give one, or one for each")
        read: list[Prompt | None] = [None] * len(prompts) if sources is None else list(sources)
        if len(read) != len(prompts):
            raise DougongError(f"{len(read)} sources for {len(prompts)} prompts; give one for each")
        served = [adapters] * len(prompts) if adapters is None or isinstance(adapters, str) else list(adapters)
        if len(served) != len(prompts):
            raise DougongError(f"{len(served)} adapters for {len(prompts)} prompts; give one, or one for each")
        asked = zip(prompts, samplings, read, served, strict=True)
        return [
            self.one(prompt, each, f"prompts[{index}]", source, adapter, index)
            for index, (prompt, each, source, adapter) in enumerate(asked)
        ]

    def one(
        self,
        prompt: Prompt,
        sampling: Sampling,
        where: str,
        source: Prompt | None,
        adapter: str | None,
        index: int | None = None,
    ) -> Ticket:
        """A request, checked; nothing is begun yet."""
        lm = self.lm
        if lm.tokenizer is None and sampling.stop:
            raise DougongError("stop strings need a tokenizer, and this model has none; use stop_ids")
        check_adapter(lm.model, adapter)
        if sampling.processor is not None:
            sampling.processor.check(lm.spec)
        ids = prompt_ids(lm, prompt, where)
        virtual = virtual_ids(lm.model, adapter)
        if len(virtual) + len(ids) > lm.spec.context:
            raise DougongError(
                f"{where} has {len(ids)} tokens, and the adapter's own prompt {len(virtual)}, but the model's context "
                f"is {lm.spec.context}; shorten the prompt"
            )
        if source is not None and lm.model.encoder is None:
            raise DougongError("this model has no encoder; leave `source` out")
        if source is None and lm.model.encoder is not None:
            raise DougongError("this model has an encoder and a decoder; give `source`, what its encoder reads")
        read = None if source is None else prompt_ids(lm, source, f"the source of {where}")
        number = next(self._numbers)
        ends = frozenset(sampling.stop_ids) | (frozenset() if sampling.ignore_eos else frozenset(lm.eos_ids))
        grammar = sampling.grammar
        requests = [
            Request(
                number if index is None else index,
                ids,
                sampling,
                lm.tokenizer,
                lm.spec.context,
                frozenset(lm.eos_ids),
                choice,
                None if grammar is None else self._grammars.matcher(grammar, ends, sampling.forced),
                read,
                virtual,
            )
            for choice in range(max(sampling.n, sampling.best_of or 1))
        ]
        width = max(len(requests), sampling.beams, 1 if sampling.contrastive is None else sampling.contrastive.k)
        self._check_room(where, requests[0], width)
        ticket = Ticket(number, ids, sampling)
        driver = self._driver(requests, Setting(lm.model, read, adapter))
        ticket.job = Job(number, driver, requests, width)
        return ticket

    def _check_room(self, where: str, request: Request, width: int) -> None:
        """Raise DougongError for a request that could not run even alone."""
        runner = self.runner
        chunk = min(self.prefill_tokens, request.size)
        if not runner.fits(request.size, width, len(request.given), chunk):
            answers = f" in {width} sequences" if width > 1 else ""
            raise DougongError(
                f"{where} and its answer may take {request.size} tokens{answers}, more than the engine's memory holds "
                f"({runner.holds()}); raise memory, or lower max_tokens, n or beams"
            )

    def _driver(self, requests: list[Request], setting: Setting) -> Driver | Plain:
        """How the request goes on."""
        sampling = requests[0].sampling
        if sampling.beams > 1:
            return BeamSearch(self.runner, requests, setting)
        if sampling.contrastive is not None:
            return ContrastiveSearch(self.runner, requests[0], setting)
        if sampling.speculation is not None:
            ahead = [Speculative(self.runner, each, self._proposer(each), setting) for each in requests]
            return ahead[0] if len(ahead) == 1 else Several(ahead)
        return Plain(self.runner, requests, sampling.n, setting)

    def _proposer(self, request: Request) -> Proposer:
        """Who guesses ahead for the request."""
        how = request.sampling.speculation
        if how == "prompt_lookup":
            return PromptLookup()
        # Guesses have random numbers of their own, told by the request's seed.
        seed = request.generator.initial_seed() ^ 0x5DEECE66D
        if how == "mtp":
            if self.lm.model.mtp is None:
                raise DougongError("speculation is 'mtp', but this model has no further layers (spec.mtp)")
            return FurtherLayers(self.lm.model, seed)
        return DraftModel(self._draft_runner, self.lm.spec.vocab, seed)
