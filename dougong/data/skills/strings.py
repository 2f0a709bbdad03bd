"""Operations on a word spelt letter by letter, so that the tokenizer does not hide the letters."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from dougong.data.skills.problem import Difficulty, Problem, user
from dougong.data.skills.words import LETTERS, WORDS

SKILL = "strings"

# task: (ways to ask, the answer). Where a task needs one letter or a number, it is the second argument.
TASKS: dict[str, tuple[tuple[str, ...], Callable[[str, str], str]]] = {
    "reverse": (
        ("Reverse: {word}", "Write backwards: {word}"),
        lambda word, _: " ".join(reversed(word)),
    ),
    "uppercase": (
        ("Uppercase: {word}", "Write in capitals: {word}"),
        lambda word, _: " ".join(word.upper()),
    ),
    "first": (("First letter of: {word}", "How does it begin: {word}"), lambda word, _: word[0]),
    "last": (("Last letter of: {word}", "How does it end: {word}"), lambda word, _: word[-1]),
    "length": (("How many letters: {word}", "Length of: {word}"), lambda word, _: str(len(word))),
    "count": (
        ("How many {extra} in: {word}", "Count the {extra} in: {word}"),
        lambda word, letter: str(word.count(letter)),
    ),
    "repeat": (
        ("Repeat {extra} times: {plain}", "Write {extra} times: {plain}"),
        lambda word, times: " ".join([word] * int(times)),
    ),
}
CHINESE = {
    "reverse": "倒过来写：{word}",
    "uppercase": "改成大写：{word}",
    "first": "第一个字母：{word}",
    "last": "最后一个字母：{word}",
    "length": "有几个字母：{word}",
    "count": "有几个 {extra}：{word}",
    "repeat": "写 {extra} 遍：{plain}",
}


def draw(random: Random, difficulty: Difficulty) -> Problem:
    """One problem of this skill."""
    task = random.choice(tuple(TASKS))
    # Repeating copies a word whole, so there it is a real one.
    word = _word(random, difficulty, real=task == "repeat")
    extra = ""
    if task == "count":
        extra = random.choice(word if random.random() < 0.8 else LETTERS)
        if random.random() < 0.5:  # words of few letters rarely repeat one; let some do
            places = random.sample(range(len(word)), min(len(word), random.randint(1, 2)))
            word = "".join(extra if place in places else letter for place, letter in enumerate(word))
    elif task == "repeat":
        extra = str(random.randint(*difficulty.repeats))
    phrases, solve = TASKS[task]
    phrase = CHINESE[task] if random.random() < difficulty.chinese else random.choice(phrases[: difficulty.phrasings])
    text = phrase.format(word=" ".join(word), plain=word, extra=extra)
    return Problem(SKILL, task, f"{task} {word} {extra}", user(text), solve(word, extra))


def _word(random: Random, difficulty: Difficulty, real: bool) -> str:
    low, high = difficulty.word_length
    words = [word for word in WORDS if low <= len(word) <= high]
    if words and (real or random.random() >= difficulty.random_letters):
        return random.choice(words)
    return "".join(random.choice(LETTERS) for _ in range(random.randint(low, high)))
