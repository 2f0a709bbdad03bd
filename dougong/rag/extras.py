"""Packages that only some of retrieval needs: imported where used, with an error that names the remedy."""

from __future__ import annotations

import importlib
from typing import Any

from dougong.base import DougongError


def need(module: str, what: str) -> Any:
    """Import `module`. Raises DougongError that says what needs it and how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if error.name is None or not module.startswith(error.name.split(".")[0]):
            raise
        package = module.split(".")[0]
        raise DougongError(
            f"{what} needs the package {package}, which is not here: pip install 'dougong[rag]'"
        ) from None
