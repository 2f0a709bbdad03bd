"""JSON tool calls: choose the function that the request needs, among one to three, and fill in its arguments."""

from __future__ import annotations

import dataclasses
import json
from random import Random
from typing import Any

from dougong.data.skills.problem import Difficulty, Problem, user
from dougong.data.skills.words import NAMES, PLACES, WORDS

SKILL = "calls"


@dataclasses.dataclass(frozen=True)
class Function:
    """A function that a prompt may offer: its parameters, each with its kind, and how it is asked for."""

    name: str
    parameters: dict[str, str]
    asked: tuple[str, ...]

    @property
    def compact(self) -> str:
        """The signature as prompts show it."""
        return f"{self.name}({', '.join(self.parameters)})"

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON schema as chat templates and servers take it."""
        kinds = {name: {"type": "integer" if kind == "number" else "string"} for name, kind in self.parameters.items()}
        parameters = {"type": "object", "properties": kinds, "required": list(kinds)}
        return {"type": "function", "function": {"name": self.name, "parameters": parameters}}


FUNCTIONS: tuple[Function, ...] = (
    Function("weather", {"city": "place"}, ("How is the weather in {city}?", "Weather in {city}")),
    Function("time", {"city": "place"}, ("What time is it in {city}?", "Time in {city}")),
    Function("call", {"name": "name"}, ("Call {name}.", "Ring {name}.")),
    Function("mail", {"to": "name", "about": "word"}, ("Write to {to} about the {about}.", "Mail {to}: {about}")),
    Function("timer", {"minutes": "number"}, ("Wake me in {minutes} minutes.", "Timer: {minutes} minutes")),
    Function("buy", {"item": "word", "count": "number"}, ("Buy {count} of {item}.", "Order {item}, {count} times")),
    Function("search", {"query": "word"}, ("Look up {query}.", "Find {query}")),
    Function("train", {"start": "place", "end": "place"}, ("Train from {start} to {end}.", "Go from {start} to {end}")),
    Function("light", {"level": "number"}, ("Set the light to {level}.", "Light at {level}")),
    Function("play", {"song": "word"}, ("Play the song {song}.", "I want to hear {song}")),
)


def draw(random: Random, difficulty: Difficulty) -> Problem:
    """One request with the functions on offer; exactly one of them serves it."""
    offered = random.sample(FUNCTIONS, min(len(FUNCTIONS), random.randint(*difficulty.tools)))
    chosen = random.choice(offered)
    arguments: dict[str, Any] = {}
    for name, kind in chosen.parameters.items():
        arguments[name] = _value(random, kind, taken=arguments.values())
    asked = random.choice(chosen.asked[: difficulty.phrasings]).format(**arguments)
    text = f"Tools: {', '.join(function.compact for function in offered)}\n{asked}"
    answer = json.dumps({"name": chosen.name, "arguments": arguments})
    # The request alone is the key: the same request among other tools stays on the same side.
    key = f"{chosen.name} {json.dumps(arguments)}"
    schemas = tuple(function.schema for function in offered)
    return Problem(SKILL, chosen.name, key, user(text), answer, grader="json", tools=schemas)


def _value(random: Random, kind: str, taken: Any) -> str | int:
    if kind == "number":
        return random.randint(2, 30)
    words = {"place": PLACES, "name": NAMES, "word": WORDS}[kind]
    return random.choice([word for word in words if word not in taken])
