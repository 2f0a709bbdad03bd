"""More thought: with scripted engines, whose every word is known, and once each with a real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from dougong.align.preferences import Pair
from dougong.align.reason import Path, proposals, self_consistency, think, tree_of_thoughts, verified_search
from dougong.align.revise import accepted, best_of_n, critique_and_revise, preferences
from dougong.align.rewards import Task
from dougong.base import DougongError
from dougong.engine import Completion, Engine, Sampling
from tests.align.models import says, talker, user

WARM = Sampling(max_tokens=8, temperature=1.0, seed=0)


class Scripted:
    """Answers each prompt's text as told; keeps what it was asked."""

    def __init__(self, answer: Callable[[str, int], str], tokenizer=None):
        self.answer, self.tokenizer = answer, tokenizer
        self.asked: list[tuple[str, Sampling]] = []

    def generate(self, prompts: Sequence, sampling=None) -> list[Completion]:
        samplings = sampling if isinstance(sampling, list) else [sampling] * len(prompts)
        done = []
        for prompt, how in zip(prompts, samplings, strict=True):
            text = prompt if isinstance(prompt, str) else self.tokenizer.decode(prompt, skip_special=False)
            said, reason = self.answer(text, len(self.asked)), "stop"
            self.asked.append((text, how))
            ids = self.tokenizer.encode(said) if self.tokenizer else list(range(len(said)))
            if len(ids) > how.max_tokens:
                ids, reason = ids[: how.max_tokens], "length"
                said = self.tokenizer.decode(ids) if self.tokenizer else said[: how.max_tokens]
            done.append(Completion(ids, said, [], reason, []))
        return done


def thinking(budget: int, least: int = 0, says: str = "abc") -> tuple:
    lm = talker()
    engine = Scripted(lambda text, _: "yes" if "end" in text else says, lm.tokenizer)
    found = think(engine, lm.tokenizer, lm.tokenizer.encode("1?"), budget, WARM, least=least, wait="wait",
                  start="start", end="end")  # fmt: skip
    return found, engine


def test_a_budget_bounds_the_thinking():
    found, engine = thinking(10)
    assert (found.thinking, found.answer, found.forced) == ("abc", "yes", False)
    assert engine.asked[-1][0] == "1?startabc\nend\n\n"
    assert engine.asked[0][1].stop == ("end",) and engine.asked[0][1].max_tokens == 10
    found, _ = thinking(2)
    assert (found.thinking, found.forced) == ("ab", True)
    found, engine = thinking(0)
    assert found.thinking == "" and found.forced and len(engine.asked) == 1
    assert found.tokens == len("start" + "\nend\n\n") + 3


def test_thinking_that_ends_early_goes_on():
    found, _ = thinking(20, least=10)
    assert found.thinking == "abcwaitabc" and not found.forced
    found, _ = thinking(9, least=9)
    assert found.thinking == "abcwaitab" and found.forced
    for budget, least in ((3, 4), (-1, 0)):
        with pytest.raises(DougongError, match="expected 0 <= least <= budget"):
            thinking(budget, least)


@pytest.mark.parametrize("says", ["abc", "abc\n"])
def test_a_line_break_stands_once_before_the_end_of_thinking(says):
    """As chat templates write it, whether the model wrote one itself or not."""
    _, engine = thinking(10, says=says)
    assert engine.asked[-1][0] == "1?startabc\nend\n\n"


def test_most_chains_decide():
    texts = ["so the answer is 7", "answer: 8", "the answer is 7", "", "\\boxed{8}", "#### 7"]
    vote = self_consistency(Scripted(lambda _, at: texts[at]), "q", 6, replace(WARM, max_tokens=64))
    assert (vote.answer, vote.share) == ("7", 0.5)
    assert vote.answers == ("7", "8", "7", "", "8", "7")
    assert self_consistency(Scripted(lambda *_: ""), "q", 3, WARM).answer == ""
    tie = self_consistency(Scripted(lambda _, at: "ba"[at % 2]), "q", 4, WARM)
    assert tie.answer == "b"  # of equals the one first drawn
    seeds = Scripted(lambda *_: "x")
    self_consistency(seeds, "q", 3, WARM)
    assert len({how.seed for _, how in seeds.asked}) == 3
    with pytest.raises(DougongError, match="sample some that differ"):
        self_consistency(Scripted(lambda *_: "x"), "q", 2, Sampling(temperature=0.0))


def number(texts: Sequence[str]) -> list[float]:
    return [float(text.replace("\n", "") or 0) for text in texts]


