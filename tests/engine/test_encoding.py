"""Whole texts by tape have the hidden states that the model gives them, whatever they stand beside."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch

from dougong.compress import fuse, quantize
from dougong.engine.embed import embed_tokens
from dougong.engine.encoding import ROWS, Encoding, encoding
from dougong.hub import LanguageModel
from dougong.model import Model, ModelSpec, decoder_spec
from dougong.parts import native
from dougong.parts.embedding import Embedding
from dougong.parts.feedforward import MLP
from dougong.parts.heads import Pooled
from dougong.parts.norm import LayerNorm, Norm
from dougong.parts.position import Alibi, Learned
from dougong.parts.rope import DynamicNTK, Rope
from dougong.tune import LoRA, attach

from .kinds import moved

pytestmark = pytest.mark.usefixtures("unchecked")
LAYER = Norm("layer", 1e-12, bias=True)
LENGTHS = (3, 1, 17, 64, 5, 65, 2)


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if native.kernels() is None:
        pytest.skip(native.missing())


def texts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(0, 64, (length,), generator=draw).tolist() for length in LENGTHS]


def spec_of(
    causal: bool = False, ffn: Any = None, norm: Norm | None = None, wiring: str = "pre", **mixer: Any
) -> ModelSpec:
    spec = decoder_spec(vocab=64, width=256, depth=2, heads=4, kv_heads=2, context=96)
    layers = tuple(
        replace(
            each,
            mixer=replace(each.mixer, **mixer),
            ffn=ffn or each.ffn,
            norm=norm or each.norm,
            wiring=wiring,
        )
        for each in spec.layers
    )
    return replace(spec, layers=layers, causal=causal)


BERT = replace(
    spec_of(
        ffn=MLP(512, "gelu", bias=True), norm=LAYER, wiring="post", position=None, kv_heads=4, bias=True, out_bias=True
    ),
    norm=None,
    embedding=Embedding(Learned(96), norm=LAYER),
)


def model_of(spec: ModelSpec, method: str = "int8", fused: bool = True) -> Model:
    lm = LanguageModel(moved(spec))
    if fused:
        fuse(lm)
    quantize(lm, method)
    return lm.model.eval()


def states(model: Model) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [model(torch.tensor([each])).hidden[0] for each in texts()]


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float = 0.02) -> None:
    """Activations go to integers: a rounding apart, one of them may fall the other way."""
    assert one.shape == other.shape
    assert float((one - other).norm() / other.norm()) < tolerance


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "spec",
    [
        BERT,
        spec_of(),
        spec_of(causal=True),
        spec_of(wiring="parallel", position=Rope(64, interleaved=True)),
        spec_of(wiring="sandwich", norm=LAYER, qk_norm=Norm("rms", 1e-5)),
    ],
    ids=["bert", "both ways", "causal", "parallel", "sandwich"],
)
def test_texts_side_by_side(spec: ModelSpec, fused: bool, method: str) -> None:
    model = model_of(spec, method, fused)
    with torch.inference_mode():
        together = Encoding(model).read(model, texts())
        alone = [Encoding(model).read(model, [each]) for each in texts()]
    assert together is not None
    for each, own, usual in zip(together, alone, states(model), strict=True):
        near(each, usual)
        assert own is not None and torch.equal(own[0], each)


def test_what_a_text_stands_beside_changes_nothing_and_portions_are_whole() -> None:
    model = model_of(BERT)
    many = texts() * 9
    assert sum(map(len, many)) > 2 * ROWS
    with torch.inference_mode():
        found, once = Encoding(model).read(model, many), Encoding(model).read(model, texts())
    assert found is not None and once is not None
    for place, each in enumerate(found):
        assert torch.equal(each, once[place % len(once)])


def test_embeddings_of_threads_do_not_mix() -> None:
    model = model_of(replace(BERT, task=Pooled("mean", normalise=True)))
    wanted = [embed_tokens(model, [each], 4096) for each in texts()]
    wrong: list[int] = []

    def ask(place: int) -> None:
        for _ in range(20):
            if not torch.equal(embed_tokens(model, [texts()[place]], 4096), wanted[place]):
                wrong.append(place)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(wanted))]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong
    assert encoding(model) is encoding(model)


@pytest.mark.parametrize("at", ["mean", "first", "last"])
def test_pooling_is_the_models(at: Any) -> None:
    model = model_of(replace(BERT, task=Pooled(at, normalise=True)))
    with torch.inference_mode():
        usual = torch.cat([model(torch.tensor([each])).embedding for each in texts()])
    near(embed_tokens(model, texts(), 4096), usual)


@pytest.mark.parametrize(
    "spec",
    [
        spec_of(window=5),
        spec_of(softcap=3.0),
        spec_of(position=Alibi(), kv_heads=4),
        spec_of(position=Rope(64, scaling=DynamicNTK(2.0, 16))),
    ],
    ids=["window", "softcap", "alibi", "by length"],
)
def test_what_nobody_wrote_down_goes_the_usual_way(spec: ModelSpec) -> None:
    model = model_of(spec)
    assert Encoding(model).read(model, texts()) is None
    assert embed_tokens(model, texts(), 4096).shape == (len(LENGTHS), 256)


def test_what_is_more_than_the_model_goes_the_usual_way() -> None:
    lm = LanguageModel(moved(BERT))
    assert Encoding(lm.model).read(lm.model, texts()) is None  # floats, and many tokens
    quantize(lm, "int8")
    made = Encoding(lm.model)
    with torch.inference_mode():
        assert made.read(lm.model, texts()) is not None
    assert made.read(lm.model, [[]]) is None and made.read(lm.model, [[1] * (ROWS + 1)]) is None
    assert made.read(lm.model, []) is None
    attach(lm, LoRA(rank=2))
    with torch.inference_mode():
        assert made.read(lm.model, texts()) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_in_floats(dtype: torch.dtype) -> None:
    model = moved(BERT).to(dtype).eval()
    made, few = Encoding(model), texts()[:2]
    with torch.inference_mode():
        found = made.read(model, few)
        assert found is not None and made.read(model, texts()) is None
        for each, tokens in zip(found, few, strict=True):
            near(each.float(), model(torch.tensor([tokens])).hidden[0].float())


@pytest.mark.parametrize("method", [None, "int8"])
def test_weights_that_have_changed_are_read_anew(method: str | None) -> None:
    lm = LanguageModel(moved(BERT).to(torch.bfloat16).eval())
    if method:
        quantize(lm, method)
    model, few = lm.model, texts()[:2]
    made = Encoding(model)
    with torch.inference_mode():
        made.read(model, few)
    norm = next(each for each in model.layers.modules() if isinstance(each, LayerNorm))
    with torch.no_grad():
        assert norm.bias is not None
        norm.bias.add_(3.0)  # of a norm in bfloat16 the tape has a copy
    with torch.inference_mode():
        for each, tokens in zip(made.read(model, few) or [], few, strict=True):
            near(each.float(), model(torch.tensor([tokens])).hidden[0].float(), 0.06)
    model.to(torch.float32)  # moves every weight
    with torch.inference_mode():
        for each, tokens in zip(made.read(model, few) or [], few, strict=True):
            near(each, model(torch.tensor([tokens])).hidden[0])
