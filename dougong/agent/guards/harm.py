"""Requests for harm: rules that name the act and its victim (English, Chinese), and a classifier made on AdvBench."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from dougong.agent.guards.disguise import readings
from dougong.agent.guards.guard import INPUT, Finding, Guard, Place
from dougong.agent.guards.harm_rules import HARMS
from dougong.agent.guards.harm_rules_zh import HARMS_ZH
from dougong.agent.guards.linear import Linear
from dougong.agent.guards.rules import Rule, first
from dougong.agent.guards.segments import segments
from dougong.agent.guards.weights import shipped


@final
class Harm(Guard):
    """Blocks requests for harm. rules, classifier: what decides; either alone will do (`rules=()`, or
    `classifier=None`). The default is both, with the shipped classifier."""

    name = "harm"

    def __init__(
        self,
        rules: Sequence[Rule] = (*HARMS, *HARMS_ZH),
        classifier: Linear | str | None = "harm",
        places: frozenset[Place] = INPUT,
    ):
        self.places = places
        self._rules = tuple(rules)
        self._classifier = shipped(classifier) if isinstance(classifier, str) else classifier

    def check(self, text: str, place: Place) -> Finding | None:
        for reading in readings(text):
            found = first(self._rules, reading)
            if found is not None:
                return Finding(self.name, f"{found.name} (a rule)")
            for piece in segments(reading) if self._classifier is not None else ():
                if self._classifier is not None and self._classifier.fires(piece):
                    grams = ", ".join(map(repr, self._classifier.why(piece)))
                    return Finding(self.name, f"a request for harm, by its words: {grams}")
        return None
