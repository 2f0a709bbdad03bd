"""Places of texts that a language model has read: the state it was in, and the token that followed (Khandelwal et al.
2020, section 2). The state is the last one, which the head reads; the paper's own is that before the last feed-forward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import safetensors
import safetensors.numpy
import torch
from torch import Tensor

from dougong.base import DougongError, atomic_file
from dougong.engine import Engine
from dougong.parts.shapes import Float, Int
from dougong.rag.extras import need

Kind = Literal["exact", "ivf"]
FORMAT = "dougong datastore 1"
FEW = 4096
"""Below this many places cells have too little to be learnt from: all are compared."""
_LEARNT = 40  # places that k-means wants of each cell
_MORE = 16  # candidates beyond those asked for, whose order rounding may have changed
_AT_ONCE = 1 << 24  # numbers of keys that are compared exactly at once, 64 MB


@final
class Datastore:
    """Keys (N, D) float32 and values (N,) int64: a hidden state of width D, and the id that followed, below `vocab`.

    kind  "exact" compares a query with all; "ivf" with the nearest sixteenth of the cells that k-means cuts them into,
          by codes of 8 bits, and then exactly with those that it finds (the paper's way; its codes are coarser)

    Raises DougongError for a size below 1 and an unknown kind.
    """

    def __init__(self, width: int, vocab: int, kind: Kind = "exact"):
        if width < 1 or vocab < 1:
            raise DougongError(f"width is {width}, vocab is {vocab}; expected at least 1 of each")
        if kind not in ("exact", "ivf"):
            raise DougongError(f"kind is {kind!r}; expected 'exact' or 'ivf'")
        self.width, self.vocab, self.kind = width, vocab, kind
        self.keys: Float[np.ndarray, "N D"] = np.zeros((0, width), dtype=np.float32)
        self.values: Int[np.ndarray, " N"] = np.zeros(0, dtype=np.int64)
        self._squares: Float[Tensor, " N"] | None = None  # of the keys' lengths; None: to be summed up
        self._cells: Any = None  # FAISS's index of the keys; None: none is needed, or it must be made

    def __len__(self) -> int:
        return len(self.values)

    def add(self, keys: Float[np.ndarray, "N D"], values: Int[np.ndarray, " N"]) -> None:
        """Store places. Raises DougongError for other shapes, keys that are not finite, and ids outside the
        vocabulary."""
        if keys.ndim != 2 or keys.shape[1] != self.width or values.shape != keys.shape[:1]:
            raise DougongError(
                f"keys are {keys.shape}, values {values.shape}; expected (places, {self.width}) and (places,)"
            )
        if not np.isfinite(keys).all():
            raise DougongError("a key is not finite; the model's weights are damaged, or overflow in their type")
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < self.vocab:
            raise DougongError(f"values are ids from {values.min()} to {values.max()}; the vocabulary has {self.vocab}")
        self.keys = np.concatenate((self.keys, keys.astype(np.float32)))
        self.values = np.concatenate((self.values, values.astype(np.int64)))
        self._squares = self._cells = None

    def add_texts(
        self,
        engine: Engine,
        texts: Sequence[Sequence[int]],
        length: int | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        """Store every place of token ids that has a token after it, as the engine's model reads them.

        Texts longer than `length` tokens (the model's context, if less is not said) are read in rows of that many, each
        beginning with the last token of the one before: so every token but a text's first is a value once. progress:
        told how many of how many rows are read. Raises DougongError for a model of another width or vocabulary.
        """
        self.check(engine.lm.spec.width, engine.lm.spec.vocab)
        rows = [row for text in texts for row in rows_of(text, engine.lm.spec.context if length is None else length)]
        keys, values = [], []
        for start in range(0, len(rows), 64):
            some = rows[start : start + 64]
            for row, states in zip(some, engine.hidden_states(some), strict=True):
                keys.append(states[:-1].float().cpu().numpy())
                values.append(np.array(row[1:], dtype=np.int64))
            if progress is not None:
                progress(min(start + 64, len(rows)), len(rows))
        if keys:
            self.add(np.concatenate(keys), np.concatenate(values))

    def check(self, width: int, vocab: int) -> None:
        """Raise DougongError unless this is a datastore for models of such a width and vocabulary."""
        if (width, vocab) != (self.width, self.vocab):
            raise DougongError(
                f"the datastore has keys of width {self.width} and a vocabulary of {self.vocab}, the model {width} and "
                f"{vocab}; make one with this model"
            )

    def search(
        self, queries: Float[np.ndarray, "N D"], k: int
    ) -> tuple[Float[np.ndarray, "N k"], Int[np.ndarray, "N k"]]:
        """Of each query the squared distances of the nearest `k` keys (all, if there are fewer), the nearest first, and
        their values. Distances do not depend on which queries share the call; which of equally near ones come is not
        said. Of "ivf", cells that hold fewer than k leave distances of infinity, with the value 0. Raises DougongError
        for queries of another width."""
        if queries.ndim != 2 or queries.shape[1] != self.width:
            raise DougongError(f"queries are {queries.shape}; expected (places, {self.width}), as wide as the keys")
        k = min(k, len(self))
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if k < 1 or not len(queries):
            return np.zeros((len(queries), 0), dtype=np.float32), np.zeros((len(queries), 0), dtype=np.int64)
        found = self._candidates(queries, min(k + _MORE, len(self)))
        there = found >= 0
        found = np.maximum(found, 0)
        far = np.empty(found.shape, dtype=np.float32)
        rows = max(1, _AT_ONCE // (found.shape[1] * self.width))
        for start in range(0, len(queries), rows):
            own = slice(start, start + rows)
            far[own] = np.square(self.keys[found[own]] - queries[own, None]).sum(-1)
        far[~there] = np.inf
        order = np.argsort(far, axis=1, kind="stable")[:, :k]
        values = np.where(there, self.values[found], 0)
        return np.take_along_axis(far, order, 1), np.take_along_axis(values, order, 1)

    def _candidates(self, queries: Float[np.ndarray, "N D"], count: int) -> Int[np.ndarray, "N count"]:
        """The places nearest to each query by distances that rounding may have moved, in no order; -1 where cells hold
        fewer."""
        cells = self._made()
        if cells is not None:
            params = need("faiss", "a datastore in cells").SearchParametersIVF(nprobe=-(-cells.nlist // 16))
            return cells.search(queries, count, params=params)[1]
        keys = torch.from_numpy(self.keys)
        if self._squares is None:
            self._squares = keys.square().sum(-1)
        found = []
        for some in torch.from_numpy(queries).split(max(1, _AT_ONCE // len(self))):
            # |q - k|^2 less |q|^2, which is the same for all: one product of matrices.
            # Of few queries the keys must stand on the left: the other way takes half as long again.
            near = torch.addmm(self._squares[:, None], keys, some.T, alpha=-2).T.contiguous()
            found.append(near.topk(count, largest=False, sorted=False).indices)
        return torch.cat(found).numpy()

    def _made(self) -> Any:
        """The cells; None where all are compared."""
        if self.kind == "exact" or len(self) < FEW:
            return None
        if self._cells is None:
            faiss = need("faiss", "a datastore in cells")
            cells = min(int(4 * math.sqrt(len(self))), len(self) // _LEARNT)
            coarse = faiss.IndexFlatL2(self.width)
            made = faiss.IndexIVFScalarQuantizer(coarse, self.width, cells, faiss.ScalarQuantizer.QT_8bit)
            made.train(np.ascontiguousarray(self.keys[:: max(1, len(self) // (64 * cells))]))
            made.add(self.keys)
            self._cells = made
        return self._cells

    def save(self, path: Path | str) -> None:
        """Write everything into one safetensors file, whole or not at all."""
        tensors = {"keys": self.keys, "values": self.values}
        cells = self._made()
        if cells is not None:
            tensors["cells"] = need("faiss", "a datastore in cells").serialize_index(cells)
        about = {"format": FORMAT, "vocab": str(self.vocab), "kind": self.kind}
        with atomic_file(path, "wb") as stream:
            stream.write(safetensors.numpy.save(tensors, about))

    def _take(self, cells: np.ndarray) -> None:
        """FAISS's index as it was saved, in bytes; where that is not one of these keys, it will be made anew."""
        try:
            found = need("faiss", "a datastore in cells").deserialize_index(cells)
        except (RuntimeError, ValueError, MemoryError):
            return
        if (found.ntotal, found.d) == self.keys.shape and hasattr(found, "nlist"):
            self._cells = found

    @staticmethod
    def load(path: Path | str) -> Datastore:
        """What `save` wrote. Raises DougongError, naming the path, where there is none."""
        if not Path(path).is_file():
            raise DougongError(f"there is no file {path}; make a datastore first")
        try:
            with safetensors.safe_open(str(path), "numpy") as file:
                about, names = file.metadata() or {}, file.keys()
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, safetensors.SafetensorError) as error:
            raise DougongError(f"{path} cannot be read as a datastore: {error}") from None
        keys, values, vocab = tensors.get("keys"), tensors.get("values"), about.get("vocab", "")
        if about.get("format") != FORMAT or keys is None or values is None or not vocab.isdecimal():
            raise DougongError(f"{path} is no datastore; make one with Datastore(...).save")
        try:
            width = keys.shape[1] if keys.ndim == 2 else 0
            made = Datastore(width, int(vocab), "ivf" if about.get("kind") == "ivf" else "exact")
            made.add(keys, values)
        except DougongError as error:
            raise DougongError(f"{path} is damaged: {error}") from None
        if "cells" in tensors:
            made._take(tensors["cells"])
        return made


def rows_of(text: Sequence[int], length: int) -> list[list[int]]:
    """A text in rows of at most `length` tokens, each beginning with the last of the one before; none for a text with
    nothing to predict. Raises DougongError for rows of fewer than 2."""
    if length < 2:
        raise DougongError(f"length is {length}; a row needs at least 2 tokens, one to read and one to follow it")
    return [list(text[start : start + length]) for start in range(0, len(text) - 1, length - 1)]
