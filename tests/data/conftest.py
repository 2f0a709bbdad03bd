"""What the data tests share: a tokenizer of bytes with three special tokens, small stores, the real data's folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from dougong.data import Document, TokenStore, encode_documents


@dataclass(frozen=True)
class Rendered:
    ids: list[int]
    assistant: list[bool]


class ByteTokenizer:
    """Bytes are ids 0..255; begin, end of text and padding follow."""

    vocab_size = 259
    bos_id: int | None = 256
    eos_id: int | None = 257
    pad_id = 258

    @property
    def eos_ids(self) -> tuple[int, ...]:
        return () if self.eos_id is None else (self.eos_id,)

    def encode(self, text: str, *, bos: bool = False, specials: bool = False) -> list[int]:
        return ([256] if bos else []) + list(text.encode("utf-8"))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def render_ids(self, messages, tools=None, add_generation_prompt=False) -> Rendered:
        ids, assistant = [256], [False]
        for message in messages:
            content = self.encode(message["content"] + str(message.get("tool_calls", "")))
            spoken = message["role"] == "assistant"
            ids += [ord(message["role"][0]), *content, 257]
            assistant += [False, *[spoken] * len(content), spoken]
        return Rendered(ids, assistant)


@pytest.fixture(scope="session")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def store_of(texts: list[str], tokenizer: object = None) -> TokenStore:
    documents = [Document(text, f"document-{i}") for i, text in enumerate(texts)]
    return encode_documents(tokenizer or ByteTokenizer(), documents)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_store():
    return store_of


@pytest.fixture(scope="session")
def real_data() -> Path:
    folder = os.environ.get("DOUGONG_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("DOUGONG_DATA is not set: the real data sets are not here")
    return Path(folder)
