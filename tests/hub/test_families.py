"""Specs and config.json: each family says what it can express, exactly, and refuses the rest by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES, family_for, gpt2, llama, mistral, qwen2, qwen3
from dougong.hub.families.common import ACTIVATIONS
from dougong.model import Model, ModelSpec, decoder_spec, initialise
from dougong.parts import feedforward
from dougong.parts.embedding import Embedding
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.position import Learned
from dougong.parts.rope import NTK, DynamicNTK, LinearScaling, Llama3, LongRope, Rope, Yarn
from tests.hub import foreign
from tests.hub.draws import DRAWN
from tests.hub.draws.encoders import DRAWN_SHAPES

PLAIN = decoder_spec(40, 24, 3, 4, 64)
SCALINGS = [
    None,
    LinearScaling(2.5),
    DynamicNTK(4.0, 64),
    Yarn(4.0, 16),
    Yarn(4.0, 16, 8.0, 0.5, 1.25, False),
    Llama3(8.0, 1.0, 4.0, 16),
    LongRope((1.0, 2.0, 3.0), (2.0, 3.0, 4.5), 16, 1.5),
]


def change(spec: ModelSpec, *, layer: int | None = None, **mixer: Any) -> ModelSpec:
    """`spec` with some fields of its mixers (or of one layer's) replaced."""
    layers = [
        dataclasses.replace(each, mixer=dataclasses.replace(each.mixer, **mixer)) if layer in (None, index) else each
        for index, each in enumerate(spec.layers)
    ]
    return dataclasses.replace(spec, layers=tuple(layers))


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: type(scaling).__name__)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_scaling_has_a_spelling(family: str, scaling: Any) -> None:
    spec = change(PLAIN, position=Rope(6, 5e5, scaling=scaling))
    config = json.loads(json.dumps(FAMILIES[family].to_config(spec)))
    assert FAMILIES[family].from_config(config) == spec
    # The spelling of transformers 5 means the same.
    rope = {"rope_type": "default"} if config["rope_scaling"] is None else config["rope_scaling"]
    new = {**config, "rope_scaling": None, "rope_theta": None}
    new["rope_parameters"] = {**rope, "rope_theta": config["rope_theta"]}
    assert FAMILIES[family].from_config(new) == spec


@pytest.mark.parametrize("seed", range(foreign.FEW))
@pytest.mark.parametrize("family", [name for name in FAMILIES if name in DRAWN | DRAWN_SHAPES])
def test_specs_survive_their_config(family: str, seed: int) -> None:
    spec = FAMILIES[family].from_config({"model_type": family, **foreign.draw_config(family, seed)})
    config = json.loads(json.dumps(FAMILIES[family].to_config(spec)))
    assert config["model_type"] == family
    assert FAMILIES[family].from_config(config) == spec
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert family_for(spec) in FAMILIES


