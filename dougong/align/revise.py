"""Better answers from the same model: the best of several, those good enough to learn from, critique and revision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dougong.align.preferences import Pair
from dougong.align.reason import Generates
from dougong.align.rewards.sample import Reward, Sample, Task
from dougong.base import DougongError
from dougong.data import Conversation
from dougong.data.chat import Message
from dougong.engine import Sampling
from dougong.tokenizer import Tokenizer

CRITIQUE = (
    "Read your last answer again. Does it break this principle: {principle}\n"
    "Say briefly what is wrong with it, if anything."
)
REVISION = "Write the answer to the first question again, so that it keeps this principle: {principle}"


@dataclass(frozen=True)
class Ranked:
    """The answers to one task with their rewards, the best first; of equals the one drawn first."""

    task: Task
    samples: tuple[Sample, ...]
    rewards: tuple[float, ...]

    @property
    def best(self) -> Sample:
        return self.samples[0]


def best_of_n(
    engine: Generates,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    reward: Reward,
    n: int = 4,
    sampling: Sampling | None = None,
) -> list[Ranked]:
    """n answers to each task, ranked by a reward (Stiennon et al. 2020; Nakano et al. 2021). It costs n times the
    tokens, and moves the policy from where it was by log n - (n - 1) / n nats.

    Raises DougongError for n below 1 or greedy sampling, in which all answers are the same.
    """
    sampling = sampling or Sampling()
    if n < 1 or (n > 1 and sampling.greedy):
        raise DougongError(f"the best of {n} answers at temperature {sampling.temperature}: sample some that differ")
    prompts = [ids for task in tasks for ids in [_ids(tokenizer, task.messages)] * n]
    samplings = [
        sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + at) for at in range(len(prompts))
    ]
    done = engine.generate(prompts, samplings)
    samples = [
        Sample(tasks[at // n], each.text, tuple(each.tokens), each.finish_reason == "stop")
        for at, each in enumerate(done)
    ]
    rewards = reward(samples)
    ranked = []
    for at, task in enumerate(tasks):
        own = sorted(range(at * n, (at + 1) * n), key=lambda index: -rewards[index])
        ranked.append(Ranked(task, tuple(samples[i] for i in own), tuple(rewards[i] for i in own)))
    return ranked


def accepted(ranked: Sequence[Ranked], least: float = 1.0, most: int = 1) -> list[Conversation]:
    """Rejection sampling: of each task at most `most` different answers with a reward of `least` or more, as
    conversations to learn from (STaR: Zelikman et al. 2022; RFT: Yuan et al. 2023)."""
    found = []
    for each in ranked:
        texts: list[str] = []
        for sample, reward in zip(each.samples, each.rewards, strict=True):
            if reward >= least and sample.text not in texts and len(texts) < most:
                texts.append(sample.text)
        found += [Conversation((*each.task.messages, _says(text)), source=each.task.source) for text in texts]
    return found


def preferences(ranked: Sequence[Ranked]) -> list[Pair]:
    """The best answer of each task against its worst, where their rewards differ; the margin is the difference."""
    return [
        Pair(
            each.task.messages, (_says(each.best.text),), (_says(each.samples[-1].text),),
            each.rewards[0] - each.rewards[-1], source=each.task.source,
        )
        for each in ranked
        if each.rewards[0] > each.rewards[-1]
    ]  # fmt: skip


@dataclass(frozen=True)
class Revised:
    """A first answer, and for each principle the critique and the answer after it."""

    task: Task
    first: str
    critiques: tuple[str, ...]
    answers: tuple[str, ...]

    @property
    def last(self) -> str:
        return self.answers[-1] if self.answers else self.first

    def conversation(self) -> Conversation:
        """The question with the last answer, to learn from."""
        return Conversation((*self.task.messages, _says(self.last)), source=self.task.source)

    def pair(self) -> Pair:
        """The last answer preferred to the first."""
        return Pair(self.task.messages, (_says(self.last),), (_says(self.first),), source=self.task.source)


def critique_and_revise(
    engine: Generates,
    tokenizer: Tokenizer,
    tasks: Sequence[Task],
    principles: Sequence[str],
    sampling: Sampling | None = None,
    critique: str = CRITIQUE,
    revision: str = REVISION,
) -> list[Revised]:
    """Answer, then for each principle in turn criticise the answer and write it again (constitutional AI: Bai et al.
    2022, section 3.1). An answer that comes back empty leaves the one before it standing.

    Raises DougongError when a template does not show the principle.
    """
    for template in (critique, revision):
        if "{principle}" not in template:
            raise DougongError(f"the template {template[:40]!r} does not show {{principle}}; add it")
    talks = [list(task.messages) for task in tasks]
    firsts = _continued(engine, tokenizer, talks, sampling)
    found = [Revised(task, first, (), ()) for task, first in zip(tasks, firsts, strict=True)]
    for principle in principles:
        for talk, each in zip(talks, found, strict=True):
            talk[:] = [*each.task.messages, _says(each.last), _asks(critique, principle)]
        critiques = _continued(engine, tokenizer, talks, sampling)
        for talk, text in zip(talks, critiques, strict=True):
            talk += [_says(text), _asks(revision, principle)]
        answers = _continued(engine, tokenizer, talks, sampling)
        found = [
            replace(
                each,
                critiques=(*each.critiques, text),
                answers=(*each.answers, answer if answer.strip() else each.last),
            )
            for each, text, answer in zip(found, critiques, answers, strict=True)
        ]
    return found


def _continued(
    engine: Generates, tokenizer: Tokenizer, talks: Sequence[Sequence[Message]], sampling: Sampling | None
) -> list[str]:
    return [each.text for each in engine.generate([_ids(tokenizer, talk) for talk in talks], sampling)]


def _ids(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    return tokenizer.render_ids(list(messages), add_generation_prompt=True).ids


def _says(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _asks(template: str, principle: str) -> Message:
    return {"role": "user", "content": template.replace("{principle}", principle)}
