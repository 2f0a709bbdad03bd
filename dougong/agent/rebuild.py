"""An agent out of the trace of its run, for a replay: its model and tools answer from the trace alone."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, final

from dougong.agent.delegate import Delegate
from dougong.agent.events import Described, Event, Started
from dougong.agent.guards.guard import Finding, Guard, places
from dougong.agent.limits import Limits
from dougong.agent.memory import Memory, Recall, Summary, Window
from dougong.agent.tool import Action
from dougong.base import DougongError, record_from
from dougong.chat import ChatModel, Delta

if TYPE_CHECKING:
    from dougong.agent.agent import Agent


def rebuilt(events: Sequence[Event], who: str | None = None) -> Agent:
    """The agent whose run `who` (without numbers; default: the outermost) is in a trace.

    Raises DougongError where a trace cannot say what the agent was: a policy that is none of `dougong.agent.patterns`
    and `dougong.agent.teams`, a function among its settings.
    """
    starts: dict[str, Started] = {}
    for each in _of_kind(events):
        starts.setdefault(each.who, each)
        starts.setdefault(_unnumbered(each.who), each)
    start = starts[who] if who is not None else next(iter(starts.values()))
    try:
        return _agent(events, start, starts)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, DougongError):
            raise
        # The setup is what JSON made of it, and a trace may come from anywhere.
        told = f"the setup of {start.who} in the trace cannot be read ({type(error).__name__}: {error})"
        raise DougongError(f"{told}; replay it with its agent") from None


def _agent(events: Sequence[Event], start: Started, starts: dict[str, Started]) -> Agent:
    from dougong.agent.agent import Agent

    setup = start.setup
    tools = [
        _worker(events, each, f"{_unnumbered(start.who)}/{each.tool.name}", starts) if each.agent else _Told(each)
        for each in start.tools
    ]
    return Agent(
        _Silent(),
        tools,
        policy=_policy(setup["policy"], setup.get("settings", {}), partial(_members, events, start.who, starts)),
        limits=record_from(Limits, setup.get("limits", {}), "setup.limits"),
        memory=_memory(setup.get("memory", {})),
        guards=[_Named(each["name"], each["places"]) for each in setup.get("guards", ())],
        name=start.who.rpartition("/")[2].partition("#")[0],
        instructions=start.instructions,
        ask=setup.get("ask", "derived"),
        mark=setup.get("mark", True),
    )


def _of_kind(events: Sequence[Event]) -> list[Started]:
    return [each for each in events if isinstance(each, Started)]


def _unnumbered(who: str) -> str:
    """The name that all runs of one agent at one place have in common."""
    return re.sub(r"#\d+", "", who)


def _worker(events: Sequence[Event], described: Described, who: str, starts: dict[str, Started]) -> Delegate:
    """An agent that is a tool; of one that was never started nothing more is known, or needed."""
    from dougong.agent.agent import Agent

    agent = rebuilt(events, who) if who in starts else Agent(_Silent(), name=described.tool.name)
    made = Delegate(agent, described.tool.description)
    made.effect, made.trusted = described.effect, described.trusted
    return made


def _policy(name: Any, settings: dict[str, Any], members: Callable[[list[str]], list[Agent]]) -> Any:
    """A policy, or the pattern that another one is made of. members: agents by their names."""
    from dougong.agent import patterns, teams

    known: dict[str, Any] = {each: getattr(patterns, each) for each in patterns.__all__}
    known |= {each: getattr(teams, each) for each in teams.__all__ if each != "worker"}
    if name not in known:
        raise DougongError(f"the trace was made by the policy {name!r}, which is not ours; replay it with its agent")
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and "agents" in value:
            found[key] = tuple(members(value["agents"]))
        elif isinstance(value, dict) and "agent" in value:
            found[key] = None  # below
        elif isinstance(value, dict) and key == "verify":
            found[key] = _unasked(str(value.get("function")))
        elif isinstance(value, dict) and key == "base":
            found[key] = _policy(value.get("function"), value.get("settings", {}), members)
        elif value is None or isinstance(value, (dict, list)):
            raise DougongError(f"the trace cannot say what {key} of the policy {name} was; replay it with its agent")
        else:
            found[key] = value
    # Single ones of the same name are told apart by their order, as their runs are.
    single = [key for key in inspect.signature(known[name]).parameters if key in found and found[key] is None]
    found |= dict(zip(single, members([settings[key]["agent"] for key in single]), strict=True))
    return partial(known[name], **found) if found else known[name]


def _members(events: Sequence[Event], who: str, starts: dict[str, Started], names: list[str]) -> list[Agent]:
    """The members of a team, by the names of their runs: several of one name are numbered. Of one that was never
    started nothing more is known, or needed."""
    from dougong.agent.agent import Agent

    seen: Counter[str] = Counter()
    found: list[Agent] = []
    for name in names:
        seen[name] += 1
        tried = (f"{who}/{name}#{seen[name]}", f"{_unnumbered(who)}/{name}") if seen[name] > 1 else (f"{who}/{name}",)
        run = next((each for each in tried if each in starts), None)
        found.append(Agent(_Silent(), name=name) if run is None else rebuilt(events, run))
    return found


def _unasked(name: str) -> Any:
    """A verifier of that name: its verdicts are in the trace."""

    def verify(answer: str) -> str:
        raise DougongError("a replay asks no verifier")

    verify.__name__ = name
    return verify


def _memory(data: dict[str, Any]) -> Memory:
    kind, rest = data.get("kind"), {key: value for key, value in data.items() if key != "kind"}
    if kind == "Recall":
        from dougong.agent.recall import Store

        return Recall(Store(), rest.get("k", 3), _memory(rest.get("base", {"kind": "Window"})))
    kinds: dict[str, type[Memory]] = {"Window": Window, "Summary": Summary}
    if kind not in kinds:
        raise DougongError(f"the trace was made with the memory {kind!r}, which is not ours; replay it with its agent")
    return kinds[kind](**rest)


@final
class _Silent(ChatModel):
    """The model of a replay, which is never asked."""

    def stream(self, *_: Any, **__: Any) -> Iterator[Delta]:
        raise DougongError("a replay asks no model")


@final
class _Told(Action):
    """A tool as it was written down."""

    def __init__(self, described: Described):
        super().__init__(described.tool, described.effect, described.trusted, described.timeout)

    def perform(self, arguments: dict[str, Any]) -> object:
        raise DougongError("a replay calls no tool")


@final
class _Named(Guard):
    """A guard of which only the name and the places are known; its findings are in the trace."""

    def __init__(self, name: str, names: Sequence[str]):
        self.name, self.places = name, places(*names)

    def check(self, text: str, place: str) -> Finding | None:
        raise DougongError("a replay asks no guard")
