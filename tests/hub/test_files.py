"""What is written can be read again, in every layout; what was there stays until the new is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel, writing
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer


def assert_same(a: LanguageModel, b: LanguageModel) -> None:
    assert a.spec == b.spec
    first, second = a.model.weights(), b.model.weights()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(a.model(tokens).logits, b.model(tokens).logits)


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("which", ["llama", "tied", "gpt2"])
def test_round_trip(which: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    lm = request.getfixturevalue(which)
    dougong.save(lm, tmp_path / "a")
    again = dougong.load(tmp_path / "a")
    assert_same(lm, again)
    dougong.save(again, tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())


def test_loaded_weights_train_and_stay_tied(tied: LanguageModel, tmp_path: Path) -> None:
    dougong.save(tied, tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "m/model.safetensors")
    lm = dougong.load(tmp_path / "m")
    assert lm.model.head.storage is lm.model.embedding.storage
    assert all(weight.requires_grad and weight.is_contiguous() for weight in lm.model.parameters())
    lm.model(torch.arange(6)[None]).logits.square().mean().backward()
    assert all(weight.grad is not None for weight in lm.model.parameters())


def test_loaded_weights_do_not_hang_on_the_file(saved: Path, llama: LanguageModel) -> None:
    lm = dougong.load(saved)
    path = saved / "model.safetensors"
    with path.open("r+b") as stream:
        stream.write(b"\0" * path.stat().st_size)
    assert_same(lm, llama)


def test_shards_and_their_index(llama: LanguageModel, tmp_path: Path) -> None:
    dougong.save(llama, tmp_path / "m", shard_bytes=4000)
    names = sorted(path.name for path in (tmp_path / "m").glob("*.safetensors"))
    assert len(names) > 3
    assert names[0] == f"model-00001-of-{len(names):05d}.safetensors"
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(names)
    assert index["metadata"]["total_size"] == 4 * llama.spec.parameters()
    assert_same(dougong.load(tmp_path / "m"), llama)


def test_shards_open_in_transformers(llama: LanguageModel, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from tests.hub import foreign

    dougong.save(llama, tmp_path / "m", shard_bytes=4000)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours = llama.model(tokens).logits
    assert foreign.error(ours, foreign.logits(foreign.reopen(tmp_path / "m"), tokens)) <= 1e-4


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_checkpoints_are_read(zipped: bool, saved: Path, llama: LanguageModel) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    torch.save(tensors, saved / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert_same(dougong.load(saved), llama)


def test_pickled_shards_are_read(saved: Path, llama: LanguageModel) -> None:
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    places = {name: f"pytorch_model-{1 + ('mlp' in name)}.bin" for name in tensors}
    for file in set(places.values()):
        torch.save({name: tensors[name] for name in tensors if places[name] == file}, saved / file)
    (saved / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert_same(dougong.load(saved), llama)


def test_old_gpt2_files_without_prefix_and_with_masks(gpt2: LanguageModel, tmp_path: Path) -> None:
    """The files that OpenAI's first checkpoints were converted to."""
    dougong.save(gpt2, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for index in range(2):
        old[f"h.{index}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        old[f"h.{index}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, tmp_path / "m/model.safetensors")
    assert_same(dougong.load(tmp_path / "m"), gpt2)


def test_old_llama_files_with_tables_of_angles(saved: Path, llama: LanguageModel) -> None:
    tensors = load_file(saved / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(2)
    save_file(tensors, saved / "model.safetensors")
    assert_same(dougong.load(saved), llama)


def test_a_tied_file_may_carry_its_head(tied: LanguageModel, tmp_path: Path) -> None:
    dougong.save(tied, tmp_path / "m")
    tensors = load_file(tmp_path / "m/model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "m/model.safetensors")
    assert_same(dougong.load(tmp_path / "m"), tied)


def test_a_run_folder_opens_its_model(saved: Path, llama: LanguageModel, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    saved.rename(run / "model")
    assert_same(dougong.load(run), llama)
    assert_same(dougong.load(str(run)), llama)


def test_ids_and_defaults_survive(saved: Path, tmp_path: Path) -> None:
    edit(saved, bos_token_id=7, eos_token_id=8, attention_dropout=0.25, initializer_range=0.5)
    (saved / "generation_config.json").write_text('{"eos_token_id": [8, 9], "temperature": 0.5}')
    lm = dougong.load(saved)
    assert lm.eos_ids == (8, 9)
    assert lm.bos_id == 7
    dougong.save(lm, tmp_path / "b")
    again = dougong.load(tmp_path / "b")
    assert again.eos_ids == (8, 9)
    assert again.generation["temperature"] == 0.5
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert (config["eos_token_id"], config["attention_dropout"], config["initializer_range"]) == (8, 0.25, 0.5)
    (saved / "generation_config.json").unlink()
    assert dougong.load(saved).eos_ids == (8,)


def test_the_tokenizer_travels_and_gives_the_end(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size + 3, 16, 1, 4, 32)  # an embedding padded to a rounder number is fine
    lm = LanguageModel(initialise(Model(spec)), tokenizer)
    dougong.save(lm, tmp_path / "m")
    again = dougong.load(tmp_path / "m")
    assert again.tokenizer is not None
    assert again.tokenizer.encode("斗拱 dougong") == tokenizer.encode("斗拱 dougong")
    assert again.eos_ids == tokenizer.eos_ids
    assert again.eos_ids


def test_an_interrupted_save_leaves_what_was_there(
    saved: Path, tied: LanguageModel, llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_safetensors", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dougong.save(tied, saved)
    assert_same(dougong.load(saved), llama)
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_saving_replaces_a_model_and_nothing_else(saved: Path, tied: LanguageModel, tmp_path: Path) -> None:
    dougong.save(tied, saved)
    assert_same(dougong.load(saved), tied)
    (saved / "notes.md").write_text("mine")
    with pytest.raises(DougongError, match=r"notes\.md, which saving a model there would delete"):
        dougong.save(tied, saved)
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(DougongError, match="plain is a file"):
        dougong.save(tied, tmp_path / "plain")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/table.json").write_text("{}")
    with pytest.raises(DougongError, match=r"data holds table\.json"):
        dougong.save(tied, tmp_path / "data")
    assert (tmp_path / "data/table.json").exists()
