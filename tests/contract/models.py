"""The models of the contract matrix: one tiny spec for every shape of decoder that the families here can ask for."""

from __future__ import annotations

import torch

from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts.attention import Attention
from dougong.parts.decay import SoftplusDecay
from dougong.parts.delta import DeltaNet
from dougong.parts.embedding import Embedding, Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import MLP, GatedMLP
from dougong.parts.latent import LatentAttention
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi, Learned, Relative, Sinusoidal
from dougong.parts.rope import Llama3, Rope, Yarn
from dougong.parts.ssd import Mamba2

RMS, LAYER = Norm("rms", 1e-5), Norm("layer", 1e-5, bias=True)


def _decoder(mixer, ffn=None, norm=RMS, depth=2, wiring="pre", mixer_scale=(1.0, 1.0), **rest) -> ModelSpec:
    layer = LayerSpec(mixer, ffn or GatedMLP(40), norm, wiring, mixer_scale=mixer_scale)
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
    "parallel, two norms": _decoder(Attention(3, 3, 8, position=Rope(4)), wiring="parallel_norms"),
    "output": _decoder(Attention(3, 3, 8, position=Rope(8)), wiring="output"),
    "through": _decoder(Attention(3, 3, 8, position=Rope(8)), wiring="through", mixer_scale=(0.9, 1.3)),
    "softcap": _decoder(Attention(4, 2, 6, position=Rope(6), softcap=4.0), head=Head(softcap=6.0, scale=0.5)),
    "sinks": _decoder(Attention(4, 2, 6, position=Rope(6), sinks=True, window=6)),
    "gated": _decoder(Attention(4, 2, 6, position=Rope(6), gate="coordinate")),
    "gated heads": _decoder(Attention(4, 2, 6, position=Rope(6), gate="head", clip=0.7)),
    "alibi": _decoder(Attention(6, 6, 4, position=Alibi())),
    "alibi, shared keys": _decoder(Attention(6, 2, 4, position=Alibi(4.0))),
    "relative": _decoder(Attention(4, 4, 6, position=Relative(8, 20))),
    "chunked": _decoder(Attention(4, 2, 6, position=Rope(6), chunk=7)),
    "normed projections": _decoder(Attention(4, 2, 6, position=Rope(6), qk_norm=RMS, qk_norm_over="projection")),
    "normed after turning": _decoder(
        Attention(4, 2, 6, position=Rope(6), qk_norm=Norm("rms", 1e-5, weight=False), qk_norm_after_turn=True)
    ),
    "sinusoidal": _decoder(
        Attention(4, 4, 6),
        norm=Norm("rms", 1e-5, offset=1.0),
        embedding=Embedding(Sinusoidal(), norm=LAYER, factor=3.0),
    ),
    "experts": _decoder(Attention(4, 2, 6, position=Rope(6)), MoE(4, 2, 16, shared=GatedMLP(8))),
    "latent": _decoder(LatentAttention(4, 12, 6, 4, 6, position=Rope(4))),
    "delta": _decoder(DeltaNet(2, 4, 6, 6, decay=SoftplusDecay(), gate="silu")),
    "mamba": _decoder(Mamba2(4, 8, 6)),
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
