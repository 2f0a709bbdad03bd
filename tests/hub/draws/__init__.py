"""Configurations of transformers' families, drawn at random: a module for each kin of families, with its DRAWN."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

Draw = Callable[[random.Random, int], dict[str, Any]]

DRAWN: dict[str, Draw] = {}
for _module in sorted(Path(__file__).parent.glob("*.py")):
    if _module.stem != "__init__":
        DRAWN |= getattr(import_module(f"{__name__}.{_module.stem}"), "DRAWN", {})
