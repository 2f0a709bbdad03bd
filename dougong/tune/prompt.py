"""Soft prompts: trained vectors that stand before every text, under token ids behind the vocabulary's.

Prompt tuning (Lester et al. 2021, arXiv 2104.08691) trains the vectors; P-tuning (Liu et al. 2021, arXiv 2103.10385)
makes them with a small network, which is dropped once it is trained. `model(tokens)` puts the virtual tokens in front
of each document and takes their places out of what it gives, so that packing, padding and losses need not know. Who
runs a model on a state of its own (the engine) writes the ids itself: `prompt_ids`; rows with different ids then have
different prompts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from dougong.base import DougongError
from dougong.parts.embedding import EmbeddingLayer
from dougong.parts.grouped import Groups
from dougong.parts.shapes import Float
from dougong.tune.insert import prompted
from dougong.tune.method import Method, at_least, kind
from dougong.tune.places import Patterns, Site
from dougong.tune.tuning import Plugin, Tuning, tunings

if TYPE_CHECKING:
    from dougong.model import Model


class Prompting(Method, ABC):
    """What the methods with virtual tokens share. An encoder-decoder's stand before the source."""

    kinds: ClassVar[tuple[type, ...]] = (EmbeddingLayer,)

    tokens: int

    def places(self, model: Model, match: Patterns | None) -> list[tuple[str, Site]]:
        if match is not None:
            raise DougongError(f"{type(self).__name__} takes no match: it goes on the token embedding")
        return [embedding_of(model)]

    def install(self, model: Model, places: list[tuple[str, Site]], tuning: Tuning, generator: torch.Generator) -> None:
        reserve(model, tuning, self.tokens)
        super().install(model, places, tuning, generator)
        tuning.undo += prompted(reader(model), tunings(model))


def reader(model: Model) -> Model:
    """The model that reads the prompt: the encoder where there is one."""
    return model if model.encoder is None else model.encoder


def embedding_of(model: Model) -> tuple[str, EmbeddingLayer]:
    return ("embedding" if model.encoder is None else "encoder.embedding"), reader(model).embedding


def reserve(model: Model, tuning: Tuning, count: int) -> None:
    """Give the adapter `count` token ids behind those in use, until it is detached."""
    embedding = embedding_of(model)[1]
    first = embedding.vocab + embedding.virtual
    tuning.ids = range(first, first + count)
    embedding.virtual += count

    def release() -> None:
        left = [other.ids.stop for other in tunings(model).values() if other.ids and other is not tuning]
        embedding.virtual = max(left, default=embedding.vocab) - embedding.vocab

    tuning.undo.append(release)


def prompt_ids(model: Model, name: str = "default") -> list[int]:
    """The token ids that stand for an adapter's prompt, to be put before a text; none for other methods."""
    from dougong.tune.tuning import tuning_named

    return list(tuning_named(model, name).ids)


@dataclass(frozen=True)
class PromptTuning(Prompting):
    """tokens: virtual tokens. start: from rows of tokens drawn from the vocabulary, or from normal numbers of their
    mean size."""

    tagged: ClassVar[bool] = True

    tokens: int = 20
    start: Literal["vocabulary", "random"] = "vocabulary"

    def __post_init__(self) -> None:
        at_least(self, tokens=1)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> PromptPlugin:
        assert isinstance(site, EmbeddingLayer)
        return PromptPlugin(tuning, starting(site, self.tokens, self.start, generator))


def starting(
    site: EmbeddingLayer, count: int, start: Literal["vocabulary", "random"], generator: torch.Generator
) -> Float[Tensor, "n D"]:
    drawn = torch.randint(0, site.vocab, (count,), generator=generator)
    rows = site.storage.rows(drawn.to(site.storage.dense().device)).detach()
    rows = rows.to(kind(rows)).clone()
    if start == "random":
        noise = torch.randn(rows.shape, generator=generator).to(rows.device, rows.dtype)
        rows = noise * rows.square().mean().sqrt()
    return rows


class PromptBase(Plugin, ABC):
    """Vectors (n, D) for the adapter's own ids, in whatever row they stand."""

    @abstractmethod
    def vectors(self) -> Float[Tensor, "n D"]: ...

    def change(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        ids = self.tuning.ids
        own = (x >= ids.start) & (x < ids.stop)
        made = self.vectors()[(x - ids.start).clamp(0, len(ids) - 1)]
        return torch.where(own[..., None], made.to(y.dtype), y)

    def forward(self, layer: Any, x: Tensor, y: Tensor, groups: Groups | None = None) -> Tensor:
        return self.change(layer, x, y)


class PromptPlugin(PromptBase):
    def __init__(self, tuning: Tuning, vectors: Tensor):
        super().__init__(tuning)
        self.prompt = nn.Parameter(vectors)

    def vectors(self) -> Float[Tensor, "n D"]:
        return self.prompt


@dataclass(frozen=True)
class PTuning(Prompting):
    """tokens: virtual tokens. hidden: width of the network that makes them (0: the model's). network: two hidden
    layers with ReLU, or a bidirectional LSTM of `depth` layers and a hidden layer."""

    tagged: ClassVar[bool] = True

    tokens: int = 20
    hidden: int = 0
    network: Literal["mlp", "lstm"] = "mlp"
    depth: int = 2

    def __post_init__(self) -> None:
        at_least(self, tokens=1, hidden=0, depth=1)

    def plug(self, path: str, site: Site, tuning: Tuning, generator: torch.Generator) -> PTuningPlugin:
        assert isinstance(site, EmbeddingLayer)
        return PTuningPlugin(tuning, starting(site, self.tokens, "vocabulary", generator), self, generator)


class PTuningPlugin(PromptBase):
    """vectors = network(table), of PEFT's form."""

    def __init__(self, tuning: Tuning, table: Tensor, method: PTuning, generator: torch.Generator):
        super().__init__(tuning)
        width = table.shape[1]
        hidden = method.hidden or width
        self.table = nn.Parameter(table)
        self.lstm: nn.LSTM | None = None
        if method.network == "lstm":
            self.lstm = nn.LSTM(width, hidden, method.depth, bidirectional=True, batch_first=True)
            sizes = (2 * hidden, 2 * hidden, width)
        else:
            sizes = (width, hidden, hidden, width)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.head = nn.Sequential(*layers[:-1])
        self.to(table.device, table.dtype)
        refill(self, generator, but=(self.table,))

    def vectors(self) -> Float[Tensor, "n D"]:
        x = self.table if self.lstm is None else self.lstm(self.table[None])[0][0]
        return self.head(x)


@torch.no_grad()
def refill(module: nn.Module, generator: torch.Generator, but: tuple[Tensor, ...] = ()) -> None:
    """Draw a small network from the generator instead of the global one: uniform within +- 1/sqrt(inputs)."""
    for parameter in module.parameters():
        if not any(parameter is each for each in but):
            bound = parameter.shape[-1] ** -0.5
            parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
