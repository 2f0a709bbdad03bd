"""Documents as one flat array of token ids with their boundaries, on disk memory-mapped."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dougong.base import DougongError, atomic_directory, read_json, write_json
from dougong.data.documents import Document

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer

# (documents done, bytes of text done)
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, eq=False)
class TokenStore:
    """Encoded documents, each closed by its end-of-document token.

    ids: (tokens,) uint16 or uint32. starts: (documents + 1,) int64; document i is ids[starts[i]:starts[i + 1]].
    names: the documents' sources. bytes_per_document: (documents,) int64, UTF-8 bytes of their texts.
    start_id: what stands before a document's first token when it is read (the tokenizer's bos, else its eos).
    """

    ids: np.ndarray
    starts: np.ndarray
    names: tuple[str, ...]
    bytes_per_document: np.ndarray
    vocab_size: int
    eos_id: int
    start_id: int

    @property
    def documents(self) -> int:
        """How many documents."""
        return len(self.names)

    @property
    def tokens(self) -> int:
        """How many tokens, the end-of-document tokens among them."""
        return len(self.ids)

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return int(self.bytes_per_document.sum())

    @property
    def bytes_per_token(self) -> float:
        """Compression of the tokenizer on this text; end-of-document tokens are not counted."""
        return self.bytes / max(1, self.tokens - self.documents)

    def document(self, index: int) -> np.ndarray:
        """(n,) ids of one document, its end-of-document token last."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    def digest(self) -> str:
        """SHA-256 of the ids and boundaries: the same data has the same digest wherever it is stored."""
        digest = hashlib.sha256(self.starts.astype("<i8").tobytes())
        for at in range(0, self.tokens, 1 << 20):
            digest.update(self.ids[at : at + (1 << 20)].astype("<u4").tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write a folder (ids.npy, starts.npy, bytes.npy, tokens.json), whole or not at all."""
        with atomic_directory(path) as folder:
            np.save(folder / "ids.npy", self.ids)
            np.save(folder / "starts.npy", self.starts)
            np.save(folder / "bytes.npy", self.bytes_per_document)
            facts = {"vocab_size": self.vocab_size, "eos_id": self.eos_id, "start_id": self.start_id}
            write_json(folder / "tokens.json", {**facts, "names": list(self.names)})

    @classmethod
    def load(cls, path: str | Path) -> TokenStore:
        """Open a saved store; the ids stay on disk (memory-mapped). Raises DougongError when it is not whole."""
        path = Path(path)
        if not (path / "tokens.json").is_file():
            raise DougongError(f"{path} is not a folder of tokens (no tokens.json); encode the documents again")
        facts = read_json(path / "tokens.json")
        try:
            ids = np.load(path / "ids.npy", mmap_mode="r")
            starts, sizes = np.load(path / "starts.npy"), np.load(path / "bytes.npy")
            store = cls(
                ids, starts, tuple(facts["names"]), sizes, facts["vocab_size"], facts["eos_id"], facts["start_id"]
            )
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise DougongError(f"{path} is damaged ({error}); encode the documents again") from error
        if len(starts) != len(store.names) + 1 or len(sizes) != len(store.names) or starts[-1] != len(ids):
            raise DougongError(f"{path} is damaged: its boundaries do not match its {len(ids)} ids; encode again")
        return store


def document_end(tokenizer: Tokenizer) -> int | None:
    """The id that ends a document: the tokenizer's eos, or its bos where that ends texts too.

    A chat tokenizer's eos ends a turn (ChatML's <|im_end|>), and its bos (<|endoftext|>) is the border of documents.
    """
    return tokenizer.bos_id if tokenizer.bos_id in tokenizer.eos_ids else tokenizer.eos_id


def encode_documents(
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    end_id: int | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> TokenStore:
    """Encode documents in batches of `batch` texts and append `end_id` (default: `document_end`) to each.

    Text that looks like a special token is encoded as plain text. `progress(documents, bytes)` is called after each
    batch with the totals so far. Raises DougongError when there are no documents, the tokenizer has no end-of-text
    token, or an id lies outside its vocabulary.
    """
    eos = document_end(tokenizer) if end_id is None else end_id
    if eos is None:
        raise DougongError(
            "the tokenizer has no end-of-text token (eos); documents need one to end with, or pass end_id"
        )
    vocab = tokenizer.vocab_size
    kind = np.uint16 if vocab <= 1 << 16 else np.uint32
    start = tokenizer.bos_id if tokenizer.bos_id is not None else eos
    pieces: list[np.ndarray] = []
    names: list[str] = []
    sizes: list[int] = []
    remaining = iter(documents)
    while group := list(islice(remaining, batch)):
        for document, ids in zip(group, tokenizer.encode_batch([document.text for document in group]), strict=True):
            array = np.array([*ids, eos], dtype=np.int64)
            if array.min() < 0 or array.max() >= vocab:
                bad = int(array.max()) if array.max() >= vocab else int(array.min())
                raise DougongError(
                    f"{document.source} has the token id {bad}, but the vocabulary has {vocab} entries; "
                    "the tokenizer and its vocabulary do not match"
                )
            pieces.append(array.astype(kind))
            names.append(document.source)
            sizes.append(len(document.text.encode("utf-8")))
        if progress is not None:
            progress(len(names), sum(sizes))
    if not pieces:
        raise DougongError("there are no documents to encode")
    starts = np.zeros(len(pieces) + 1, dtype=np.int64)
    np.cumsum([len(piece) for piece in pieces], out=starts[1:])
    return TokenStore(np.concatenate(pieces), starts, tuple(names), np.array(sizes, dtype=np.int64), vocab, eos, start)
