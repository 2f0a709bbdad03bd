"""More thought for the same model: budgets for thinking, votes, trees of thoughts, search led by a verifier.

Small functions over `Engine.generate`. What is asked is a prompt, as ids or text; what judges is a function of texts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from dougong.align.rewards.checks import final_answer
from dougong.base import DougongError
from dougong.engine import Completion, Sampling
from dougong.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Judge = Callable[[Sequence[str]], list[float]]


@runtime_checkable
class Generates(Protocol):
    """What is needed of an engine."""

    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]: ...


@dataclass(frozen=True)
class Thought:
    """What was thought and answered, and the tokens that both took, forced ones included."""

    thinking: str
    answer: str
    tokens: int
    forced: bool  # the budget ended the thinking


def think(
    engine: Generates,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    budget: int,
    sampling: Sampling,
    *,
    least: int = 0,
    wait: str = "Wait,",
    start: str = "<think>\n",
    end: str = "</think>",
) -> Thought:
    """Think for at most `budget` tokens, then answer in sampling.max_tokens (budget forcing: Muennighoff et al. 2025).

    Thinking that ends before `least` tokens goes on after `wait`; at the budget `end` is written for the model. So a
    budget of 0 answers at once. Raises DougongError for a budget below `least`.
    """
    if not 0 <= least <= budget:
        raise DougongError(f"a budget of {budget} tokens, at least {least}; expected 0 <= least <= budget")
    opened = [*prompt, *_ids(tokenizer, start)]
    closing = _ids(tokenizer, end)
    alone = closing if len(closing) == 1 else []  # a token of its own may be one that texts do not show
    thought: list[int] = []
    forced = True
    while len(thought) < budget:
        bounded = replace(
            sampling, max_tokens=budget - len(thought), stop=(end,), stop_ids=(*sampling.stop_ids, *alone)
        )
        done = engine.generate([opened + thought], bounded)[0]
        # The text, not the tokens: the last of those may hold the beginning of `end`.
        thought += _ids(tokenizer, done.text)[: budget - len(thought)]
        if done.finish_reason == "length":
            break
        if len(thought) >= least:
            forced = False
            break
        more = _ids(tokenizer, wait)
        if not done.text and not more:
            raise DougongError("the model says nothing, and `wait` is empty: thinking cannot go on; lower `least`")
        thought += more[: budget - len(thought)]
    # Models write a line break before they end their thinking; where one stands there already, none is added.
    apart = "" if thought and tokenizer.decode(thought).endswith("\n") else "\n"
    closed = opened + thought + _ids(tokenizer, f"{apart}{end}\n\n")
    done = engine.generate([closed], sampling)[0]
    spent = len(closed) - len(prompt) + len(done.tokens)
    return Thought(tokenizer.decode(thought), done.text, spent, forced)


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, specials=True) if text else []


def _after(prompt: Prompt, text: str, tokenizer: Tokenizer | None) -> Prompt:
    """The prompt with what has been written since. Raises DougongError for one of ids without a tokenizer."""
    if isinstance(prompt, str):
        return prompt + text
    if tokenizer is None:
        raise DougongError("the prompt is ids, and what follows it is text; give the tokenizer too")
    return [*prompt, *_ids(tokenizer, text)]


@dataclass(frozen=True)
class Vote:
    """The answer that most chains of thought reach, the share of them that do, and all answers in the order drawn."""

    answer: str
    share: float
    answers: tuple[str, ...]
    texts: tuple[str, ...]


def self_consistency(
    engine: Generates,
    prompt: Prompt,
    n: int,
    sampling: Sampling,
    answer_of: Callable[[str], str] = final_answer,
) -> Vote:
    """Sample n chains of thought and take the answer that most reach (Wang et al. 2023); of equals the one first drawn.
    Chains without an answer ("") do not vote, unless none has one.

    Raises DougongError for n below 1, or greedy sampling with more than one.
    """
    if n < 1 or (n > 1 and sampling.greedy):
        raise DougongError(f"{n} chains at temperature {sampling.temperature}: sample some that differ")
    done = engine.generate([prompt] * n, _seeded(sampling, n))
    answers = tuple(answer_of(each.text) for each in done)
    votes = Counter(answer for answer in answers if answer) or Counter(answers)
    best, count = votes.most_common(1)[0]  # of equals the one counted first
    return Vote(best, count / n, answers, tuple(each.text for each in done))


@dataclass(frozen=True)
class Path:
    """Steps taken one after another, the value of the last one or of all, and whether the end is reached."""

    steps: tuple[str, ...] = ()
    value: float = 0.0
    ended: bool = False

    @property
    def text(self) -> str:
        return "".join(self.steps)


def tree_of_thoughts(
    propose: Callable[[Path, int], Sequence[str]],
    value: Judge,
    *,
    breadth: int = 5,
    width: int = 3,
    depth: int = 3,
    solved: Callable[[Path], bool] = lambda path: False,
) -> Path:
    """Breadth-first search over thoughts (Yao et al. 2023, algorithm 1): at each depth every kept path is continued by
    `width` proposals, all are valued, and the `breadth` best are kept. Returns the first solved path, else the best.

    A path without proposals is a dead end. Raises DougongError when the root has none, or sizes are below 1.
    """
    if min(breadth, width, depth) < 1:
        raise DougongError(f"breadth {breadth}, width {width}, depth {depth}; expected at least 1 each")
    kept = [Path()]
    best = Path(value=-math.inf)
    for _ in range(depth):
        grown = [
            Path((*path.steps, step)) for path in kept for step in dict.fromkeys(list(propose(path, width))[:width])
        ]
        if not grown:
            break
        values = _finite(value([path.text for path in grown]))
        valued = [replace(path, value=each) for path, each in zip(grown, values, strict=True)]
        kept = sorted(valued, key=lambda path: -path.value)[:breadth]  # stable: of equals the first proposed
        for path in kept:
            if solved(path):
                return replace(path, ended=True)
        best = kept[0]  # deeper paths say more, so the last depth decides
    if not best.steps:
        raise DougongError("nothing was proposed for the first thought; look at what `propose` asks the model")
    return best


def proposals(
    engine: Generates, prompt: Prompt, sampling: Sampling, step_end: str = "\n", tokenizer: Tokenizer | None = None
) -> Callable[[Path, int], list[str]]:
    """A `propose` for `tree_of_thoughts`: the engine continues prompt and path by one step, `count` times. A prompt of
    ids, such as a chat template gives, wants the tokenizer."""

    def propose(path: Path, count: int) -> list[str]:
        bounded = replace(sampling, stop=(*sampling.stop, step_end))
        asked = _after(prompt, path.text, tokenizer)
        done = engine.generate([asked] * count, _seeded(bounded, count, len(path.steps)))
        return [each.text + step_end for each in done if each.text.strip()]

    return propose


def verified_search(
    engine: Generates,
    prompt: Prompt,
    verify: Judge,
    sampling: Sampling,
    *,
    beams: int = 4,
    width: int = 4,
    depth: int = 8,
    step_end: str = "\n",
    tokenizer: Tokenizer | None = None,
) -> list[Path]:
    """Beam search over steps, led by a verifier of partial solutions such as a process reward model (Lightman et al.
    2023; Snell et al. 2024): each of `beams` paths is continued by `width` steps, and the best of all are kept. Paths
    that the model ended stay in the race without growing. Returns the kept paths, the best first. A prompt of ids wants
    the tokenizer.

    Raises DougongError for sizes below 1.
    """
    if min(beams, width, depth) < 1:
        raise DougongError(f"beams {beams}, width {width}, depth {depth}; expected at least 1 each")
    kept = [Path()]
    for level in range(depth):
        open_paths = [path for path in kept if not path.ended]
        if not open_paths:
            break
        bounded = replace(sampling, stop=(*sampling.stop, step_end))
        prompts = [_after(prompt, path.text, tokenizer) for path in open_paths for _ in range(width)]
        done = engine.generate(prompts, _seeded(bounded, len(prompts), level))
        grown: dict[str, Path] = {}
        for at, each in enumerate(done):
            before = open_paths[at // width]
            # A stop string ends a step; the model's own end of text, or no room, ends the path.
            ended = each.finish_reason == "length" or not each.text or _ended_itself(each, engine)
            path = Path((*before.steps, each.text if ended else each.text + step_end), ended=ended)
            grown.setdefault(path.text + ("" if not ended else "\0"), path)
        fresh = list(grown.values())
        values = _finite(verify([path.text for path in fresh]))
        fresh = [replace(path, value=value) for path, value in zip(fresh, values, strict=True)]
        kept = sorted([path for path in kept if path.ended] + fresh, key=lambda path: -path.value)[:beams]
    return kept


def _ended_itself(done: Completion, engine: Generates) -> bool:
    ends = getattr(getattr(engine, "lm", None), "eos_ids", ())
    return bool(done.tokens) and done.tokens[-1] in ends


def _seeded(sampling: Sampling, count: int, level: int = 0) -> list[Sampling]:
    """`count` samplings that draw differently, and the same again in a repeated run where there is a seed."""
    if sampling.seed is None:
        return [sampling] * count
    return [replace(sampling, seed=sampling.seed + level * 100_003 + at) for at in range(count)]


def _finite(values: Sequence[float]) -> list[float]:
    """Values that are not numbers rank last."""
    return [value if math.isfinite(value) else -math.inf for value in values]
