"""A tool that an agent may use: an `Action`, and `@tool`, which makes one of a function.

An action says what it is called and takes (a JSON schema, for the model), whether it only reads or also changes things
(`effect`), and whether its results are the work of strangers (`trusted` false: an agent then minds what they say).
However it fails, `call` raises a `ToolError` whose one line a model can act upon.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import inspect
import json
import threading
import types
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar, final, get_args, overload

from dougong.agent.check import check
from dougong.agent.schema import Signature, of_class, signature_of
from dougong.base import DougongError, record_to
from dougong.chat import Tool

Effect = Literal["read", "write"]
R = TypeVar("R")


@final
class ToolError(DougongError):
    """A tool was asked for something wrong, failed, or took too long."""


class Action(ABC):
    """A tool and what doing it means.

    tool     name, description and JSON schema of the arguments, as a model sees them
    effect   "read" leaves the world as it is; "write" may change it
    trusted  false: what it returns comes from outside and may hold instructions that are nobody's order
    timeout  seconds that a call may take; None: as long as it likes
    """

    def __init__(self, tool: Tool, effect: Effect, trusted: bool, timeout: float | None) -> None:
        if effect not in get_args(Effect):
            raise DougongError(f"the effect of the tool {tool.name} is {effect!r}; expected 'read' or 'write'")
        if timeout is not None and not timeout > 0:
            raise DougongError(f"the timeout of the tool {tool.name} is {timeout!r}; expected seconds above zero")
        self.tool = tool
        self.effect: Effect = effect
        self.trusted = trusted
        self.timeout = timeout

    @abstractmethod
    def perform(self, arguments: dict[str, Any]) -> object:
        """Do it, with arguments that obey the schema; any exception is a failure. What comes back becomes text."""

    @final
    def call(self, arguments: dict[str, Any]) -> str:
        """Check `arguments`, do it within the timeout, and tell the result as text.

        Raises ToolError, and nothing else but KeyboardInterrupt. A call that is late is left behind, not stopped: what
        it was doing may still happen (tools that ship with dougong end their own work by then).
        """
        name = self.tool.name
        try:
            check(self.tool.parameters, arguments)
            if self.timeout is None:
                return as_text(self.perform(arguments))
            return _within(self.timeout, lambda: as_text(self.perform(arguments)))
        except ToolError:
            raise
        except (_Late, TimeoutError):
            if self.timeout is None:
                raise ToolError(f"{name} failed: what it waited for took too long") from None
            raise ToolError(f"{name} took longer than its {self.timeout:g} seconds; ask it for less") from None
        except DougongError as error:
            raise ToolError(f"{name}: {error}") from error
        except RecursionError as error:
            raise ToolError(f"{name} failed: too deeply nested") from error
        except (Exception, SystemExit) as error:
            said = " ".join(str(error).split())[:300]
            raise ToolError(f"{name} failed: {type(error).__name__}{': ' if said else ''}{said}") from error


@final
class FunctionAction(Action):
    """A function as an action; calling it as a function still works. One that decorates a method is, taken from an
    object, that object's action."""

    def __init__(
        self,
        function: Callable[..., Any],
        effect: Effect = "read",
        trusted: bool = True,
        timeout: float | None = None,
        name: str | None = None,
        description: str | None = None,
    ) -> None:
        self.function = function
        self.settings = (effect, trusted, timeout, name, description)
        self.signature: Signature = signature_of(function)
        made = Tool(
            name or self.signature.name,
            self.signature.description if description is None else description,
            self.signature.parameters,
        )
        super().__init__(made, effect, trusted, timeout)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __get__(self, instance: object, owner: type | None = None) -> FunctionAction:
        """The action of `instance`, where this one is of a method of its class."""
        if instance is None or not of_class(self.function):
            return self
        return FunctionAction(types.MethodType(self.function, instance), *self.settings)

    def perform(self, arguments: dict[str, Any]) -> object:
        if of_class(self.function):
            raise DougongError(f"it is a method without its object; take it from one, as in thing.{self.tool.name}")
        result = self.function(**self.signature.read(arguments))
        return _awaited(result, self.timeout) if inspect.isawaitable(result) else result


@overload
def tool(function: Callable[..., Any], /) -> FunctionAction: ...
@overload
def tool(
    *,
    effect: Effect = "read",
    trusted: bool = True,
    timeout: float | None = None,
    name: str | None = None,
    description: str | None = None,
) -> Callable[[Callable[..., Any]], FunctionAction]: ...
def tool(function: Callable[..., Any] | None = None, /, **settings: Any) -> Any:
    """Make an action of a function: `@tool`, or `@tool(effect="write", trusted=False, timeout=5)`.

    The schema is that of its signature (see `dougong.agent.schema`), the descriptions those of its docstring. A
    function is taken for a reader whose results are your own (trusted): say so when it changes things, or hands on
    what others wrote. It may be async. Raises DougongError, naming the parameter, for a signature that a schema cannot
    say.
    """
    if function is not None:
        return FunctionAction(function)
    return lambda given: FunctionAction(given, **settings)


def as_text(result: object) -> str:
    """Text as it is, anything else as JSON. Lone surrogates, which no encoder takes, become "?".

    Raises DougongError for an iterator: it says nothing yet, and may never end.
    """
    if isinstance(result, (Iterator, AsyncIterator)):
        raise DougongError(f"it returned {type(result).__name__}, which gives its items one by one; return a list")
    if not isinstance(result, str):
        if dataclasses.is_dataclass(result) and not isinstance(result, type):
            result = record_to(result)
        result = json.dumps(result, ensure_ascii=False, default=_plain)
    return result.encode("utf-8", "replace").decode("utf-8")


def _plain(value: object) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return record_to(value)
    if isinstance(value, Mapping):
        return dict(value)
    return sorted(value, key=repr) if isinstance(value, (set, frozenset)) else str(value)


class _Late(Exception):
    """Time is up."""


def _within(seconds: float, work: Callable[[], R]) -> R:
    """What `work` returns or raises, or _Late. Python cannot stop a thread: a late one ends when it ends."""
    done: list[R] = []
    failed: list[BaseException] = []
    context = contextvars.copy_context()

    def run() -> None:
        try:
            done.append(context.run(work))
        except BaseException as error:  # handed on below, in the thread that waits
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if failed:
        raise failed[0]
    if not done:
        raise _Late
    return done[0]


def _awaited(result: Any, timeout: float | None) -> Any:
    """Wait for a coroutine, in a thread of its own where this one already runs a loop. When late it is cancelled."""

    async def wait() -> Any:
        return await asyncio.wait_for(result, timeout)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(wait())
    return _within(threading.TIMEOUT_MAX, lambda: asyncio.run(wait()))
