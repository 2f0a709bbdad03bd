"""Rewards that models give: a reward model's score, a judge's opinion."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from dougong.align.rewards.sample import Sample, Task
from dougong.base import DougongError
from dougong.data.chat import Message
from dougong.engine import Engine
from dougong.hub import LanguageModel
from dougong.parts.heads import Classifier

JUDGE_TEMPLATE = (
    "Rate how good the answer to the question is, from 1 (bad) to {highest} (excellent). Say the number alone.\n\n"
    "Question:\n{question}\n\nAnswer:\n{answer}"
)
COMPARE_TEMPLATE = (
    "Which answer to the question is better? Say A or B alone.\n\n"
    "Question:\n{question}\n\nAnswer A:\n{first}\n\nAnswer B:\n{second}"
)


class RewardModel:
    """The score of a model with one label over prompt and answer, read at its last token (InstructGPT).

    Raises DougongError for a model without such a head or without a tokenizer.
    """

    def __init__(self, lm: LanguageModel, batch: int = 16):
        task = lm.spec.task
        if not isinstance(task, Classifier) or len(task.labels) != 1 or task.at != "last":
            raise DougongError(
                "a reward model has one score, read at the last token; train one: dougong prefer --method reward"
            )
        if lm.tokenizer is None or lm.tokenizer.chat_template is None:
            raise DougongError("the reward model has no tokenizer with a chat template; add one to its folder")
        self.lm, self.batch = lm, batch

    @torch.no_grad()
    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        assert self.lm.tokenizer is not None
        self.lm.model.eval()
        device = self.lm.model.like.device
        texts = [
            self.lm.tokenizer.render_ids([*each.task.messages, _said(each.text)]).ids[-self.lm.spec.context :]
            for each in samples
        ]
        scores = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            longest = max(len(texts[index]) for index in chosen)
            tokens = torch.zeros(len(chosen), longest, dtype=torch.int64)
            padding = torch.ones(len(chosen), longest, dtype=torch.bool)
            for row, index in enumerate(chosen):
                tokens[row, : len(texts[index])] = torch.tensor(texts[index])
                padding[row, : len(texts[index])] = False
            values = self.lm.model(tokens.to(device), padding=padding.to(device)).value
            for index, value in zip(chosen, values.tolist(), strict=True):
                scores[index] = value
        return scores


class Judge:
    """Another model's opinion, from 0 to 1: it is asked for a mark from 1 to `highest`, and the expected mark under its
    probabilities is the reward (direct RLAIF: Lee et al. 2023, section 2.3).

    No mark is drawn, so the reward is the same each time, and tells marks apart that a drawn one would round together.
    """

    def __init__(self, lm: LanguageModel, template: str = JUDGE_TEMPLATE, highest: int = 5):
        if lm.tokenizer is None or lm.tokenizer.chat_template is None:
            raise DougongError("the judge has no tokenizer with a chat template; add one to its folder")
        if not 2 <= highest <= 9:
            raise DougongError(f"the highest mark is {highest}; expected one digit from 2")
        missing = [name for name in ("question", "answer") if "{" + name + "}" not in template]
        if missing:
            raise DougongError(f"the judge's template has no {{{missing[0]}}}; it must show question and answer")
        self.lm, self.template, self.highest = lm, template, highest
        self.marks = [lm.tokenizer.encode(str(mark)) for mark in range(1, highest + 1)]
        if len(set(map(tuple, self.marks))) < highest:
            raise DougongError("the judge's tokenizer writes several marks alike; choose a judge that knows digits")

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        marks = self.probabilities(samples)
        return [sum(mark * share for mark, share in enumerate(shares)) / (self.highest - 1) for shares in marks]

    def probabilities(self, samples: Sequence[Sample]) -> list[list[float]]:
        """p(mark) for marks 1 to highest, each row summing to 1."""
        prompts = [ids for sample in samples for ids in [self._prompt(sample)] * len(self.marks)]
        found = Engine(self.lm).score(prompts, self.marks * len(samples))
        logits = torch.tensor([sum(each) for each in found]).view(len(samples), len(self.marks))
        return logits.softmax(-1).tolist()

    def prefers(self, task: Task, first: str, second: str) -> float:
        """The probability with which the judge finds the first answer better, over both orders of showing them: what it
        likes about a place cancels (RLAIF: Lee et al. 2023, section 2.1)."""
        letters = [self._encode("A"), self._encode("B")]
        if letters[0] == letters[1]:
            raise DougongError("the judge's tokenizer writes A and B alike; choose a judge that knows letters")
        orders = ((first, second), (second, first))
        prompts = [
            self._ask(COMPARE_TEMPLATE, {"question": _question(task), "first": a, "second": b}) for a, b in orders
        ]
        found = Engine(self.lm).score([each for each in prompts for _ in letters], letters * 2)
        shares = torch.tensor([sum(each) for each in found]).view(2, 2).softmax(-1)
        return float(shares[0, 0] + shares[1, 1]) / 2

    def _prompt(self, sample: Sample) -> list[int]:
        return self._ask(
            self.template,
            {"highest": str(self.highest), "question": _question(sample.task), "answer": sample.text},
        )

    def _ask(self, template: str, shown: dict[str, str]) -> list[int]:
        assert self.lm.tokenizer is not None
        # In one pass, and not by str.format: what people and models wrote may hold braces, and the names of others.
        asked = re.sub(r"\{(\w+)\}", lambda found: shown.get(found[1], found[0]), template)
        rendered = self.lm.tokenizer.render_ids([{"role": "user", "content": asked}], add_generation_prompt=True)
        return rendered.ids[-(self.lm.spec.context - max(map(len, self.marks))) :]

    def _encode(self, text: str) -> list[int]:
        assert self.lm.tokenizer is not None
        return self.lm.tokenizer.encode(text)


def _question(task: Task) -> str:
    return "\n".join(str(message["content"]) for message in task.messages)


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}
