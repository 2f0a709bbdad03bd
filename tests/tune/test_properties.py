"""What holds for every method on every family: an adapter starts as nothing, comes off whole, and trains alone."""

from __future__ import annotations

import pytest
import torch

from dougong.base import DougongError
from dougong.parts.linear import Linear
from dougong.tune import (
    IA3,
    AdaLoRA,
    BitFit,
    DeltaLoRA,
    DoRA,
    Frozen,
    Full,
    Houlsby,
    LinearProbe,
    LoRA,
    LoRAFA,
    LoRAPlus,
    Parallel,
    PrefixTuning,
    PromptTuning,
    PTuning,
    VeRA,
    attach,
    attached,
    combine,
    detach,
    disabled,
    load_adapter,
    merge,
    rows,
    save_adapter,
    unmerge,
    using,
)

from .models import FAMILIES, apart, build, logits, near, run, shake, text

families = pytest.mark.parametrize("family", FAMILIES)
WEIGHTS = {
    "lora": LoRA(rank=3, alpha=6),
    "rslora": LoRA(rank=3, rslora=True),
    "dora": DoRA(rank=3),
    "lora_fa": LoRAFA(rank=3),
    "lora_plus": LoRAPlus(rank=3),
    "delta_lora": DeltaLoRA(rank=3),
    "adalora": AdaLoRA(rank=3, target=2),
    "vera": VeRA(rank=5),
    "ia3": IA3(),
}
BESIDE = {"houlsby": Houlsby(4), "parallel": Parallel(4)}
PROMPTS = {
    "prompt": PromptTuning(4),
    "p_tuning": PTuning(4),
    "lstm": PTuning(4, network="lstm", hidden=6),
    "prefix": PrefixTuning(4),
    "projected": PrefixTuning(4, hidden=6),
}
# One plug-in in several guises: two families say enough of these.
GUISES = {"rslora", "lora_fa", "lora_plus", "delta_lora", "parallel", "lstm", "projected"}


def each(methods) -> pytest.MarkDecorator:
    """Every family with every method, but for the guises of one plug-in."""
    pairs = [
        (family, method)
        for family in FAMILIES
        for method in methods
        if family in ("llama", "qwen3_moe") or (method not in GUISES and family != "phi3")
    ]
    return pytest.mark.parametrize(("family", "method"), pairs)


def match_of(family: str, method: object) -> str | None:
    return "o up" if family == "mamba" and isinstance(method, (IA3, Parallel, Houlsby)) else None


def on(family: str, method: str, **more):
    lm = build(family)
    known = WEIGHTS | BESIDE
    attach(lm, known[method], match_of(family, known[method]), **more)
    return lm


@each(WEIGHTS | BESIDE)
def test_it_starts_as_nothing_says_something_and_can_be_silenced(family, method):
    base, tokens = build(family), text()
    before = logits(base, tokens)
    lm = on(family, method)
    near(logits(lm, tokens), before)
    shake(lm)
    apart(logits(lm, tokens), before)
    with disabled(lm):
        near(logits(lm, tokens), before, 1e-6)
    apart(logits(lm, tokens), before)
    detach(lm)
    near(logits(lm, tokens), before, 1e-6)
    assert lm.model.weights().keys() == base.model.weights().keys()
    assert all(
        p.requires_grad == q.requires_grad for p, q in zip(lm.model.parameters(), base.model.parameters(), strict=True)
    )


@each(WEIGHTS)
def test_merged_is_unmerged(family, method):
    lm, tokens = on(family, method), text()
    shake(lm, size=0.1)
    before = logits(lm, tokens)
    with disabled(lm):
        base = logits(lm, tokens)
    merge(lm, keep=True)
    near(logits(lm, tokens), before, 1e-4)
    unmerge(lm)
    near(logits(lm, tokens), before, 1e-6)
    with disabled(lm):
        near(logits(lm, tokens), base, 1e-6)
    merge(lm)
    near(logits(lm, tokens), before, 1e-4)
    assert not attached(lm) and not any("adapters" in name for name in lm.model.weights())


