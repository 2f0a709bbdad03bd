"""Baichuan 1 and 2, which transformers has no class for: a reference written from the papers, and published counts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.families import baichuan
from dougong.model import Model, ModelSpec
from tests.hub.conftest import filled

# config.json as published (baichuan-inc), without the keys that change nothing.
COMMON = {
    "model_type": "baichuan",
    "hidden_act": "silu",
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
}
SEVEN = COMMON | {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "vocab_size": 64000,
}
THIRTEEN = COMMON | {
    "hidden_size": 5120,
    "intermediate_size": 13696,
    "model_max_length": 4096,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "vocab_size": 64000,
}
SECOND = {"vocab_size": 125696, "model_max_length": 4096, "z_loss_weight": 0}
SMALL = {"hidden_size": 12, "intermediate_size": 19, "num_hidden_layers": 2, "num_attention_heads": 3}
VARIANTS = {
    "7B": SEVEN | SMALL | {"vocab_size": 50},
    "13B": THIRTEEN | SMALL | {"vocab_size": 50},
    "2-7B": SEVEN | SECOND | SMALL,
    "2-13B": THIRTEEN | SECOND | SMALL,
}
variants = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (SEVEN, 7_000_559_616),  # Baichuan-7B and 13B: the table of parameters in the latter's README
        (THIRTEEN, 13_264_901_120),
        (SEVEN | SECOND, 7_505_973_248),  # Baichuan 2: 2 (125696 - 64000) rows more
        (THIRTEEN | SECOND, 13_896_668_160),
    ],
)
def test_published_sizes(config: dict[str, Any], count: int) -> None:
    assert baichuan.from_config(config).parameters() == count


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight


def slopes(heads: int) -> list[float]:
    """Press et al. 2022: 2^(-8h/n) for a power of two; else those of the one below, then every other of the next."""
    if math.log2(heads).is_integer():
        return [2 ** (-8 * (h + 1) / heads) for h in range(heads)]
    below = 2 ** int(math.log2(heads))
    return slopes(below) + slopes(2 * below)[0::2][: heads - below]


def turned(x: Tensor) -> Tensor:
    """(H, T, d), the pair (i, i + d/2) of token t by t 10000^(-2i/d), as complex numbers."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * 10000.0 ** (-torch.arange(half) / half)
    turn = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turn.real, turn.imag), -1)


def reference(weights: dict[str, Tensor], config: dict[str, Any], tokens: list[int]) -> Tensor:
    """Logits (T, V) of one text."""
    heads, count = config["num_attention_heads"], len(tokens)
    x = weights["model.embed_tokens.weight"][tokens]
    future = torch.full((count, count), -math.inf).triu(1)
    places = torch.arange(count)
    for layer in range(config["num_hidden_layers"]):
        w = {name.split(".", 3)[3]: each for name, each in weights.items() if name.startswith(f"model.layers.{layer}.")}
        packed = rms(x, w["input_layernorm.weight"]) @ w["self_attn.W_pack.weight"].T
        q, k, v = (part.view(count, heads, -1).transpose(0, 1) for part in packed.chunk(3, -1))
        bias = future
        if "max_position_embeddings" in config:
            q, k = turned(q), turned(k)
        else:
            bias = bias + torch.tensor(slopes(heads))[:, None, None] * (places[None] - places[:, None])
        scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]) + bias
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, -1)
        x = x + y @ w["self_attn.o_proj.weight"].T
        normal = rms(x, w["post_attention_layernorm.weight"])
        inner = F.silu(normal @ w["mlp.gate_proj.weight"].T) * (normal @ w["mlp.up_proj.weight"].T)
        x = x + inner @ w["mlp.down_proj.weight"].T
    head = weights["lm_head.weight"]
    if config["vocab_size"] == 125696:
        head = head / head.norm(dim=-1, keepdim=True)
    return rms(x, weights["model.norm.weight"]) @ head.T


@variants
def test_logits_and_files(config: dict[str, Any], tmp_path: Path) -> None:
    lm = LanguageModel(filled(baichuan.from_config(config)), family="baichuan")
    dougong.save(lm, tmp_path / "own")
    weights = load_file(tmp_path / "own" / "model.safetensors")
    (tmp_path / "in").mkdir()
    # Files of the 7B models also hold the table of angles.
    angles = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(2)}
    save_file(weights | angles, tmp_path / "in" / "model.safetensors")
    (tmp_path / "in" / "config.json").write_text(json.dumps(config))
    again = dougong.load(tmp_path / "in")
    assert again.spec == lm.spec == dougong.load(tmp_path / "own").spec
    tokens = torch.randint(50, (1, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.model(tokens).logits[0], reference(weights, config, tokens[0].tolist()))
    dougong.save(again, tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert weights.keys() == after.keys()
    assert all(torch.equal(weights[name], after[name]) for name in weights)
    assert "model.layers.0.self_attn.W_pack.weight" in after


@variants
@torch.no_grad()
def test_in_steps(config: dict[str, Any]) -> None:
    model = filled(baichuan.from_config(config))
    tokens = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    cache, out = model.cache(2, 12), []
    for piece in tokens.split([4, 1, 3, 1], 1):
        out.append(model.run(piece, cache.context(piece), cache).logits)
        cache.advance(piece.shape[1])
    torch.testing.assert_close(torch.cat(out, 1), model(tokens).logits)


@variants
def test_specs_survive_their_config(config: dict[str, Any]) -> None:
    spec = baichuan.from_config(config)
    assert baichuan.from_config(json.loads(json.dumps(baichuan.to_config(spec)))) == spec
    assert ModelSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.parameters() == sum(weight.numel() for weight in Model(spec).parameters())


def test_what_it_does_not_read_is_refused() -> None:
    for key, value in (("rope_theta", 5e5), ("rope_scaling", {"type": "linear", "factor": 2.0}), ("head_dim", 8)):
        with pytest.raises(DougongError, match=key):
            baichuan.from_config(VARIANTS["7B"] | {key: value})
    with pytest.raises(DougongError, match="tied"):
        baichuan.from_config(VARIANTS["2-7B"] | {"tie_word_embeddings": True})
