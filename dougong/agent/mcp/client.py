"""Another's MCP server as actions: its tools, untrusted, for as long as a `with` block lasts."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from dougong.agent.mcp.link import Link, need
from dougong.agent.tool import Action, Effect, ToolError
from dougong.base import DougongError
from dougong.chat import Tool

if TYPE_CHECKING:
    from mcp_types import CallToolResult, ContentBlock
    from mcp_types import Tool as Offered

PAGES, MANY = 50, 1000
"""pages of a list of tools, for one that never ends; tools in it"""
SAID = 64_000
"""characters of a tool's description and schema: all of them stand in every prompt"""
_NAME = re.compile(r"[\w./:-]{1,100}")

logging.getLogger("mcp").addHandler(logging.NullHandler())  # what matters in it comes as a ToolError


@contextmanager
def connect(
    server: str | Sequence[str],
    *,
    seconds: float = 30.0,
    only: Sequence[str] | None = None,
    hints: bool = True,
    prefix: str = "",
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
) -> Iterator[list[Action]]:
    """The tools of an MCP server, within a `with` block; afterwards the server is ended and its tools fail by name.

    server       "http://..." (streamable HTTP), or a command for stdio: "python server.py", or its words in a list
    seconds      that connecting, listing and each call may take
    only         the tools wanted; others are not looked at
    hints        whether to believe a tool that says it only reads; every other tool is taken for a writer. What a
                 server says of itself is no proof: take False for one that you do not trust
    prefix       put before the names, where two servers offer the same
    environment  variables for the command besides the few that are safe; folder: where it runs
    Raises ToolError where the server cannot be started or reached, is late, or offers tools that are malformed.
    """
    if not seconds > 0:
        raise DougongError(f"the seconds of an MCP server are {seconds!r}; expected more than none")
    with Link(_transport(server, environment, folder), _named(server), seconds) as link:
        offered = _listed(link)
        missing = sorted(set(only or ()) - {tool.name for tool in offered})
        if missing:
            raise ToolError(f"{link.name} has no tool {missing[0]!r:.80}; it has: {', '.join(t.name for t in offered)}")
        yield [_Remote(link, tool, hints, prefix) for tool in offered if only is None or tool.name in only]


@final
class _Remote(Action):
    """A tool on the other side of a link."""

    def __init__(self, link: Link, offered: Offered, hints: bool, prefix: str) -> None:
        self.link = link
        self.there = offered.name
        reads = hints and offered.annotations is not None and offered.annotations.read_only_hint is True
        effect: Effect = "read" if reads else "write"
        schema = _schema(link.name, offered)
        # The link ends a call in time; this is for a link that hangs itself.
        super().__init__(
            Tool(prefix + offered.name, offered.description or "", schema), effect, False, link.seconds + 5
        )

    def perform(self, arguments: dict[str, Any]) -> str:
        result: CallToolResult = self.link.ask(lambda client: client.call_tool(self.there, arguments))
        text = _text(result)
        if result.is_error:
            said = text or "it failed and does not say why"
            raise ToolError(said if said.startswith(f"{self.there}:") else f"{self.tool.name}: {said}")
        return text


def _listed(link: Link) -> list[Offered]:
    """All tools that a server offers. Raises ToolError where two have one name, or the list has no end."""
    found: list[Offered] = []
    cursor: str | None = None
    for _ in range(PAGES):
        page = link.ask(lambda client, cursor=cursor: client.list_tools(cursor=cursor))
        found += page.tools
        if len(found) > MANY:
            raise ToolError(f"{link.name} offers more than {MANY:,} tools")
        cursor = page.next_cursor
        if not cursor:
            break
    else:
        raise ToolError(f"{link.name} lists its tools without an end; more than {PAGES} pages")
    twice = [name for name, count in Counter(tool.name for tool in found).items() if count > 1]
    if twice:
        raise ToolError(f"{link.name} offers two tools called {twice[0]!r:.80}")
    return found


def _schema(server: str, offered: Offered) -> dict[str, Any]:
    """The schema of a tool's arguments. Raises ToolError that names the tool where it is none."""
    from jsonschema import Draft202012Validator, SchemaError

    schema = dict(offered.input_schema)
    where = f"the tool {offered.name!r:.80} of {server}"
    try:
        Draft202012Validator.check_schema(schema)
    except (SchemaError, RecursionError) as error:
        raise ToolError(f"{where} has a malformed schema: {str(error).splitlines()[0][:200]}") from None
    if not _NAME.fullmatch(offered.name):
        expected = "expected 1 to 100 letters, digits and _ - . / :"
        raise ToolError(f"{where} has a name of {len(offered.name)} characters; {expected}")
    size = len(offered.description or "") + len(json.dumps(schema, ensure_ascii=False))
    if size > SAID:
        raise ToolError(f"{where} is described in {size:,} characters; expected at most {SAID:,}")
    return schema


def _text(result: CallToolResult) -> str:
    """What a result says; what is no text is named."""
    parts = [_block(block) for block in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _block(block: ContentBlock) -> str:
    if block.type == "text":
        return block.text
    if block.type == "resource" and hasattr(block.resource, "text"):
        return block.resource.text  # pyright: ignore[reportAttributeAccessIssue]
    if block.type == "resource_link":
        return f"[{block.name}: {block.uri}]"
    return f"[{block.type}, {getattr(block, 'mime_type', None) or 'of no said type'}; not shown]"


def _named(server: str | Sequence[str]) -> str:
    return f"the MCP server {server if isinstance(server, str) else shlex.join(server)!s:.80}"


def _transport(server: str | Sequence[str], environment: Mapping[str, str] | None, folder: str | None) -> Any:
    """What the package's client connects to: an address, or a command's parameters."""
    if isinstance(server, str) and server.startswith(("http://", "https://")):
        return server
    words = shlex.split(server) if isinstance(server, str) else [str(word) for word in server]
    if not words:
        raise DougongError("the MCP server is empty; give an address or a command")
    stdio = need("mcp.client.stdio")
    given = dict(environment) if environment else None
    return stdio.StdioServerParameters(command=words[0], args=words[1:], env=given, cwd=folder)