@each(WEIGHTS | BESIDE | PROMPTS)
def test_only_the_adapter_is_trained(family, method):
    if family == "mamba" and method in ("prefix", "projected"):
        pytest.skip("no keys and values to put a prefix before")
    lm, tokens = build(family), text()
    chosen = (WEIGHTS | BESIDE | PROMPTS)[method]
    tuning = attach(lm, chosen, match_of(family, chosen))
    shake(lm, size=0.05)
    before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
    lm.model.train()
    run(lm, tokens).square().mean().backward()
    own = {id(parameter) for parameter in tuning.parameters().values()}
    assert own
    for name, parameter in lm.model.named_parameters():
        trained = id(parameter) in own and not (method == "lora_fa" and name.endswith(".a"))
        assert parameter.requires_grad == trained, name
        assert (parameter.grad is not None) <= trained, name
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in tuning.parameters().values())
    torch.optim.SGD([p for p in lm.model.parameters() if p.requires_grad], 0.1).step()
    changed = {name for name, p in lm.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed and all(".adapters." in name for name in changed)


@each(WEIGHTS | BESIDE)
def test_rows_of_one_batch_have_adapters_of_their_own(family, method):
    lm, tokens = build(family), text(4)
    chosen = (WEIGHTS | BESIDE)[method]
    for seed, name in enumerate("ab"):
        attach(lm, chosen, match_of(family, chosen), name)
        shake(lm, name, seed=seed)
    alone = {}
    for name, other in (("a", "b"), ("b", "a")):
        with disabled(lm, [other]):
            alone[name] = logits(lm, tokens)
    with disabled(lm):
        alone[None] = logits(lm, tokens)
    choice = ["b", None, "a", "b"]
    if chosen.whole:
        with pytest.raises(DougongError, match="cannot serve some rows"):
            rows(lm, choice)
        return
    with using(lm, choice):
        mixed = logits(lm, tokens)
    for row, name in enumerate(choice):
        near(mixed[row], alone[name][row], 1e-4)
    with using(lm, [None] * 4):
        near(logits(lm, tokens), alone[None])


@each(["lora", "dora", "vera", "adalora", "ia3", "houlsby"])
def test_files_hold_the_adapter_alone_and_give_it_back(family, method, tmp_path):
    lm, tokens = on(family, method), text()
    shake(lm)
    save_adapter(lm, tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = build(family)
    load_adapter(again, tmp_path / "a", "other")
    near(logits(again, tokens), logits(lm, tokens), 1e-4)
    assert not any(parameter.requires_grad for parameter in again.model.parameters())
    save_adapter(lm, tmp_path / "b", form="own")
    third = build(family)
    load_adapter(third, tmp_path / "b", train=True)
    near(logits(third, tokens), logits(lm, tokens), 1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe", "deepseek_v3", "t5"])
@pytest.mark.parametrize("method", PROMPTS)
def test_prompts_stand_before_every_document(family, method, tmp_path):
    """Packed documents, padded rows and rows alone see the same prompt; files give it back."""
    lm, tokens = build(family), text(2, 8)
    attach(lm, PROMPTS[method])
    shake(lm, size=0.5)
    out = logits(lm, tokens)
    with disabled(lm):
        base = logits(lm, tokens)
    apart(out, base)
    assert out.shape == base.shape
    if family == "t5":
        return
    packed = tokens.reshape(1, 16)
    documents = torch.tensor([[0] * 8 + [1] * 8])
    positions = torch.arange(8).repeat(2)[None]
    near(logits(lm, packed, documents=documents, positions=positions).view(2, 8, -1), out, 1e-4)
    for side in (slice(0, 8), slice(3, 11)):
        padding = torch.ones(2, 11, dtype=torch.bool)
        padding[:, side] = False
        padded = torch.zeros(2, 11, dtype=torch.int64)
        padded[:, side] = tokens
        near(logits(lm, padded, padding=padding)[:, side], out, 1e-4)
    save_adapter(lm, tmp_path / "a")
    again = build(family)
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), out, 1e-4)
    detach(lm)
    near(logits(lm, tokens), base, 1e-6)
    assert lm.model.ids == 60


def test_a_prompts_ids_do_the_same_in_steps():
    """Who keeps a state writes the virtual ids itself."""
    from dougong.tune import prompt_ids

    for method in (PromptTuning(4), PrefixTuning(4)):
        lm, tokens = build("llama"), text(2, 6)
        attach(lm, method)
        shake(lm, size=0.5)
        whole = torch.cat((torch.tensor([prompt_ids(lm.model)] * 2), tokens), 1)
        cache, parts = lm.model.cache(2, 12), []
        with torch.no_grad():
            for piece in whole.split([5, 1, 4], 1):
                parts.append(lm.model.run(piece, cache.context(piece), cache).logits)
                cache.advance(piece.shape[1])
        near(torch.cat(parts, 1)[:, 4:], logits(lm, tokens), 1e-4)


def test_two_prompts_serve_rows_of_one_batch():
    lm, tokens = build("llama"), text(3, 6)
    for name, count in (("a", 4), ("b", 2)):
        attach(lm, PromptTuning(count), name=name, seed=count)
    alone = {}
    for name, other in (("a", "b"), ("b", "a")):
        with disabled(lm, [other]):
            alone[name] = logits(lm, tokens)
    with disabled(lm):
        alone[None] = logits(lm, tokens)
    with using(lm, ["b", "a", None]):
        mixed = logits(lm, tokens)
    for row, name in enumerate(["b", "a", None]):
        near(mixed[row], alone[name][row], 1e-4)


@pytest.mark.parametrize("method", [LoRA(rank=3), DoRA(rank=3)], ids=["lora", "dora"])
@pytest.mark.parametrize("family", ["gpt2", "qwen3_moe", "t5"])
def test_tied_weights_survive(family, method):
    """The head and the embedding are one storage; adapting either leaves the other alone, merged or not."""
    for match in ("head", "embedding"):
        lm, tokens = build(family), text()
        storage, base = lm.model.head.storage, logits(lm, tokens)
        assert storage is lm.model.embedding.storage
        attach(lm, method, match)
        assert lm.model.head.storage is lm.model.embedding.storage is storage
        near(logits(lm, tokens), base, 1e-5)
        shake(lm)
        apart(logits(lm, tokens), base)
        before = logits(lm, tokens)
        merge(lm, keep=True)
        assert not lm.spec.head.tied or (match == "embedding" and family == "t5")
        near(logits(lm, tokens), before, 1e-4)
        unmerge(lm)
        assert lm.model.head.storage is lm.model.embedding.storage is storage and lm.spec.head.tied
        near(logits(lm, tokens), before, 1e-6)


@families
def test_the_models_own_weights(family, tmp_path):
    lm, tokens = build(family), text()
    before = logits(lm, tokens)
    tied = lm.spec.head.tied
    tuning = attach(lm, LinearProbe())
    trained = [name for name, p in lm.model.named_parameters() if p.requires_grad]
    assert trained and all(name.startswith("head.") for name in trained) and not lm.spec.head.tied
    shake(lm)
    after = logits(lm, tokens)
    apart(after, before)
    with disabled(lm):
        near(logits(lm, tokens), before, 1e-6)
    save_adapter(lm, tmp_path / "a")
    again = build(family)
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), after)
    detach(lm)
    near(logits(lm, tokens), before, 1e-6)
    assert lm.spec.head.tied == tied and tuning.also