def test_a_tree_finds_what_greed_misses():
    """Greedily 9 is the best first digit, but only paths from 1 go on: 1, 15, 159 beats 9, 90."""
    tree = {"": ["9", "1", "3"], "9": ["0"], "1": ["5"], "15": ["9"]}

    def propose(path: Path, count: int) -> list[str]:
        return tree.get(path.text, [])[:count]

    best = tree_of_thoughts(propose, number, breadth=3, width=3, depth=3)
    assert (best.text, best.value) == ("159", 159)
    assert tree_of_thoughts(propose, number, breadth=1, depth=3).text == "90"
    solved = tree_of_thoughts(propose, number, solved=lambda path: path.text == "15")
    assert solved.text == "15" and solved.ended
    nowhere = tree_of_thoughts(propose, lambda texts: [float("nan")] * len(texts), breadth=3)
    assert nowhere.text == "159"  # values that are not numbers rank last; the order proposed remains
    with pytest.raises(DougongError, match="nothing was proposed"):
        tree_of_thoughts(lambda *_: [], number)
    with pytest.raises(DougongError, match="breadth 0"):
        tree_of_thoughts(propose, number, breadth=0)


def test_a_verifier_leads_the_search():
    engine = Scripted(lambda text, at: str(at % 3))
    found = verified_search(engine, "q: ", number, WARM, beams=2, width=3, depth=3)
    assert [path.text for path in found] == ["2\n2\n2\n", "2\n2\n1\n"]
    assert found[0].value == 222 and not found[0].ended
    ends = verified_search(Scripted(lambda *_: ""), "q: ", number, WARM, beams=2, width=2, depth=5)
    assert [path.ended for path in ends] == [True]
    step = proposals(Scripted(lambda _, at: ["a", " ", "b"][at]), "q", WARM)
    assert step(Path(), 3) == ["a\n", "b\n"]


def test_with_a_real_engine():
    lm = talker(context=256)
    engine = Engine(lm)
    found = think(engine, lm.tokenizer, lm.tokenizer.encode("1?"), 6, WARM)
    assert found.tokens >= 6 or not found.forced
    assert len(self_consistency(engine, "1?", 3, WARM).texts) == 3
    paths = verified_search(engine, "1?", lambda texts: [-len(text) for text in texts], WARM, depth=2)
    assert paths and paths == sorted(paths, key=lambda path: -path.value)
    by_ids = verified_search(
        engine, lm.tokenizer.encode("1?"), lambda texts: [-len(text) for text in texts], WARM, depth=2,
        tokenizer=lm.tokenizer,
    )  # fmt: skip
    assert len(by_ids) == len(paths) and by_ids == sorted(by_ids, key=lambda path: -path.value)
    with pytest.raises(DougongError, match="give the tokenizer"):
        proposals(engine, [1, 2], WARM)(Path(), 1)
    again = verified_search(engine, "1?", lambda texts: [-len(text) for text in texts], WARM, depth=2)
    assert again == paths  # a seed repeats


def letters(samples) -> list[float]:
    return [float(sum(c in "abcdefgh" for c in each.text)) for each in samples]


TASKS = [Task((user(f"{at}?"),), source=f"t:{at}") for at in range(3)]


def test_the_best_of_n():
    lm = talker()
    engine = Engine(lm)
    ranked = best_of_n(engine, lm.tokenizer, TASKS, letters, 4, WARM)
    for each in ranked:
        assert list(each.rewards) == sorted(each.rewards, reverse=True) == letters(each.samples)
        assert len({sample.text for sample in each.samples}) > 1
    mean = sum(sum(each.rewards) for each in ranked) / 12
    assert sum(each.rewards[0] for each in ranked) / 3 > mean
    kept = accepted(ranked, least=2.0, most=2)
    texts = [(each.messages[0]["content"], each.messages[1]["content"]) for each in kept]
    assert len(set(texts)) == len(texts) and all(sum(c in "abcdefgh" for c in text) >= 2 for _, text in texts)
    pairs = preferences(ranked)
    assert all(isinstance(pair, Pair) and pair.margin > 0 for pair in pairs) and pairs
    assert preferences(best_of_n(engine, lm.tokenizer, TASKS, lambda samples: [1.0] * len(samples), 2, WARM)) == []
    with pytest.raises(DougongError, match="sample some that differ"):
        best_of_n(engine, lm.tokenizer, TASKS, letters, 2, Sampling(temperature=0.0))


def test_critique_and_revision():
    lm = talker(context=512)

    def answer(text: str, at: int) -> str:
        return ["first", "too long", "short", "too dull", " "][at]

    engine = Scripted(answer, lm.tokenizer)
    (found,) = critique_and_revise(
        engine, lm.tokenizer, TASKS[:1], ["be brief", "be kind"], WARM, "{principle}?", "{principle}!"
    )
    assert (found.first, found.critiques, found.answers) == ("first", ("too long", "too dull"), ("short", "short"))
    assert found.pair() == Pair(TASKS[0].messages, (says("short"),), (says("first"),), source="t:0")
    assert found.conversation().messages[-1] == says("short")
    last = engine.asked[-1][0]
    assert "short" in last and "too dull" in last and "be kind!" in last and "first" not in last
    with pytest.raises(DougongError, match="does not show"):
        critique_and_revise(engine, lm.tokenizer, TASKS, ["x"], critique="what is wrong?")
