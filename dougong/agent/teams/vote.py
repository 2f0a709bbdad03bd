"""Voting: several agents answer, and the answer of the most is taken (self-consistency, Wang et al. 2022,
arXiv:2203.11171, among agents)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dougong.agent.delegate import delegate
from dougong.agent.events import Voted
from dougong.agent.limits import Ended
from dougong.agent.teams.names import alike

if TYPE_CHECKING:
    from dougong.agent.agent import Agent
    from dougong.agent.events import Finished
    from dougong.agent.run import Run, Steps


def vote(run: Run, *, members: Sequence[Agent], key: Callable[[str], str] = alike) -> Steps[str]:
    """Ask every member; the answer that most give wins, as the first of them wrote it. Where several have the most, the
    model chooses among them.

    key: what of an answer is counted; two answers with the same are one. Members without an answer do not vote. Raises
    Ended where nobody answered.
    """
    ended = yield from delegate(run, [(member, run.task) for member in members])
    given = [each for each in ended if each.reason == "answered" and each.answer.strip()]
    if not given:
        raise Ended("error", f"none of the {len(ended)} members gave an answer: {_reasons(ended)}")
    first: dict[str, str] = {}
    for each in given:
        first.setdefault(key(each.answer), each.answer.strip())
    counts = Counter(key(each.answer) for each in given)
    most = max(counts.values())
    best = [first[each] for each, count in counts.items() if count == most]
    run.draft = best[0]
    winner = best[0] if len(best) == 1 else (yield from _chosen(run, best))
    run.tick()
    yield run.event(Voted, ballots={each.who: each.answer for each in given}, winner=winner)
    return winner


def _chosen(run: Run, best: list[str]) -> Steps[str]:
    """One of several answers, as the model chooses; the first where its choice cannot be read."""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"number": {"type": "integer", "minimum": 1, "maximum": len(best)}},
        "required": ["number"],
        "additionalProperties": False,
    }
    listed = "\n\n".join(f"[{number}] {answer}" for number, answer in enumerate(best, start=1))
    said = yield from run.ask_for(
        f"Task: {run.task}\n\nAnswers:\n{listed}\n\nWhich is best?", schema, "vote", whole=False
    )
    return best[int(said.get("number", 1)) - 1]


def _reasons(ended: Sequence[Finished]) -> str:
    return "; ".join(f"{each.who}: {each.reason}" for each in ended)
