"""The models of the contract matrix: one tiny spec for every shape of decoder that the families here can ask for."""

from __future__ import annotations

import torch

from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.attention import Attention
from dougong.parts.embedding import Embedding, Head
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.norm import Norm
from dougong.parts.position import Learned, Llama3, Rope, Yarn

RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5, bias=True)


def _decoder(mixer, ffn=None, norm=RMS, depth=2, wiring="pre", **rest) -> ModelSpec:
    layer = LayerSpec(mixer, ffn or GatedMLP(40), norm, wiring)
    return ModelSpec(50, 24, 64, (layer,) * depth, norm=norm, **rest)


SPECS: dict[str, ModelSpec] = {
    "llama": _decoder(Attention(3, 3, 8, position=Rope(8)), head=Head(tied=False)),
    "llama3": _decoder(Attention(4, 2, 6, position=Rope(6, 500.0, scaling=Llama3(8.0, 1.0, 4.0, 16)))),
    "yarn": _decoder(Attention(4, 1, 8, position=Rope(8, scaling=Yarn(4.0, 16)))),
    "mistral": _decoder(Attention(6, 2, 4, position=Rope(4), window=5), head=Head(tied=False)),
    "qwen2": _decoder(Attention(4, 2, 6, bias=True, position=Rope(6))),
    "qwen3": _decoder(Attention(3, 1, 10, position=Rope(10), qk_norm=RMS)),
    "gpt2": _decoder(
        Attention(4, 4, 6, bias=True, out_bias=True),
        MLP(48, "gelu_tanh", bias=True),
        LAYER,
        embedding=Embedding(Learned(64)),
    ),
    "post": _decoder(Attention(3, 3, 8, position=Rope(8)), MLP(40, "relu"), wiring="post"),
    "sandwich": _decoder(Attention(3, 3, 8, position=Rope(8)), wiring="sandwich"),
    "parallel": _decoder(Attention(3, 3, 8, position=Rope(4, interleaved=True)), wiring="parallel"),
}


def build(name: str, seed: int = 0) -> Model:
    """The model, with every parameter moved off its initial value."""
    model = initialise(Model(SPECS[name]), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def text(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 50, (rows, tokens), generator=torch.Generator().manual_seed(seed))