def test_mscale_of_yarn_is_kept_as_the_factor_that_it_means() -> None:
    rope = {"type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    spec = llama.from_config({**llama.to_config(PLAIN), "rope_scaling": rope})
    assert spec.layers[0].mixer.position == Rope(6, scaling=Yarn(4.0, 64, attention_factor=1.0))


def test_the_first_family_that_can_is_chosen() -> None:
    assert family_for(PLAIN) == "llama"
    assert family_for(decoder_spec(40, 24, 3, 4, 64, qk_norm=True)) == "qwen3"
    assert family_for(change(PLAIN, window=5)) == "mistral"
    assert family_for(change(PLAIN, bias=True)) == "qwen2"
    assert family_for(change(change(PLAIN, bias=True), window=5, layer=2)) == "qwen2"
    assert family_for(change(PLAIN, heads=5, kv_heads=5)) == "mistral"


@pytest.mark.parametrize(
    ("family", "spec", "words"),
    [
        (llama, change(PLAIN, window=5), "layers[0].mixer.window = 5"),
        (llama, change(PLAIN, layer=1, heads=2, kv_heads=2), "layers[1].mixer.heads = 2"),
        (llama, change(PLAIN, bias=True), "layers[0].mixer.out_bias = False"),
        (llama, change(PLAIN, qk_norm=Norm()), "layers[0].mixer.qk_norm"),
        (llama, change(PLAIN, scale=0.5), "layers[0].mixer.scale = 0.5"),
        (llama, change(PLAIN, position=None), "without rotary positions"),
        (llama, change(PLAIN, position=Rope(6, interleaved=True)), "mixer.position.interleaved = True"),
        (llama, change(PLAIN, position=Rope(4)), "mixer.position.size = 4"),
        (llama, change(PLAIN, position=Rope(6, scaling=NTK(2.0))), "NTK(factor=2.0)"),
        (llama, change(PLAIN, position=Rope(6, scaling=DynamicNTK(2.0, 32))), "scaling.original = 32"),
        (llama, change(PLAIN, heads=5, kv_heads=5), "a width of 24 that 5 heads do not divide"),
        (llama, dataclasses.replace(PLAIN, embedding=Embedding(Learned(64))), "embedding.position"),
        (llama, dataclasses.replace(PLAIN, norm=None), "norm = None"),
        (llama, dataclasses.replace(PLAIN, norm=Norm("rms", 1e-3)), "norm.eps = 0.001"),
        (llama, dataclasses.replace(PLAIN, layers=()), "without layers"),
        (mistral, change(PLAIN, layer=1, window=5), "layers[1].mixer.window = 5"),
        (qwen2, PLAIN, "layers[0].mixer.bias = False"),
        (qwen3, PLAIN, "layers[0].mixer.qk_norm = None"),
        (gpt2, PLAIN, "ffn of GatedMLP"),
    ],
)
def test_what_a_family_cannot_express(family: Any, spec: ModelSpec, words: str) -> None:
    with pytest.raises(DougongError) as caught:
        family.to_config(spec)
    assert words in str(caught.value)
    assert family.FAMILY in str(caught.value)


def test_layers_of_other_kinds() -> None:
    for ffn in (MLP(32), GatedMLP(32, bias=True), None):
        layers = (dataclasses.replace(PLAIN.layers[0], ffn=ffn), *PLAIN.layers[1:])
        with pytest.raises(DougongError, match="llama cannot express"):
            llama.to_config(dataclasses.replace(PLAIN, layers=layers))
    layers = (dataclasses.replace(PLAIN.layers[0], wiring="parallel"),) * 3
    with pytest.raises(DougongError, match=r"layers\[0\]\.wiring = 'parallel'"):
        llama.to_config(dataclasses.replace(PLAIN, layers=layers))
    with pytest.raises(DougongError, match=r"this model: llama .*; mistral .*; and \d+ other families$"):
        family_for(dataclasses.replace(PLAIN, layers=layers))


def test_windows_of_qwen() -> None:
    base = qwen3.to_config(decoder_spec(40, 24, 3, 4, 64, qk_norm=True))

    def windows(**changes: Any) -> list[int | None]:
        config = {key: value for key, value in base.items() if key != "layer_types"} | changes
        return [layer.mixer.window for layer in qwen3.from_config(config).layers]

    assert windows(use_sliding_window=True, sliding_window=5, max_window_layers=1) == [None, 5, 5]
    assert windows(use_sliding_window=False, sliding_window=5, max_window_layers=1) == [None] * 3
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    assert windows(use_sliding_window=True, sliding_window=5, layer_types=kinds) == [5, None, 5]
    with pytest.raises(DougongError, match="use_sliding_window is false"):
        windows(use_sliding_window=False, sliding_window=5, layer_types=kinds)
    with pytest.raises(DougongError, match=r"layer_types is \['linear_attention'\]"):
        windows(use_sliding_window=True, layer_types=["linear_attention"])


@pytest.mark.parametrize(
    ("folder", "family", "parameters"),
    [("tokenizer_smollm2", "llama", 134_515_008), ("tokenizer_qwen2", "qwen2", 1_543_714_304)],
)
def test_config_files_in_the_wild(folder: str, family: str, parameters: int, data: Path) -> None:
    """SmolLM2-135M and Qwen2-1.5B, whose parameter counts are published."""
    config = json.loads((data / "tokenizers" / folder / "config.json").read_text())
    assert config["model_type"] == family
    spec = FAMILIES[family].from_config(config)
    assert spec.parameters() == parameters
    assert FAMILIES[family].from_config(FAMILIES[family].to_config(spec)) == spec


def test_a_spec_changed_after_loading_gets_a_new_config(tmp_path: Path) -> None:
    """The old config.json is kept only as far as it tells the truth."""
    lm = LanguageModel(initialise(Model(PLAIN)))
    dougong.save(lm, tmp_path / "a")
    lm = dougong.load(tmp_path / "a")
    lm.config["initializer_range"] = 0.5
    longer = change(PLAIN, position=Rope(6, scaling=Yarn(2.0, 64)))
    wider = LanguageModel(initialise(Model(longer)), config=lm.config, family=lm.family)
    dougong.save(wider, tmp_path / "b")
    assert dougong.load(tmp_path / "b").spec == longer
    assert json.loads((tmp_path / "b/config.json").read_text())["initializer_range"] == 0.5


SLIPS = [
    ("gemma", "tie_word_embedding"),
    ("glm4_moe", "norm_topk_probs"),
    ("qwen2_moe", "qkv_bais"),
    ("bloom", "tie_word_embeddings_"),
]


@pytest.mark.parametrize(("family", "slip"), SLIPS)
def test_a_slip_of_the_pen_is_refused_even_where_it_switches_off(family: str, slip: str) -> None:
    """An unknown key that is false is another program's, unless it is one of ours but for a letter or two."""
    config = FAMILIES[family].to_config(FAMILIES[family].from_config(foreign.draw_config(family, 1)))
    for near in ("tie_word_embeddings", "norm_topk_prob", "qkv_bias"):
        config.pop(near, None)
    FAMILIES[family].from_config({**config, "use_the_other_kernel": False, slip: None})
    with pytest.raises(DougongError, match=f"{slip} = False.*did you mean"):
        FAMILIES[family].from_config({**config, slip: False})


def test_every_activation_is_that_of_transformers() -> None:
    reference = pytest.importorskip("transformers.activations").ACT2FN
    x = torch.linspace(-9, 9, 2001)
    for name, own in ACTIVATIONS.items():
        torch.testing.assert_close(feedforward.ACTIVATIONS[own](x), reference[name](x), rtol=1e-5, atol=2e-6)
    assert set(ACTIVATIONS.values()) == set(feedforward.ACTIVATIONS)


def test_the_step_between_sparse_layers_counts_before_their_number() -> None:
    """transformers writes both, and reads the step."""
    read, write = FAMILIES["switch_transformers"].from_config, FAMILIES["switch_transformers"].to_config
    config = {"num_heads": 2, "num_layers": 5, "num_decoder_layers": 5, "num_sparse_encoder_layers": 2}

    def sparse(**more: Any) -> list[int]:
        spec = read({**config, **more})
        assert read(json.loads(json.dumps(write(spec)))) == spec
        assert spec.encoder is not None
        return [index for index, layer in enumerate(spec.encoder.layers) if isinstance(layer.ffn, MoE)]

    assert sparse() == [1, 3]
    assert sparse(encoder_sparse_step=1) == [0, 1, 2, 3, 4]
    assert sparse(encoder_sparse_step=3) == [1, 4]
    assert sparse(encoder_sparse_step=4) == [1]
    assert sparse(encoder_sparse_step=0) == []


@pytest.mark.parametrize(
    ("family", "changed", "told"),
    [
        ("llama", {"architectures": "LlamaForCausalLM"}, "architectures is 'LlamaForCausalLM'; expected a list"),
        ("gemma3_text", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; expected a mapping"),
        ("modernbert", {"rope_parameters": 3}, "rope_parameters is 3; expected a mapping"),
        ("modernbert", {"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters is .*full_attention"),
        ("modernbert", {"local_attention": 1}, "local_attention is 1; expected at least 2"),
        ("mamba2", {"time_step_limit": [0.5, 0.1]}, r"time_step_limit is \[0.5, 0.1\]"),
        ("mamba2", {"time_step_limit": [{}, None]}, r"time_step_limit is "),
        ("mamba2", {"time_step_limit": {}}, r"time_step_limit is {}"),
        ("kimi_linear", {"linear_num_heads": 0.5}, "kimi_linear: linear_num_heads is 0.5"),
        ("kimi_linear", {"linear_attn_config": {"num_heads": 0.5}}, "linear_attn_config.num_heads is 0.5"),
        ("mistral", {"num_attention_heads": 1000, "num_key_value_heads": 1000, "head_dim": None}, "heads is 1000"),
    ],
)
def test_what_is_no_mapping_or_no_list_is_refused_by_name(family: str, changed: dict[str, Any], told: str) -> None:
    with pytest.raises(DougongError, match=told):
        FAMILIES[family].from_config({**foreign.draw_config(family, 1), **changed})


def test_time_steps_without_end_are_spelled_in_several_ways() -> None:
    read = FAMILIES["mamba2"].from_config
    drawn = foreign.draw_config("mamba2", 1)
    endless = {
        repr(read({**drawn, "time_step_limit": [0.25, each]})) for each in (None, "Infinity", "inf", float("inf"))
    }
    assert len(endless | {repr(read({**drawn, "time_step_limit": [0.25, {"__float__": "Infinity"}]}))}) == 1