def test_bitfit_trains_biases_alone(tmp_path):
    lm, tokens = build("gpt2"), text()
    before = logits(lm, tokens)
    attach(lm, BitFit())
    trained = [name for name, p in lm.model.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * 8 + 1 and all(name.endswith("bias") for name in trained)
    shake(lm)
    save_adapter(lm, tmp_path / "a")
    again = build("gpt2")
    load_adapter(again, tmp_path / "a")
    near(logits(again, tokens), logits(lm, tokens))
    detach(lm)
    near(logits(lm, tokens), before, 1e-6)
    with pytest.raises(DougongError, match="no biases"):
        attach(build("llama"), BitFit())


def test_full_and_frozen_layers():
    lm = build("llama")
    attach(lm, Frozen(1))
    names = {name for name, p in lm.model.named_parameters() if p.requires_grad}
    assert names and not any(name.startswith(("layers.0.", "embedding.")) for name in names)
    assert any(name.startswith("layers.1.") for name in names)
    detach(lm)
    attach(lm, Full())
    assert all(parameter.requires_grad for parameter in lm.model.parameters())
    with pytest.raises(DougongError, match=r"save that|save the model"):
        save_adapter(lm, "nowhere")


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gpt2"])
def test_a_weighted_sum_of_adapters(family):
    lm, tokens = build(family), text()
    made = (LoRA(rank=2), LoRA(rank=3, rslora=True), VeRA(rank=4), AdaLoRA(rank=3, target=2))
    for index, method in enumerate(made):
        attach(lm, method, name=f"a{index}")
        shake(lm, f"a{index}", 0.05, seed=index)
    base = {path: site.weight.detach().clone() for path, site in lm.model.linears() if "layers" in path}
    weights = {"a0": 0.5, "a1": -0.3, "a2": 2.0, "a3": 0.25}
    deltas = {}
    for name, weight in weights.items():
        for path, plug in attached(lm)[name].plugs.items():
            site = lm.model.get_submodule(path)
            delta = plug.merged(site.weight.detach(), None, site.weight.detach())[0] - site.weight.detach()
            deltas[path] = deltas.get(path, 0) + weight * delta
    combine(lm, weights, "sum")
    mixed = logits(lm, tokens)
    merge(lm, ["sum"])
    for path, delta in deltas.items():
        if path in base:
            near(lm.model.get_submodule(path).weight, base[path] + delta, 1e-5)
    near(logits(lm, tokens), mixed, 1e-4)


def test_prompts_and_scales_combine():
    lm, tokens = build("llama"), text()
    for index, name in enumerate("ab"):
        attach(lm, IA3(), name=name)
        shake(lm, name, seed=index)
    combine(lm, {"a": 1.0, "b": 0.0}, "c")
    mixed = logits(lm, tokens)
    detach(lm, "c")
    attached(lm)["a"].turn(True)
    near(mixed, logits(lm, tokens))
    lm = build("llama")
    for index, name in enumerate("ab"):
        attach(lm, PromptTuning(3), name=name, seed=index)
    combine(lm, {"a": 0.0, "b": 1.0}, "c")
    mixed = logits(lm, tokens)
    detach(lm, "c")
    attached(lm)["b"].turn(True)
    near(mixed, logits(lm, tokens))


def test_what_is_wrong_is_said(tmp_path):
    lm = build("llama")
    with pytest.raises(DougongError, match=r"match 'qq' fits no module.*did you mean 'q'"):
        attach(lm, LoRA(), match="qq")
    attach(lm, LoRA())
    with pytest.raises(DougongError, match=r"'default' is attached already"):
        attach(lm, LoRA())
    with pytest.raises(DougongError, match="no adapter 'x'; attached: default"):
        detach(lm, "x")
    with pytest.raises(DougongError, match=r"cannot be named 'a\.b'"):
        attach(lm, LoRA(), name="a.b")
    with pytest.raises(DougongError, match="rank is 0"):
        LoRA(rank=0)
    with pytest.raises(DougongError, match="no adapter is merged"):
        unmerge(lm)
    attach(lm, Houlsby(), name="h")
    before = logits(lm, text())
    with pytest.raises(DougongError, match="Houlsby is no change of a weight"):
        merge(lm)
    near(logits(lm, text()), before, 1e-6)
    with (
        pytest.raises(DougongError, match=r"9 vectors, but adapters were given for 2 rows|27 vectors"),
        using(lm, ["h"] * 2),
    ):
        logits(lm, text())
    (tmp_path / "x").write_text("")
    with pytest.raises(DougongError, match=r"something other than an adapter"):
        save_adapter(lm, tmp_path)
    with pytest.raises(DougongError, match=r"has no adapter_config\.json"):
        load_adapter(lm, tmp_path)
    assert isinstance(lm.model.head, Linear)
