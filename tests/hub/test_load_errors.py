"""What can be wrong with a model on disk, each told by name before anything is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.formats import safetensors
from dougong.tokenizer import byte_tokenizer
from tests.hub.test_files import edit

WEIGHTS = "model.safetensors"


def refused(path: Path | str, *words: str, **options: object) -> None:
    """Loading fails with a message that holds all the words."""
    with pytest.raises(DougongError) as caught:
        dougong.load(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def rewrite(folder: Path, **changes: torch.Tensor | None) -> None:
    """Replace tensors of a saved model, or drop them (None); "__" stands for "." in names."""
    tensors = load_file(folder / WEIGHTS) | {name.replace("__", "."): tensor for name, tensor in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / WEIGHTS)


def test_quantize_dtype_and_device(saved: Path) -> None:
    refused(saved, "quantize is 'int3'", "int8, int4", quantize="int3")
    refused(saved, "'float31'", "bfloat16", dtype="float31")
    refused(saved, "torch.int8", "floating point", dtype=torch.int8)
    refused(saved, "device 'abacus'", device="abacus")


def test_paths_that_lead_nowhere(saved: Path) -> None:
    refused(saved.parent / "savde", "savde does not exist", "saved")
    refused(f"{saved.parent}/nowhere/model", "does not exist", "saved")
    refused("./nothing_here.bin", "does not exist")
    refused("", "empty")
    empty = saved.parent / "empty"
    empty.mkdir()
    refused(empty, "no config.json")
    (empty / "adapter_config.json").write_text("{}")
    refused(empty, "adapter")


def test_a_misspelled_local_path_is_not_looked_up_on_the_hub(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved.parent.parent)
    refused(f"{saved.parent.name}/savd", "does not exist", "saved")


def test_single_files_of_a_folder(saved: Path) -> None:
    refused(saved / WEIGHTS, "load the folder", str(saved))
    (saved / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    refused(saved / "model.gguf", "damaged or cut short", "download it again")


def test_config_json(saved: Path) -> None:
    whole = json.loads((saved / "config.json").read_text())
    for text, word in (("", "not valid JSON"), ("[]", "holds a list"), ('{"a": ', "not valid JSON")):
        (saved / "config.json").write_text(text)
        refused(saved, "config.json", word)
    (saved / "config.json").write_text(json.dumps({**whole, "model_type": "llamma"}))
    refused(saved, "'llamma'", "not supported", "llama, mistral, qwen2, qwen3, gpt2")
    (saved / "config.json").unlink()
    refused(saved, "has no config.json")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_act": "sillu"}, ["hidden_act", "'sillu'", "silu"]),
        ({"logit_softcap": 30.0}, ["logit_softcap = 30.0"]),
        ({"atention_bias": True}, ["atention_bias", "did you mean 'attention_bias'"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "later version"]),
        ({"hidden_size": "16"}, ["hidden_size is '16'", "an integer"]),
        ({"hidden_size": None}, ["no hidden_size"]),
        ({"mlp_bias": "no"}, ["mlp_bias is 'no'", "true or false"]),
        ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
        ({"num_key_value_heads": 3}, ["4 heads over 3 kv_heads"]),
        ({"head_dim": 5}, ["head_dim is 5", "even"]),
        ({"intermediate_size": -3}, ["intermediate_size is -3", "at least 1"]),
        ({"rope_theta": 0}, ["rope_theta is 0.0", "above 0"]),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, ["rope_scaling.factor is 0.0", "above 0"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
        ({"rope_scaling": {"type": "mrope"}}, ["rope_scaling.rope_type is 'mrope'", "yarn"]),
        ({"rope_scaling": {"type": "linear"}}, ["no rope_scaling.factor"]),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 3}}, ["rope_scaling.alpha"]),
        (
            {"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}},
            ["short_factor", "2 num"],
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 5}}, ["is 5", "32"]),
    ],
)
def test_keys_of_the_config(saved: Path, changes: dict, words: list[str]) -> None:
    edit(saved, **changes)
    refused(saved, "config.json of llama" if "kv_heads" not in words[0] else "", *words)


def test_keys_that_ask_for_nothing_are_let_pass(saved: Path, llama: LanguageModel) -> None:
    edit(saved, rope_interleaved=False, some_window=None, pretraining_tp=2, use_cache=False, resid_pdrop=0.1)
    assert dougong.load(saved).spec == llama.spec


def test_weights_that_are_not_there(saved: Path) -> None:
    (saved / WEIGHTS).rename(saved / "elsewhere")
    refused(saved, "has no weights", WEIGHTS, "pytorch_model.bin")


@pytest.mark.parametrize("keep", [0, 5, 100, -1, -3000])
def test_a_safetensors_file_cut_short(saved: Path, keep: int) -> None:
    raw = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(raw[:keep])
    refused(saved, WEIGHTS, "is empty" if keep == 0 else "damaged or cut short", "download it again")


def test_files_that_are_no_weights(saved: Path) -> None:
    (saved / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(saved, WEIGHTS, "Git LFS pointer")
    (saved / WEIGHTS).unlink()
    (saved / "pytorch_model.bin").write_bytes(b"PK\3\4 nothing")
    refused(saved, "pytorch_model.bin", "damaged")
    torch.save({"model": {}, "step": 3}, saved / "pytorch_model.bin")
    refused(saved, "pytorch_model.bin", "not a plain dictionary of tensors")


def test_shards(tmp_path: Path, llama: LanguageModel) -> None:
    dougong.save(llama, tmp_path, shard_bytes=4000)
    index = tmp_path / "model.safetensors.index.json"
    whole = json.loads(index.read_text())
    first = sorted(set(whole["weight_map"].values()))[0]
    raw = (tmp_path / first).read_bytes()
    (tmp_path / first).write_bytes(raw[:200])
    refused(tmp_path, first, "damaged")
    (tmp_path / first).unlink()
    refused(tmp_path, "lacks 1 of the", first, "model.safetensors.index.json lists")
    (tmp_path / first).write_bytes(raw)
    index.write_text(json.dumps({"weight_map": {**whole["weight_map"], "ghost.weight": first}}))
    refused(tmp_path, "ghost.weight", first, "lacks it")
    index.write_text("{}")
    refused(tmp_path, "no weight_map")


def test_tensors_missing_left_over_or_misshapen(saved: Path) -> None:
    name = "model__layers__1__self_attn__k_proj__weight"
    whole = load_file(saved / WEIGHTS)[name.replace("__", ".")]
    rewrite(saved, **{name: None})
    refused(saved, "lacks 1", "model.layers.1.self_attn.k_proj.weight")
    rewrite(saved, model__layers__1__self_attn__key__weight=whole)
    refused(saved, "lacks 1", "k_proj.weight", "it also holds model.layers.1.self_attn.key.weight")
    rewrite(saved, **{name: whole})
    refused(saved, "holds 1 tensors", "model.layers.1.self_attn.key.weight")
    rewrite(saved, model__layers__1__self_attn__key__weight=None, **{name: whole[:4]})
    refused(saved, "k_proj.weight is (4, 16)", "(8, 16)")
    rewrite(saved, **{name: whole.to(torch.int8)})
    refused(saved, "k_proj.weight is torch.int8", "later version")


def test_a_config_that_does_not_fit_its_weights(saved: Path) -> None:
    edit(saved, attention_bias=True)
    refused(saved, "lacks 8", "self_attn.q_proj.bias", "and 4 more")
    edit(saved, attention_bias=False, num_hidden_layers=1)
    refused(saved, "holds 9 tensors", "model.layers.1.")
    edit(saved, num_hidden_layers=2, vocab_size=48)
    refused(saved, "(40, 16)", "(48, 16)")
    edit(saved, vocab_size=40, model_type="qwen3")
    refused(saved, "tensors of qwen3", "q_norm")


def test_heads_tied_by_the_config_alone(saved: Path, tied: LanguageModel, tmp_path: Path) -> None:
    edit(saved, tie_word_embeddings=True)
    refused(saved, "lm_head.weight differs from model.embed_tokens.weight", "tie_word_embeddings")
    dougong.save(tied, tmp_path / "tied")
    edit(tmp_path / "tied", tie_word_embeddings=False)
    refused(tmp_path / "tied", "lacks 1", "lm_head.weight")


def test_a_tokenizer_larger_than_the_embedding(saved: Path, llama: LanguageModel) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.save(saved)
    refused(saved, f"{tokenizer.vocab_size} tokens", "40 rows", "do not belong together")
    llama.tokenizer = tokenizer
    with pytest.raises(DougongError, match="40 rows"):
        dougong.save(llama, saved)


def test_saving_what_no_file_can_hold(llama: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.model.layers[0].mixer.q.adapters["x"] = torch.nn.Linear(2, 2)
    with pytest.raises(DougongError, match=r"no name for layers\.0\.mixer\.q\.adapters\.x\.weight"):
        dougong.save(llama, tmp_path / "m")
    del llama.model.layers[0].mixer.q.adapters["x"]
    with pytest.raises(DougongError, match=r"'lama' is not supported; known: llama.*; did you mean 'llama'"):
        dougong.save(LanguageModel(llama.model, family="lama"), tmp_path / "m")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors, "save_file", full)
    with pytest.raises(DougongError, match="no space left on the disk"):
        dougong.save(llama, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_loading_says_so_before_memory_is_taken(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be refused is refused from the names and shapes alone."""

    def read(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(safetensors.SafetensorsWeights, "read", read)
    edit(saved, intermediate_size=65)
    refused(saved, "gate_proj.weight", "(65, 16)")
