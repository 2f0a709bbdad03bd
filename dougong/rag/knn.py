"""kNN-LM (Khandelwal et al. 2020): a language model that looks up what followed in places like this one.

    p(y | x) = share * p_knn(y | x) + (1 - share) * p_lm(y | x)
    p_knn(y | x) ~ sum over the k nearest stored (h_i, y_i) with y_i = y of exp(-|h - h_i|^2 / temperature)

A stored place is the last hidden state h before the head, and the token y that followed. Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.parts.shapes import Float, Int
from dougong.rag.extras import need


@final
class KnnLM:
    """A causal language model with a datastore of places.

    share        of the looked-up distribution, 0 to 1
    k            neighbours of a place
    temperature  of their distances; None: the mean squared distance of the neighbours at hand, which suits any model
    """

    def __init__(self, lm: LanguageModel, *, share: float = 0.25, k: int = 16, temperature: float | None = None):
        if not 0 <= share <= 1 or k < 1 or (temperature is not None and temperature <= 0):
            raise DougongError(
                f"share is {share}, k is {k}, temperature is {temperature}; expected 0 to 1, at least 1, above 0"
            )
        if not lm.spec.causal:
            raise DougongError("a kNN-LM predicts the next token; this model reads both ways")
        self.lm, self.share, self.k, self.temperature = lm, share, k, temperature
        faiss = need("faiss", "a kNN-LM")
        self._index: Any = faiss.IndexFlatL2(lm.spec.width)
        self._next = np.zeros(0, dtype=np.int64)
        lm.model.eval()

    def __len__(self) -> int:
        return len(self._next)

    @torch.inference_mode()
    def add(self, rows: Iterable[Sequence[int]]) -> None:
        """Store every place of token rows, each at most as long as the model's context."""
        for row in rows:
            if len(row) < 2:
                continue
            tokens = torch.tensor([list(row)])
            hidden = self.lm.model(tokens).hidden[0, :-1].float().cpu().numpy()
            self._index.add(np.ascontiguousarray(hidden))
            self._next = np.concatenate([self._next, np.array(row[1:], dtype=np.int64)])

    @torch.inference_mode()
    def log_probs(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Natural log-probabilities of the token after each place. Without a stored place: the model's own."""
        out = self.lm.model(tokens)
        own = out.logits.float().log_softmax(-1)
        if not len(self):
            return own
        looked_up = self.neighbours(out.hidden.flatten(0, 1).float()).view(own.shape)
        return torch.lerp(own.exp(), looked_up, self.share).log()

    def neighbours(self, hidden: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
        """p_knn of each place."""
        count = min(self.k, len(self))
        distances, places = self._index.search(np.ascontiguousarray(hidden.cpu().numpy()), count)
        far = torch.from_numpy(distances).clamp(min=0)
        scale = self.temperature or far.mean(-1, keepdim=True).clamp(min=1e-6)
        weights = (-(far - far[:, :1]) / scale).softmax(-1)
        found = torch.zeros(len(hidden), self.lm.spec.vocab)
        return found.scatter_add_(1, torch.from_numpy(self._next[places]), weights).to(hidden.device)

    def loss(self, rows: Iterable[Sequence[int]]) -> tuple[float, int]:
        """(sum of -log p over the tokens after each row's first, how many those are), in nats."""
        total, count = 0.0, 0
        for row in rows:
            tokens = torch.tensor([list(row)])
            scores = self.log_probs(tokens[:, :-1])
            total += float(F.nll_loss(scores[0], tokens[0, 1:], reduction="sum"))
            count += len(row) - 1
        return total, count

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int], tokens: int) -> list[int]:
        """The most probable continuation, token by token; the whole text is read anew for each, so this is for
        looking, not for serving."""
        ids = list(prompt)
        for _ in range(tokens):
            window = ids[-self.lm.spec.context :] if self.lm.spec.context else ids
            ids.append(int(self.log_probs(torch.tensor([window]))[0, -1].argmax()))
        return ids[len(prompt) :]
