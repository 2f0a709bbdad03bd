"""Pairs out of a collection: own passages, hard negatives, clozes; an encoder given another vocabulary."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from dougong.base import DougongError
from dougong.data import Document
from dougong.hub import LanguageModel, load
from dougong.hub.families import family_named
from dougong.model import Model
from dougong.model.init import initialise
from dougong.rag.chunkers import Sentences
from dougong.rag.contrastive import save_embedder
from dougong.rag.embedder import ModelEmbedder
from dougong.rag.evaluate import Collection
from dougong.rag.pairs import CLOZE, pairs_of
from dougong.rag.transplant import transplanted
from dougong.tokenizer import Tokenizer

PLACES = {
    "a": "塔建于宋代。塔高三十米，木造。",
    "b": "桥建于唐代。桥长五十米，石造。",
    "c": "寺建于明代。寺中有一口钟。",
}


def collection() -> Collection:
    documents = [Document(text, name) for name, text in PLACES.items()]
    queries = {"1": "塔高多少？", "2": "桥用什么造？", "3": "谁知道？"}
    gains = {"1": {"a": 1.0}, "2": {"b": 1.0}, "3": {"a": 1.0}}
    return Collection("places", documents, queries, gains, {"1": ["三十米"], "2": ["石造"], "3": ["没有"]})


@given(seed=st.integers(0, 1000), negatives=st.integers(0, 3), cloze=st.booleans())
def test_passages_answer_and_negatives_are_of_other_documents(seed, negatives, cloze):
    made = pairs_of(collection(), Sentences(8, 0), negatives, cloze, seed)
    assert made == pairs_of(collection(), Sentences(8, 0), negatives, cloze, seed)
    asked = {pair.query: pair for pair in made if pair.query in ("塔高多少？", "桥用什么造？", "谁知道？")}
    assert asked.keys() == {"塔高多少？", "桥用什么造？"}  # the third has no answer in its passage
    assert "三十米" in asked["塔高多少？"].passage and "石造" in asked["桥用什么造？"].passage
    for pair in made:
        assert len(pair.negatives) <= negatives
        home = {"塔高多少？": "a", "桥用什么造？": "b"}.get(pair.query)
        homes = {home} if home else {name for name, text in PLACES.items() if pair.query in text}
        assert all(each in "".join(PLACES[name] for name in PLACES.keys() - homes) for each in pair.negatives)


def test_clozes_are_stretches_of_their_passages():
    whole = pairs_of(collection(), Sentences(100, 0), 1, True)
    clozes = [pair for pair in whole if not pair.query.endswith("？")]
    assert {pair.passage[:1] for pair in clozes} <= {"塔", "桥"} and len(clozes) == 2  # nobody asks about c
    for pair in clozes:
        assert any(pair.query in text for text in PLACES.values()) and 0 < len(pair.query) <= CLOZE[1]


def test_without_answers_every_relevant_document_makes_a_pair():
    documents = [Document(text, name) for name, text in PLACES.items()]
    gains = {"1": {"a": 1.0, "b": 2.0, "c": 0.0}, "2": {"c": 1.0}}
    held = Collection("places", documents, {"1": "石造的桥和木造的塔", "2": "一口钟"}, gains, {})
    made = pairs_of(held, Sentences(9, 0), 2)
    assert [pair.query for pair in made] == ["石造的桥和木造的塔"] * 2 + ["一口钟"]
    assert "木造" in made[0].passage and "石造" in made[1].passage and "钟" in made[2].passage
    for pair in made[:2]:  # c was judged, and is not relevant: it may stand against them
        assert all(each in PLACES["c"] for each in pair.negatives)


def tokenizer(words: list[str]) -> Tokenizer:
    vocabulary = {word: place for place, word in enumerate(["[UNK]", *words])}
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return Tokenizer(core)


@pytest.fixture
def lm() -> LanguageModel:
    config = {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": 5,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "type_vocab_size": 2,
        "max_position_embeddings": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }
    model = initialise(Model(family_named("bert", "here").from_config(config)))
    return LanguageModel(model, tokenizer(["stone", "bridge", "roof", "nail"]), "bert", config)


def test_known_words_keep_their_vectors(lm: LanguageModel, tmp_path: Path):
    made = transplanted(lm, tokenizer(["桥", "bridge", "瓦", "stone", "梁", "柱"]), layers=2)
    old, new = lm.model.embedding.storage.dense(), made.model.embedding.storage.dense()
    assert made.spec.vocab == 7 and len(made.spec.layers) == 2 and len(lm.spec.layers) == 3
    assert torch.equal(new[2], old[2]) and torch.equal(new[4], old[1]) and torch.equal(new[0], old[0])
    assert not any(torch.equal(new[1], each) for each in old)
    assert torch.equal(new, transplanted(lm, made.tokenizer, 2).model.embedding.storage.dense())  # by its seed
    with torch.no_grad():
        new.add_(1.0)
    assert torch.equal(lm.model.embedding.storage.dense(), old) and not torch.equal(new[2], old[2])
    save_embedder(made, tmp_path / "saved", 16)
    again = load(tmp_path / "saved")
    assert again.spec.vocab == 7 and len(again.spec.layers) == 2
    texts = ["桥 stone", "梁"]
    assert (ModelEmbedder(again, "x").embed(texts) == ModelEmbedder(made, "x").embed(texts)).all()


def test_fewer_layers_alone_are_the_first_ones(lm: LanguageModel):
    made = transplanted(lm, layers=1)
    own = lm.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in made.model.state_dict().items())
    for layers in (0, 4):
        with pytest.raises(DougongError, match=f"layers to keep is {layers}; expected 1 to 3"):
            transplanted(lm, layers=layers)


def test_an_embedder_of_a_quantised_or_fused_encoder(lm: LanguageModel):
    from dougong.compress import quantize
    from dougong.compress.fuse import fuse

    texts = ["stone bridge", "roof nail nail", "bridge"]
    before = ModelEmbedder(lm, "x").embed(texts)
    task = lm.model.spec.task
    fuse(lm)
    assert abs(ModelEmbedder(lm, "x").embed(texts) - before).max() < 1e-5
    assert lm.model.spec.task == task  # the model itself pools as it did
    quantize(lm, "int8")
    near = (ModelEmbedder(lm, "x").embed(texts) * before).sum(1)
    assert near.min() > 0.99
