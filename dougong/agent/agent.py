"""Agent: a model, tools, and a policy that says how they come to an answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, final, get_args

from dougong.agent.events import Event
from dougong.agent.guards.guard import Guard
from dougong.agent.held import sound
from dougong.agent.limits import Limits
from dougong.agent.memory import Memory, Window
from dougong.agent.outside import Approve, Live, Outside
from dougong.agent.patterns.react import react
from dougong.agent.run import Run, Steps
from dougong.agent.tool import Action
from dougong.base import DougongError
from dougong.chat import ChatModel, Message

if TYPE_CHECKING:
    from dougong.engine import Sampling

Policy = Callable[[Run], Steps[str]]
"""How an answer comes about: asks and calls through the run, yields its events, returns the answer."""
AskFor = Literal["derived", "writes"]


@final
@dataclass(frozen=True)
class Agent:
    """A model that works at tasks.

    model         answers
    tools         what it may call, by name
    policy        how it works: one of `dougong.agent.patterns`, `dougong.agent.teams`, or a function of your own
    limits        what one run may cost
    memory        what of a long conversation the model sees, and what outlasts the run
    guards        look at the task, at results of tools and at the answer. With guards on the output, pieces of answers
                  are not shown while they come
    approve       says yes or no to a call that changes things; without it the answer is no
    name          in events, and as a worker's tool
    instructions  the system message
    sampling      how the model draws tokens (default: its own way)
    ask           which writing calls are asked for: those whose arguments may come from outside ("derived", see
                  `dougong.agent.taint`), or all
    mark          put marks around what others wrote, and tell the model what they mean; for a model that is confused by
                  that, False. Approval is asked for either way
    """

    model: ChatModel
    tools: Sequence[Action] = ()
    policy: Policy = react
    limits: Limits = Limits()  # noqa: RUF009  (frozen)
    memory: Memory = Window()  # noqa: RUF009
    guards: Sequence[Guard] = ()
    approve: Approve | None = None
    name: str = "agent"
    instructions: str = ""
    sampling: Sampling | None = None
    ask: AskFor = "derived"
    mark: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "tools", tuple(self.tools))
        object.__setattr__(self, "guards", tuple(self.guards))
        names = [_action(each).tool.name for each in self.tools]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DougongError(f"two tools are named {twice[0]!r}; a model tells them apart by their names: rename one")
        if not self.name or {"/", "#"} & set(self.name):
            raise DougongError(f"an agent's name is {self.name!r}; expected a name without '/' and '#'")
        if self.ask not in get_args(AskFor):
            raise DougongError(f"ask is {self.ask!r}; expected 'derived' or 'writes'")

    def run(
        self, task: str, *, schema: dict[str, Any] | None = None, history: Sequence[Message] = ()
    ) -> Iterator[Event]:
        """Work at a task; what happens, as it happens. The last event is always Finished, with the answer and the
        reason of the end.

        schema: a JSON schema that the answer obeys (`Finished.value` is the parsed answer). history: what was said
        before. Nothing happens before the first event is asked for; closing the iterator ends the run.
        Raises DougongError for a task that is empty, and for a schema that is none.
        """
        return self.begin(task, Live(), schema=schema, history=history)

    def begin(
        self,
        task: str,
        outside: Outside,
        *,
        schema: dict[str, Any] | None = None,
        history: Sequence[Message] = (),
    ) -> Iterator[Event]:
        """`run`, with the outside given: a replay gives what was written down."""
        from dougong.agent.loop import events

        if not task.strip():
            raise DougongError("the task is empty; say what is to be done")
        if schema is not None:
            sound(schema)
        return events(Run(self, task, outside, history=history, schema=schema))


def _action(given: object) -> Action:
    if not isinstance(given, Action):
        raise DougongError(
            f"a tool is {given!r:.80}; expected an Action: put @tool before a function, or a worker() around an agent"
        )
    return given
