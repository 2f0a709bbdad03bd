"""The one exception that users are meant to read."""

from __future__ import annotations


class DougongError(Exception):
    """A mistake in the input or the surroundings, told in one line: the thing, its value, the remedy.

    The command line prints the message without a traceback and exits with status 1.
    """
