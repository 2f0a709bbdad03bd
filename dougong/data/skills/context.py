"""Answering from a given context, and saying so when the context does not hold the answer.

Both skills ask in the same words about contexts made in the same way, so that only reading tells them apart.
"""

from __future__ import annotations

import dataclasses
from random import Random

from dougong.data.skills.problem import Difficulty, Problem, user
from dougong.data.skills.words import COLOURS, COUNTED, FOODS, NAMES, PLACES, THINGS

SKILL = "context"
UNKNOWN_SKILL = "unknown"
UNKNOWN = "I do not know."
NUMBERS = tuple(str(number) for number in range(2, 21))


@dataclasses.dataclass(frozen=True)
class Relation:
    """How a fact of one kind is told and asked; {thing} is drawn where the sentence has one."""

    told: str
    asked: str
    values: tuple[str, ...]
    things: tuple[str, ...] = ("",)


RELATIONS: dict[str, Relation] = {
    "place": Relation("{name} lives in {value}.", "Where does {name} live?", PLACES),
    "colour": Relation("{name} has a {value} {thing}.", "What colour is the {thing} of {name}?", COLOURS, THINGS),
    "number": Relation("{name} has {value} {thing}.", "How many {thing} does {name} have?", NUMBERS, COUNTED),
    "food": Relation("{name} likes {value}.", "What does {name} like?", FOODS),
    "friend": Relation("{name} met {value}.", "Whom did {name} meet?", NAMES),
}


def draw(random: Random, difficulty: Difficulty) -> Problem:
    """One question whose answer stands in the context."""
    facts = _facts(random, difficulty)
    task, name, thing, value = random.choice(facts)
    return _problem(SKILL, task, facts, name, thing, value)


def draw_unknown(random: Random, difficulty: Difficulty) -> Problem:
    """One question whose answer the context does not hold: it tells nothing of that person, or something else."""
    facts = _facts(random, difficulty)
    task, name, thing, _ = random.choice(facts)
    told = {fact[1] for fact in facts} | {fact[3] for fact in facts}
    if random.random() < 0.5:
        name = random.choice([other for other in NAMES if other not in told])
    else:
        task = random.choice([other for other in RELATIONS if other != task])  # each person has one fact
        thing = random.choice(RELATIONS[task].things)
    return _problem(UNKNOWN_SKILL, task, facts, name, thing, UNKNOWN)


def _facts(random: Random, difficulty: Difficulty) -> list[tuple[str, str, str, str]]:
    """Facts (relation, name, thing, value) about different people, all values of a kind different."""
    count = random.randint(*difficulty.context_sentences)
    names = random.sample(NAMES, count)
    # Most contexts repeat a relation, so that the answer cannot be told by its kind alone.
    kinds = random.sample(tuple(RELATIONS), min(len(RELATIONS), max(1, count - 1)))
    facts: list[tuple[str, str, str, str]] = []
    for name in names:
        task = random.choice(kinds)
        used = {value for _, _, _, value in facts} | set(names)
        value = random.choice([value for value in RELATIONS[task].values if value not in used])
        facts.append((task, name, random.choice(RELATIONS[task].things), value))
    return facts


def _problem(
    skill: str, task: str, facts: list[tuple[str, str, str, str]], name: str, thing: str, answer: str
) -> Problem:
    told = " ".join(RELATIONS[kind].told.format(name=who, value=value, thing=what) for kind, who, what, value in facts)
    asked = RELATIONS[task].asked.format(name=name, thing=thing)
    text = f"{told}\n{asked}"
    return Problem(skill, task, text, user(text), answer)
