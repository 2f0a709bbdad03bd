"""Rerankers: a cross-encoder reads query and text together; a language model puts texts in order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.chat import ChatModel
from dougong.parts.heads import Classifier
from dougong.rag.hit import Reranker
from dougong.rag.retrievers.rewriting import asked

if TYPE_CHECKING:
    from dougong.hub import LanguageModel


@final
class CrossEncoder(Reranker):
    """A classifier of pairs that `dougong.load` opens, framed as its tokenizer does: [CLS] query [SEP] text [SEP].

    The score is the logit of one label; of more, the last one's log-probability ("relevant" comes last).
    limit: tokens of a pair; of the two, the longer one is cut.
    """

    def __init__(self, lm: LanguageModel, limit: int = 512, batch: int = 16):
        if not isinstance(lm.spec.task, Classifier):
            raise DougongError(f"a reranker is a classifier of texts, but this model's task is {lm.spec.task}")
        lm.model.eval()
        self._lm, self._batch, self._core = lm, batch, framed(lm, limit)

    @torch.inference_mode()
    def scores(self, query: str, texts: list[str]) -> list[float]:
        encoded = self._core.encode_batch([(query, text) for text in texts])
        pairs = [(row.ids, row.type_ids) for row in encoded]
        device = self._lm.model.like.device
        kinds = getattr(self._lm.spec.embedding, "types", 0) or 0
        found = [0.0] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda place: len(pairs[place][0]))
        for first in range(0, len(order), self._batch):
            rows = order[first : first + self._batch]
            tokens, types, padding = padded([pairs[row] for row in rows])
            told = types.to(device) if kinds > 1 else None
            logits = self._lm.model(tokens.to(device), padding=padding.to(device), types=told).logits.float()
            for row, score in zip(rows, _score(logits).tolist(), strict=True):
                found[row] = score
        return found


def open_reranker(path: str) -> CrossEncoder:
    """The cross-encoder in a folder or of a hub id, in 8 or 4 bits with @int8 or @int4 behind it. Raises DougongError
    for a model that is none."""
    from dougong.compress import load
    from dougong.rag.embedder import in_bits

    name, how = in_bits(path)
    return CrossEncoder(load(name, quantize=how))


def framed(lm: LanguageModel, limit: int) -> Any:
    """What cuts pairs of texts to ids as the model's tokenizer frames them, at most `limit` tokens a pair; of the two
    the longer one is cut. Raises DougongError for a model without a tokenizer."""
    from tokenizers import Tokenizer as Core

    if lm.tokenizer is None:
        raise DougongError("the reranker has no tokenizer; add its tokenizer.json to the folder")
    core = Core.from_str(lm.tokenizer.to_json())
    core.encode_special_tokens = True  # a text cannot spell [SEP]
    core.enable_truncation(min(limit, lm.spec.context or limit), strategy="longest_first")
    core.no_padding()
    return core


def padded(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and types of rows as tensors (B, T) of the longest, and where they are padding."""
    longest = max(len(ids) for ids, _ in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    types, padding = torch.zeros_like(tokens), torch.ones_like(tokens, dtype=torch.bool)
    for place, (ids, sides) in enumerate(rows):
        tokens[place, : len(ids)] = torch.tensor(ids)
        types[place, : len(ids)] = torch.tensor(sides)
        padding[place, : len(ids)] = False
    return tokens, types, padding


def _score(logits: torch.Tensor) -> torch.Tensor:
    """One number a row out of (B, labels)."""
    return logits[:, 0] if logits.shape[1] == 1 else logits.log_softmax(-1)[:, -1]


ORDER = {
    "type": "object",
    "properties": {"order": {"type": "array", "items": {"type": "integer"}}},
    "required": ["order"],
    "additionalProperties": False,
}


@final
class Listwise(Reranker):
    """A language model puts numbered texts in order (RankGPT, Sun et al. 2023), in windows of `window` that slide from
    the end by half a window, so that a good text from far below can rise to the top.

    Numbers that it leaves out keep their order behind those that it names; an answer that cannot be read changes
    nothing.
    """

    def __init__(self, model: ChatModel, window: int = 20, longest: int = 800):
        if window < 2:
            raise DougongError(f"the window is {window} texts; expected at least 2")
        self._model, self._window, self._longest = model, window, longest

    def scores(self, query: str, texts: list[str]) -> list[float]:
        order = list(range(len(texts)))
        first = max(0, len(texts) - self._window)
        while len(texts) > 1:
            part = order[first : first + self._window]
            order[first : first + self._window] = self._sorted(query, texts, part)
            if first == 0:
                break
            first = max(0, first - self._window // 2)
        found = [0.0] * len(texts)
        for rank, place in enumerate(order):
            found[place] = 1.0 / (rank + 1)
        return found

    def _sorted(self, query: str, texts: list[str], part: list[int]) -> list[int]:
        shown = "\n".join(
            f"[{number}] {json.dumps(texts[place][: self._longest], ensure_ascii=False)}"
            for number, place in enumerate(part, start=1)
        )
        prompt = (
            f"Question: {query}\n\nPut these texts in order, the one that answers the question best first:\n{shown}"
        )
        numbers = asked(self._model, prompt, ORDER).get("order")
        named = [number - 1 for number in numbers if type(number) is int] if isinstance(numbers, list) else []
        chosen = list(dict.fromkeys(number for number in named if 0 <= number < len(part)))
        return [part[number] for number in [*chosen, *(n for n in range(len(part)) if n not in set(chosen))]]
