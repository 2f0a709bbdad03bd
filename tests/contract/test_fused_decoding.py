"""Fused models decode several rows at once as the unfused model reads each text whole, whichever kernels serve."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dougong.compress import fuse
from dougong.engine import Engine, Sampling
from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES
from dougong.model import LayerSpec, Model, ModelSpec, initialise
from dougong.parts import native
from dougong.parts.attention import Attention
from dougong.parts.embedding import Head
from dougong.parts.experts import MoE
from dougong.parts.feedforward import GatedMLP
from dougong.parts.latent import LatentAttention
from dougong.parts.norm import Norm
from dougong.parts.position import Alibi
from dougong.parts.rope import Llama3, Rope, Yarn
from tests.hub.draws import DRAWN
from tests.hub.test_family_contract import build as build_family

RMS = Norm("rms", 1e-5)
ROPE = Rope(32)
# Heads of 32, which the kernels for attention take, over matrices large enough for those of products.
MIXERS: dict[str, Attention | LatentAttention] = {
    "one key head for each": Attention(8, 8, 32, position=ROPE),
    "grouped": Attention(8, 2, 32, position=ROPE),
    "one key head": Attention(8, 1, 32, position=ROPE),
    "biases": Attention(8, 4, 32, bias=True, out_bias=True, position=ROPE),
    "window": Attention(8, 2, 32, position=ROPE, window=5),
    "chunks": Attention(8, 2, 32, position=ROPE, chunk=6),
    "sinks": Attention(8, 2, 32, position=ROPE, sinks=True, window=7),
    "softcap": Attention(8, 2, 32, position=ROPE, softcap=5.0),
    "scale": Attention(8, 2, 32, position=ROPE, scale=0.3),
    "clip": Attention(8, 2, 32, position=ROPE, clip=0.9),
    "normed heads": Attention(8, 2, 32, position=ROPE, qk_norm=RMS),
    "normed projections": Attention(8, 2, 32, position=ROPE, qk_norm=RMS, qk_norm_over="projection"),
    "normed after turning": Attention(8, 2, 32, position=ROPE, qk_norm=RMS, qk_norm_after_turn=True),
    "gated": Attention(8, 2, 32, position=ROPE, gate="coordinate"),
    "gated heads": Attention(8, 2, 32, position=ROPE, gate="head"),
    "half turned": Attention(8, 2, 32, position=Rope(16)),
    "neighbours turned": Attention(8, 2, 32, position=Rope(32, interleaved=True)),
    "yarn": Attention(8, 2, 32, position=Rope(32, scaling=Yarn(4.0, 16))),
    "llama3": Attention(8, 2, 32, position=Rope(32, scaling=Llama3(8.0, 1.0, 4.0, 16))),
    "alibi": Attention(8, 2, 32, position=Alibi()),
    "no positions": Attention(8, 2, 32),
    "odd heads": Attention(6, 3, 48, position=Rope(48)),
    "latent": LatentAttention(8, 48, 32, 16, 32, q_rank=64, position=Rope(16)),
    "latent, straight queries": LatentAttention(8, 48, 32, 16, 32, position=Rope(16)),
}
FFNS = {"dense": GatedMLP(512), "experts": MoE(4, 2, 512, shared=GatedMLP(256))}


@pytest.fixture(params=["native", "plain"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "plain":
        monkeypatch.setattr(native, "_found", lambda: (None, "switched off"))
    elif native.kernels() is None:
        pytest.skip(native.missing())
    return request.param


def moved(spec: ModelSpec, seed: int = 0) -> Model:
    model = initialise(Model(spec), seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def fused(model: Model) -> Model:
    other = copy.deepcopy(model)
    assert fuse(LanguageModel(other)) > 0
    return other


def decode(model: Model, texts: list[torch.Tensor], steps: int) -> list[torch.Tensor]:
    """Logits after the last `steps` tokens of each text: all before are read at once, then each row has one a step."""
    counts = torch.tensor([len(each) - steps for each in texts])
    first = torch.zeros(len(texts), int(counts.max()), dtype=torch.int64)
    for row, each in enumerate(texts):
        first[row, : counts[row]] = each[: counts[row]]
    cache = model.cache(len(texts), max(map(len, texts)) + 1)
    model.run(first, cache.context(first, counts), cache)
    cache.advance(counts)
    out = []
    for step in range(steps):
        token = torch.stack([each[len(each) - steps + step] for each in texts])[:, None]
        out.append(model.run(token, cache.context(token), cache).logits[:, 0])
        cache.advance(1)
    return list(torch.stack(out, 1))


def draw(vocab: int, lengths: list[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(vocab, (length,), generator=generator) for length in lengths]


def close(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    assert torch.isfinite(actual).all()
    assert float((actual - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max()))


def counting(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Counts the calls of a kernel."""
    found, calls = native.kernels(), [0]
    if found is not None:
        plain: Callable[..., Any] = getattr(found, name)

        def counted(*given: Any) -> Any:
            calls[0] += 1
            return plain(*given)

        monkeypatch.setattr(found, name, counted)
    return calls


@pytest.mark.parametrize("ffn", FFNS)
@pytest.mark.parametrize("name", MIXERS)
@torch.no_grad()
def test_several_rows_of_a_fused_model(name: str, ffn: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LayerSpec(MIXERS[name], FFNS[ffn], RMS)
    model = moved(ModelSpec(60, 256, 64, (layer,) * 2, norm=RMS, head=Head(tied=False)))
    texts, other = draw(60, [11, 17, 9, 14]), fused(model)
    attended, multiplied = counting(monkeypatch, "attend"), counting(monkeypatch, "linear")
    for rows in (texts[:1], texts[:2], texts):
        for each in (model, other):
            for text, found in zip(rows, decode(each, rows, 4), strict=True):
                close(found, model(text[None]).logits[0, -4:])
    if kernels == "native" and name in ("grouped", "one key head for each", "one key head", "biases", "odd heads"):
        assert attended[0] > 0
    assert (multiplied[0] > 0) == (kernels == "native")


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in DRAWN])
@torch.no_grad()
def test_every_family_fused(family: str, kernels: str) -> None:
    """Where a family has nothing to fuse, its rows still decode together."""
    model = build_family(family)
    other = copy.deepcopy(model)
    fuse(LanguageModel(other))
    texts = draw(model.spec.vocab, [8, 13, 6])
    for text, found in zip(texts, decode(other, texts, 3), strict=True):
        close(found, model(text[None]).logits[0, -3:])


@pytest.mark.parametrize("name", ["grouped", "window", "sinks", "normed heads", "alibi", "latent"])
@torch.no_grad()
def test_the_engine_writes_for_several_rows_of_a_fused_model(name: str, kernels: str) -> None:
    layer = LayerSpec(MIXERS[name], GatedMLP(512), RMS)
    model = moved(ModelSpec(60, 256, 64, (layer,) * 2, norm=RMS, head=Head(tied=False)))
    prompts = [each.tolist() for each in draw(60, [5, 9, 3, 12])]
    sampling = Sampling(max_tokens=6, temperature=0.0, ignore_eos=True)
    done = Engine(LanguageModel(fused(model))).generate(prompts, sampling)
    for prompt, answer in zip(prompts, done, strict=True):
        text = list(prompt)
        for _ in range(6):
            text.append(int(model(torch.tensor([text])).logits[0, -1].argmax()))
        assert list(answer.tokens) == text[len(prompt) :]
