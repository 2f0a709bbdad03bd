"""`dougong upcycle` and the loads that `dougong eval` reports of what it made."""

from __future__ import annotations

import json

import pytest
import torch

from dougong.data import encode_documents, read_documents
from dougong.evals.experts import expert_loads
from dougong.hub import load

TOKENS = torch.tensor([[5, 70, 33, 101, 9]])


@pytest.fixture
def sparse(dougong, model, tmp_path):
    found = dougong("upcycle", model, "--experts", 4, "--top-k", 2, "--seed", 3, "--out", tmp_path / "sparse")
    assert found.status == 0 and "mixtral: " in found.out, found.err
    return tmp_path / "sparse"


def test_the_new_model_computes_what_the_old_one_does(sparse, model):
    dense, mixture = load(model), load(sparse)
    assert mixture.spec.layers[0].ffn.experts == 4 and mixture.tokenizer is not None
    with torch.no_grad():
        torch.testing.assert_close(mixture.model(TOKENS).logits, dense.model(TOKENS).logits, rtol=1e-4, atol=1e-4)


def test_loads_of_a_text_count_each_of_its_tokens(dougong, sparse, tmp_path):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": "word " * count}) + "\n" for count in (3, 40, 11)))
    found = dougong("eval", sparse, "--text", text, "--loads", "--json", "--length", 64)
    assert found.status == 0, found.err
    told = json.loads(found.out)["loads"]
    lm = load(sparse)
    store = encode_documents(lm.tokenizer, list(read_documents([text])))
    assert set(told) == {"0", "1"} and all(sum(counts) == 2 * store.tokens for counts in told.values())
    # Each text by itself gives the same: none was seen by another.
    one_by_one = [0] * 4
    for number in range(store.documents):
        ids = torch.from_numpy(store.ids[store.starts[number] : store.starts[number + 1]].astype("int64"))
        rows = torch.cat([torch.tensor([store.start_id]), ids[:-1]])[None]
        if rows.shape[1] <= 64 - 15:
            one_by_one = [a + b for a, b in zip(one_by_one, expert_loads(lm.model, [rows])[1].counts, strict=True)]
    assert sum(one_by_one) > 0 and all(one <= whole for one, whole in zip(one_by_one, told["1"], strict=True))
    printed = dougong("eval", sparse, "--text", text, "--loads").out
    assert "bits per byte" in printed and "load by expert" in printed


def test_what_is_wrong_is_named(dougong, model, sparse, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("some text")
    out = tmp_path / "out"
    for args, said in (
        (["upcycle", model], "--out"),
        (["upcycle", model, "--top-k", 9, "--out", out], "top_k is 9; expected 1 to 8"),
        (["upcycle", model, "--layers", 2, "--out", out], "layers has 2; the model has 2 layers"),
        (["upcycle", model, "--layers", 1, "--out", out], "no known family can express this model"),
        (["upcycle", sparse, "--out", out], "layers[0].ffn is a MoE"),
        (["eval", model, "--text", text, "--loads"], "no layer with experts"),
        (["eval", model, "--skills", 1, "--loads"], "give --text"),
    ):
        found = dougong(*args)
        assert found.status and said in found.err and "Traceback" not in found.err, found.err
        assert not out.exists() and len(found.err) < 1500
