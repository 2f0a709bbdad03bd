"""A step of decoding in one call says what the model says layer by layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from dougong.compress import fuse, quantize
from dougong.engine import Engine, Sampling
from dougong.engine.work import Work
from dougong.hub import LanguageModel
from dougong.model import decoder_spec
from dougong.parts import int8, native
from dougong.parts.feedforward import MLP
from dougong.parts.norm import Norm
from dougong.parts.rope import Rope
from dougong.tune import IA3, LoRA, attach
from tests.contract.models import SPECS, build

from .kinds import MEMORY, moved

pytestmark = pytest.mark.usefixtures("unchecked")
GREEDY = Sampling(max_tokens=9, temperature=0.0, ignore_eos=True)
PROMPTS = [[5, 9, 2], [7, 1, 1, 8, 30, 4], [3], list(range(20)), [5, 9, 2, 7, 7]]
# What has no place on a tape: positions that are no rotation, gates and clips, chunks, other wirings, other mixers.
ELSEWHERE = {
    *("through", "gated", "gated heads", "alibi", "alibi, shared keys", "relative", "chunked", "normed projections"),
    *("experts", "latent", "delta", "mamba"),
}


@pytest.fixture(scope="module", autouse=True)
def built() -> None:
    if native.kernels() is None:
        pytest.skip(native.missing())


class Watched:
    """An engine, and how many of its steps ran by tape."""

    def __init__(self, lm: LanguageModel, taped: bool = True, **options: Any):
        self.engine = Engine(lm, memory=MEMORY, **options)
        self.steps = 0
        runner = self.engine.runner
        if not taped:
            runner.taped = None
        elif runner.taped is not None:
            run = runner.taped.run

            def counted(*given: Any) -> Any:
                hidden = run(*given)
                self.steps += hidden is not None
                return hidden

            runner.taped.run = counted  # pyright: ignore[reportAttributeAccessIssue]

    def says(self, prompts: list[list[int]] = PROMPTS, **options: Any) -> list[Any]:
        return self.engine.generate(prompts, replace(GREEDY, logprobs=True), **options)


def same(a: list[Any], b: list[Any], tolerance: float = 2e-4) -> None:
    assert [each.tokens for each in a] == [each.tokens for each in b]
    for one, other in zip(a, b, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


def checked(lm: LanguageModel, tolerance: float = 2e-4, **options: Any) -> None:
    """By tape, alone and together, as without one."""
    taped = Watched(lm, **options)
    plain = Watched(lm, taped=False, **options).says()
    same(taped.says(), plain, tolerance)
    assert taped.steps > 0
    before = taped.steps
    same([each for prompt in PROMPTS for each in taped.says([prompt])], plain, tolerance)
    assert taped.steps > before


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ELSEWHERE])
def test_every_kind_of_layer(name: str) -> None:
    checked(LanguageModel(build(name)))


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_other_layers_go_the_usual_way(name: str) -> None:
    watched = Watched(LanguageModel(build(name)))
    watched.says(PROMPTS[:2])
    assert watched.steps == 0


def _model(kv_heads: int = 2, **mixer: Any) -> LanguageModel:
    spec = decoder_spec(vocab=64, width=256, depth=2, heads=4, kv_heads=kv_heads, context=96)
    layers = tuple(replace(each, mixer=replace(each.mixer, **mixer)) for each in spec.layers)
    return LanguageModel(moved(replace(spec, layers=layers)))


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_every_storage_fused_or_not(method: str, fused: bool, kv_heads: int) -> None:
    lm = _model(kv_heads, bias=True)
    if fused:
        fuse(lm)
    quantize(lm, method)
    checked(lm)


def test_fused_floats() -> None:
    lm = _model(bias=True, qk_norm=Norm("rms", 1e-5))
    fuse(lm)
    checked(lm)


@pytest.mark.parametrize(
    "change",
    [
        {"window": 5},
        {"softcap": 3.0, "scale": 0.3},
        {"sinks": True, "bias": True, "out_bias": True},
        {"position": None},
        {"position": Rope(8, interleaved=True)},
    ],
    ids=str,
)
def test_attention_of_every_sort_fused(change: dict[str, Any]) -> None:
    lm = _model(**change)
    fuse(lm)
    checked(lm, page_size=4)


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "relu2", "tanh"])
def test_activations(activation: Any) -> None:
    spec = decoder_spec(vocab=61, width=32, depth=2, heads=4, context=96)
    for ffn in (MLP(56, activation, bias=True), replace(spec.layers[0].ffn, activation=activation)):  # pyright: ignore
        lm = LanguageModel(moved(replace(spec, layers=tuple(replace(each, ffn=ffn) for each in spec.layers))))
        if activation in native.ACTIVATIONS:
            checked(lm)
        else:
            watched = Watched(lm)
            watched.says(PROMPTS[:1])
            assert watched.steps == 0


def test_rows_come_and_go() -> None:
    """Answers of different lengths: lanes change hands, rows fall away, more arrive."""
    lm = _model()
    samplings = [replace(GREEDY, max_tokens=3 + 5 * number % 17) for number in range(9)]
    prompts = [list(range(1, 2 + 3 * number)) for number in range(9)]
    plain = Watched(lm, taped=False, max_batch=4).engine.generate(prompts, samplings)
    taped = Watched(lm, max_batch=4)
    same(taped.engine.generate(prompts, samplings), plain)
    assert taped.steps > 20


def test_adapters_are_not_on_it() -> None:
    lm = _model()
    watched = Watched(lm)
    base = watched.says()
    attach(lm, LoRA(rank=4), name="mine")
    with torch.no_grad():
        for name, parameter in lm.model.named_parameters():
            if name.endswith(".b"):
                parameter.normal_()
    steps = watched.steps
    changed = watched.says()
    assert watched.steps == steps and [each.tokens for each in changed] != [each.tokens for each in base]
    same(watched.says(adapter=""), base)


def test_hooks_are_called() -> None:
    """A look inside, or an adapter that is a hook: the step goes module by module again."""
    lm = _model()
    watched = Watched(lm)
    base = watched.says()
    seen: list[int] = []
    hook = lm.model.layers[1].register_forward_hook(lambda *given: seen.append(1))
    steps = watched.steps
    same(watched.says(), base)
    assert watched.steps == steps and len(seen) > 5
    hook.remove()
    same(watched.says(), base)
    assert watched.steps > steps
    steps, last = watched.steps, lm.model.norm
    assert last is not None
    hook = last.register_forward_hook(lambda *given: seen.append(2))
    same(watched.says(), base)
    assert watched.steps == steps and seen.count(2) > 5
    hook.remove()
    attach(lm, IA3(), match="layers.*.ffn.down", name="mine")
    with torch.no_grad():
        for parameter in lm.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(-1.5)
    changed = watched.says()
    assert [each.tokens for each in changed] != [each.tokens for each in base]
    same(changed, Watched(lm, taped=False).says())


def test_weights_that_change_are_seen() -> None:
    lm = _model()
    watched = Watched(lm)
    watched.says()
    with torch.no_grad():
        for parameter in lm.model.parameters():
            parameter.mul_(0.7)  # in place, as an optimizer does
    same(watched.says(), Watched(lm, taped=False).says())
    other = _model(bias=False)
    lm.model.layers[1].ffn.down.storage = other.model.layers[0].ffn.down.storage  # pyright: ignore
    same(watched.says(), Watched(lm, taped=False).says())
    lm.model.layers[0].mixer.q.storage.weight.data = torch.randn(256, 256)  # pyright: ignore
    watched.engine.reset()
    same(watched.says(), Watched(lm, taped=False).says())


@pytest.mark.parametrize("storage", ["bfloat16", "int8"])
def test_bfloat16_is_as_near_to_float32_as_the_usual_way(storage: str) -> None:
    """Not nearer to the usual way than to the truth: what that rounds after every operation stays whole here."""
    lm = _model(bias=True)
    lm.model.bfloat16()
    if storage == "int8":
        fuse(lm)
        quantize(lm, "int8")
    given = Sampling(max_tokens=6, temperature=0.0, logprobs=True, forced=tuple(range(6)))
    taped, plain = Watched(lm), Watched(lm, taped=False)
    mine, others = (each.engine.generate(PROMPTS, given) for each in (taped, plain))
    assert taped.steps > 0
    lm.model.float()
    truth = Watched(lm, taped=False).engine.generate(PROMPTS, given)

    def far(answers: list[Any]) -> float:
        pairs = zip(answers, truth, strict=True)
        return max(abs(a - b) for one, other in pairs for a, b in zip(one.logprobs, other.logprobs, strict=True))

    assert far(mine) <= 1.5 * far(others) + 1e-3


@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("name", ["llama", "mistral", "sinks", "softcap", "gpt2", "odd heads"])
def test_keys_in_bytes(kv: str, name: str) -> None:
    """Rounded alike: the numbers that are rounded differ in their last bits, so a byte may by one."""
    lm = LanguageModel(build(name)) if name in SPECS else _model(head_size=20, position=Rope(20))
    checked(lm, tolerance=0.02, kv=kv)


def _quantised(name: str, method: str = "int8") -> LanguageModel:
    lm = LanguageModel(build(name))
    fuse(lm)
    quantize(lm, method)
    return lm


def _read(lm: LanguageModel, prompts: list[list[int]] = PROMPTS, near: float = 4e-3, **options: Any) -> int:
    """Prompts read by tape answer as those read module by module; how many passes a tape took."""
    taped, plain = Watched(lm, **options), Watched(lm, taped=False, **options)
    assert taped.engine.runner.taped is not None
    read, passes = taped.engine.runner.taped.read, 0

    def counted(*given: Any) -> Any:
        nonlocal passes
        chosen = read(*given)
        passes += chosen is not None
        return chosen

    taped.engine.runner.taped.read = counted  # pyright: ignore[reportAttributeAccessIssue]
    expected = plain.says(prompts)
    same(taped.says(prompts), expected, near)  # a sum in another order may tip the 8-bit rounding of an activation
    same([each for prompt in prompts for each in taped.says([prompt])], expected, near)
    return passes


@pytest.mark.parametrize("name", [name for name in SPECS if name not in ELSEWHERE])
def test_prompts_of_every_kind_of_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "_WASTE", 100.0)  # these matrices are so small that they would lie in rows
    lm = _quantised(name)
    mixers = [layer.mixer for layer in lm.spec.layers]
    plain = not any(getattr(each, "softcap", None) or getattr(each, "sinks", False) for each in mixers)
    windows = [each.window for each in mixers if getattr(each, "window", None) is not None]
    passes = _read(lm)
    assert (passes > 0) == (plain and (not windows or min(windows) >= min(map(len, PROMPTS))))


@pytest.mark.parametrize("method", ["int8", "int4"])
@pytest.mark.parametrize("change", [{"kv_heads": 1}, {"kv_heads": 4}, {"position": Rope(8, interleaved=True)}], ids=str)
@pytest.mark.parametrize("pages", [1, 5, 16])
def test_prompts_over_any_pages_in_any_chunks(method: str, change: dict[str, Any], pages: int) -> None:
    lm = _model(**change)
    fuse(lm)
    quantize(lm, method)
    long = [[(3 * place + number) % 64 for place in range(70 + number)] for number in range(3)]
    assert _read(lm, [*PROMPTS, *long], page_size=pages, prefill_tokens=23) > 4


@pytest.mark.parametrize("kv", ["int8", "fp8"])
@pytest.mark.parametrize("pages", [1, 5, 16])
def test_prompts_with_keys_in_bytes(kv: str, pages: int) -> None:
    lm = _model(kv_heads=2)
    fuse(lm)
    quantize(lm, "int8")
    long = [[(3 * place + number) % 64 for place in range(70 + number)] for number in range(3)]
    assert _read(lm, [*PROMPTS, *long], 0.02, kv=kv, page_size=pages, prefill_tokens=23) > 4


def test_prompts_longer_than_a_tape() -> None:
    """In portions: what comes later reads what came before from its pages."""
    spec = decoder_spec(vocab=64, width=64, depth=2, heads=4, kv_heads=2, context=2048)
    lm = LanguageModel(moved(spec))
    fuse(lm)
    quantize(lm, "int8")
    prompts = [[(7 * place + number) % 64 for place in range(700 + 300 * number)] for number in range(3)]
    assert _read(lm, prompts, prefill_tokens=2048) > 0


def test_every_token_of_a_prompt_can_be_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left out where more than the last token is wanted; texts that begin alike share pages."""
    monkeypatch.setattr(int8, "_WASTE", 100.0)
    lm = _quantised("llama")
    taped, plain = Watched(lm, page_size=4), Watched(lm, taped=False, page_size=4)
    prompts = [*PROMPTS[1:2], *PROMPTS[3:], [*PROMPTS[3][:13], 1, 2, 3], PROMPTS[3]]
    for given in (prompts, prompts[::-1]):
        works = []
        for each in (taped, plain):
            runner = each.engine.runner
            opened = [runner.open(prompt) for prompt in given]
            works.append(
                runner.step(
                    [
                        Work(seq, prompt[seq.length :], len(prompt) - seq.length)
                        for seq, prompt in zip(opened, given, strict=True)
                    ]
                )
            )
            for seq in opened:
                runner.close(seq)
        for mine, other in zip(*works, strict=True):
            assert torch.allclose(mine.logits, other.logits, atol=1e-3)
