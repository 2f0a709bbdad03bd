"""dougong: the large-language-model stack as parts that interlock.

`import dougong` stays light: torch loads when a function here is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["LanguageModel", "__version__", "load", "save"]

if TYPE_CHECKING:
    from dougong.compress import load
    from dougong.hub import LanguageModel, save


def __getattr__(name: str) -> Any:
    if name == "load":
        from dougong.compress import load

        return load
    if name in ("LanguageModel", "save"):
        from dougong import hub

        return getattr(hub, name)
    raise AttributeError(f"module 'dougong' has no attribute {name!r}")
