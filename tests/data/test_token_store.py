"""Documents become ids with boundaries; what is saved is what is loaded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import Document, TokenStore, encode_documents

TEXTS = st.lists(st.text(max_size=30), min_size=1, max_size=10)


@given(TEXTS, st.integers(1, 4))
def test_every_document_is_there_and_closed(tokenizer, texts, batch):
    documents = [Document(text, str(i)) for i, text in enumerate(texts)]
    seen = []
    store = encode_documents(tokenizer, documents, batch=batch, progress=lambda *done: seen.append(done))
    assert store.documents == len(texts)
    assert store.bytes == sum(len(text.encode()) for text in texts)
    assert store.tokens == store.bytes + len(texts)
    for i, text in enumerate(texts):
        assert store.document(i).tolist() == [*text.encode(), tokenizer.eos_id]
    assert seen[-1] == (len(texts), store.bytes) and len(seen) == -(-len(texts) // batch)


def test_saved_is_loaded_and_memory_mapped(tmp_path, make_store):
    store = make_store(["one", "two", "三"])
    store.save(tmp_path / "tokens")
    loaded = TokenStore.load(tmp_path / "tokens")
    assert isinstance(loaded.ids, np.memmap) and loaded.ids.dtype == np.uint16
    assert loaded.ids.tolist() == store.ids.tolist() and loaded.starts.tolist() == store.starts.tolist()
    assert loaded.digest() == store.digest() != make_store(["one", "two", "四"]).digest()
    assert (loaded.names, loaded.bytes, loaded.start_id) == (store.names, store.bytes, 256)
    assert loaded.bytes_per_token == 1


def test_a_damaged_store_is_refused(tmp_path, make_store):
    with pytest.raises(DougongError, match=r"no tokens.json"):
        TokenStore.load(tmp_path)
    make_store(["one"]).save(tmp_path / "tokens")
    np.save(tmp_path / "tokens/starts.npy", np.array([0, 99]))
    with pytest.raises(DougongError, match="boundaries do not match"):
        TokenStore.load(tmp_path / "tokens")
    (tmp_path / "tokens/ids.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DougongError, match="is damaged"):
        TokenStore.load(tmp_path / "tokens")


def test_a_tokenizer_that_does_not_match_is_refused(tokenizer):
    class Small(type(tokenizer)):
        vocab_size = 100
        eos_id = 99

    class Endless(type(tokenizer)):
        eos_id = None

    with pytest.raises(DougongError, match="a has the token id 122, but the vocabulary has 100"):
        encode_documents(Small(), [Document("z", "a")])
    with pytest.raises(DougongError, match="no end-of-text token"):
        encode_documents(Endless(), [Document("z", "a")])
    with pytest.raises(DougongError, match="no documents"):
        encode_documents(tokenizer, [])


def test_documents_may_end_with_another_token_than_turns(tokenizer):
    store = encode_documents(tokenizer, [Document("z", "a")], end_id=256)
    assert store.ids.tolist() == [122, 256] and store.eos_id == store.start_id == 256

    class Chatting(type(tokenizer)):
        eos_ids = (257, 256)  # turns end with the first, texts with the second, which is also the bos

    assert encode_documents(Chatting(), [Document("z", "a")]).ids.tolist() == [122, 256]


def test_a_large_vocabulary_is_kept_in_32_bits(tokenizer):
    class Large(type(tokenizer)):
        vocab_size = 70_000
        eos_id = 69_999

    store = encode_documents(Large(), [Document("z", "a")])
    assert store.ids.dtype == np.uint32 and store.ids.tolist() == [122, 69_999]
