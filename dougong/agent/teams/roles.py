"""Role chat: two agents in their roles talk to each other until the work is done (CAMEL, Li et al. 2023,
arXiv:2303.17760)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from dougong.agent.delegate import delegate, stopped
from dougong.agent.limits import Ended
from dougong.agent.teams.names import names

if TYPE_CHECKING:
    from dougong.agent.agent import Agent
    from dougong.agent.run import Run, Steps

DONE = "DONE"
_DONE = re.compile(rf"^[\W_]*{DONE}\b[\W_]*?(?=[\w\-+(\[{{<\"“‘]|$)", re.MULTILINE)


def role_chat(run: Run, *, leader: Agent, doer: Agent, turns: int = 6) -> Steps[str]:
    """The leader says what comes next, the doer does it, up to `turns` times, until a line of the leader begins with
    DONE. What follows is the result (DONE alone takes the doer's last words for it).

    Their roles are their agents' own instructions. Without a DONE the doer's last words are the answer. Raises Ended
    where one of them gives no answer.
    """
    leading, doing = names((leader, doer))
    talk: list[str] = []
    for _ in range(max(1, turns)):
        order = yield from _speak(run, leader, _leading(run.task, doing, talk))
        done = _DONE.search(order)
        if done:
            return order[done.end() :].strip() or run.draft
        talk.append(f"{leading}: {order}")
        run.draft = yield from _speak(run, doer, _doing(run.task, leading, talk))
        talk.append(f"{doing}: {run.draft}")
    return run.draft


def _speak(run: Run, agent: Agent, task: str) -> Steps[str]:
    (ended,) = yield from delegate(run, [(agent, task)])
    if ended.reason != "answered":
        raise Ended("error", stopped(ended))
    return ended.answer.strip()


def _leading(task: str, doer: str, talk: list[str]) -> str:
    return (
        f"Task: {task}\n\n{_told(talk)}You lead, {doer} does the work. Give {doer} the next instruction, one at a "
        f"time. When the task is done, write {DONE} and then the whole result."
    )


def _doing(task: str, leader: str, talk: list[str]) -> str:
    return f"Task: {task}\n\n{_told(talk)}Do what {leader} asked for last, and tell the result."


def _told(talk: list[str]) -> str:
    return "So far:\n" + "\n\n".join(talk) + "\n\n" if talk else ""
