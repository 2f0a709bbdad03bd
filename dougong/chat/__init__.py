"""Chat: messages, tools and models that answer; a local engine, any OpenAI-compatible endpoint, a script for tests.

`message` what is said; `delta` an answer as it comes; `model` the protocol; `format` a model's own template: prompts
out of messages; `reader` answers out of text; `styles` how models write calls; `local`, `remote`, `scripted` the
models; `scripted_server` a script served over HTTP.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dougong.chat.delta import Delta, collect
from dougong.chat.message import Message, Tool, ToolCall, Usage
from dougong.chat.model import ChatError, ChatModel

if TYPE_CHECKING:
    from dougong.chat.format import ChatFormat
    from dougong.chat.local import LocalChat
    from dougong.chat.reader import AnswerReader
    from dougong.chat.remote import RemoteChat
    from dougong.chat.scripted import Failure, ScriptedChat, Step

__all__ = [
    "AnswerReader",
    "ChatError",
    "ChatFormat",
    "ChatModel",
    "Delta",
    "Failure",
    "LocalChat",
    "Message",
    "RemoteChat",
    "ScriptedChat",
    "Step",
    "Tool",
    "ToolCall",
    "Usage",
    "collect",
]

_HOMES = {
    "AnswerReader": "reader",
    "ChatFormat": "format",
    "Failure": "scripted",
    "LocalChat": "local",
    "RemoteChat": "remote",
    "ScriptedChat": "scripted",
    "Step": "scripted",
}


def __getattr__(name: str) -> Any:  # a client of an endpoint need not load an engine
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"dougong.chat.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'dougong.chat' has no attribute {name!r}")
