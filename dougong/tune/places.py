"""Where adapters go: modules of a model chosen by patterns on their paths."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from torch import nn

from dougong.base import DougongError, nearest
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.grouped import GroupedLinear
from dougong.parts.linear import Linear

Site = Linear | GroupedLinear | EmbeddingLayer
Patterns = str | Sequence[str]


def matches(path: str, patterns: Patterns) -> bool:
    """Whether a module's path fits one of the patterns and none of those that begin with "!".

    A pattern is a shell glob. Without a dot it speaks of the last name alone ("q", "[qv]"), with dots of the whole path
    ("layers.3.*", "*.mixer.o"). Patterns come as a list or in one text, apart by spaces or commas.
    """
    listed = patterns.replace(",", " ").split() if isinstance(patterns, str) else list(patterns)
    wanted = [each for each in listed if not each.startswith("!")] or ["*"]
    return any(_fits(path, each) for each in wanted) and not any(
        _fits(path, each[1:]) for each in listed if each.startswith("!")
    )


def _fits(path: str, pattern: str) -> bool:
    return fnmatchcase(path if "." in pattern else path.rpartition(".")[2], pattern)


def sites(model: nn.Module) -> Iterator[tuple[str, Site]]:
    """Every Linear, GroupedLinear and token embedding with its path, in the order of the model.

    Linears inside adapters are none of them.
    """

    def walk(module: nn.Module, path: str) -> Iterator[tuple[str, Site]]:
        if isinstance(module, (Linear, GroupedLinear, EmbeddingLayer)):
            yield path, module
        for name, child in module.named_children():
            if name != "adapters":
                yield from walk(child, f"{path}.{name}" if path else name)

    yield from walk(model, "")


def chosen(model: nn.Module, patterns: Patterns, kinds: tuple[type, ...]) -> list[tuple[str, Site]]:
    """The sites of the given kinds that the patterns choose.

    Raises DougongError, with names that are there, where they choose none.
    """
    there = [(path, site) for path, site in sites(model) if isinstance(site, kinds)]
    found = [(path, site) for path, site in there if matches(path, patterns)]
    if not found:
        said = patterns if isinstance(patterns, str) else " ".join(patterns)
        raise DougongError(
            f"match {said!r} fits no module of this model{nearest(said, last_names(p for p, _ in there))}"
        )
    return found


def last_names(paths: Iterable[str]) -> list[str]:
    """The last names of paths, each once, in order."""
    return list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
