"""Our actions as an MCP server, over stdio or streamable HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from dougong.agent.mcp.link import need
from dougong.agent.tool import Action, ToolError
from dougong.base import DougongError

if TYPE_CHECKING:
    from mcp.server import Server

NAME = "dougong"
_HERE = ("127.0.0.1", "localhost", "::1")


def make_server(actions: Sequence[Action], name: str = NAME) -> Server[Any]:
    """The package's server with `actions` in it: effects become its read-only hints, a ToolError an error's text.

    Raises DougongError where two actions have one name.
    """
    need("mcp")
    import anyio.to_thread
    from mcp.server import Server
    from mcp_types import CallToolResult, ListToolsResult, TextContent, Tool, ToolAnnotations

    known = {action.tool.name: action for action in actions}
    if len(known) < len(actions):
        names = [action.tool.name for action in actions]
        raise DougongError(f"two tools are called {next(n for n in names if names.count(n) > 1)!r}; name each once")

    def offered(action: Action) -> Tool:
        hints = ToolAnnotations(read_only_hint=action.effect == "read", open_world_hint=not action.trusted)
        made = action.tool
        return Tool(name=made.name, description=made.description, input_schema=dict(made.parameters), annotations=hints)

    async def list_tools(context: Any, parameters: Any) -> ListToolsResult:
        return ListToolsResult(tools=[offered(action) for action in actions])

    async def call_tool(context: Any, parameters: Any) -> CallToolResult:
        action = known.get(parameters.name)
        if action is None:
            text, failed = f"unknown tool {parameters.name!r:.80}; known: {', '.join(known)}", True
        else:
            try:
                call = lambda: action.call(dict(parameters.arguments or {}))  # noqa: E731
                # A thread each, so that one slow tool holds up nobody; it is left behind when the client gives up.
                text, failed = await anyio.to_thread.run_sync(call, abandon_on_cancel=True), False
            except ToolError as error:
                text, failed = str(error), True
        return CallToolResult(content=[TextContent(type="text", text=text)], is_error=failed)

    return Server(name, on_list_tools=list_tools, on_call_tool=call_tool)


def serve_stdio(actions: Sequence[Action], name: str = NAME) -> None:
    """Serve on standard input and output until the input ends."""
    import anyio
    from mcp import stdio_server

    server = make_server(actions, name)

    async def run() -> None:
        async with stdio_server() as (reading, writing):
            await server.run(reading, writing, server.create_initialization_options())

    anyio.run(run)


def serve_http(
    actions: Sequence[Action],
    host: str = "127.0.0.1",
    port: int = 8765,
    name: str = NAME,
    ready: Callable[[str], object] | None = None,
) -> None:
    """Serve at http://HOST:PORT/mcp until interrupted. port 0: a free one. `ready` is told the address.

    There are no keys, so it listens on this machine alone: raises DougongError for any other host (put a proxy that
    knows its users before it), and for a port that is taken.
    """
    if host not in _HERE:
        raise DougongError(f"the host is {host!r}; tools are served without keys, so only on {', '.join(_HERE)}")
    if not 0 <= port < 65536:
        raise DougongError(f"the port is {port}; expected 0 to 65535")
    server = make_server(actions, name)
    import uvicorn

    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise DougongError(f"port {port} of {host} cannot be used: {error.strerror}; choose another") from None
    app = server.streamable_http_app(host=host)
    with listening:
        shown = f"[{host}]" if ":" in host else host
        if ready is not None:
            ready(f"http://{shown}:{listening.getsockname()[1]}/mcp")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
