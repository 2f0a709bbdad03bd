"""`sft` with an adapter: what is trained and saved, resuming bit for bit, the methods' sides of the optimizer."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace

import pytest
import torch

from dougong.base import DougongError
from dougong.cli import main
from dougong.data import mix, read_conversations
from dougong.data.chat import conversation_from, encode_conversations
from dougong.hub import LanguageModel, load, save
from dougong.model import Model, decoder_spec, initialise
from dougong.tokenizer import byte_tokenizer
from dougong.train import Optimizer, Stopped, Training
from dougong.train import loop as training_loop
from dougong.train import sft as sft_job
from dougong.train.checkpoint import latest
from dougong.train.recipe import ChatData, Sft, read_recipe, write_recipe
from dougong.train.sft import sft
from dougong.tune import (
    AdaLoRA,
    DeltaLoRA,
    DoRA,
    LoRA,
    LoRAFA,
    LoRAPlus,
    Tune,
    attach,
    attached,
    load_adapter,
    merge,
    quantize_base,
)

from .models import FAMILIES, apart, build, logits, near, run, shake, text

CHATS = [
    conversation_from(
        {"messages": [{"role": "user", "content": f"say {w}"}, {"role": "assistant", "content": w * 2}]}, w
    )
    for w in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op", "qr", "st")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tokenizer = byte_tokenizer()
    spec = decoder_spec(tokenizer.vocab_size, width=16, depth=2, heads=2, context=256, tied=False)
    model = initialise(Model(spec))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    folder = tmp_path_factory.mktemp("models") / "base"
    save(LanguageModel(model, tokenizer), folder)
    return folder


def recipe(base, run, method="lora", steps=6, **options):
    training = Training(steps, optimizer=Optimizer(rate=0.01), checkpoint=0)
    return Sft(
        base, run, ChatData(held_out=0.0), Tune(method, options=options), training, batch=4, length=96, layout="packed"
    )


OPTIONS = {
    "lora": {"rank": 3, "dropout": 0.1},
    "dora": {"rank": 3},
    "lora_plus": {"rank": 3},
    "lora_fa": {"rank": 3},
    "delta_lora": {"rank": 3, "warmup": 1},
    "adalora": {"rank": 3, "target": 1, "begin": 1, "end": 1},
    "vera": {"rank": 4},
    "prompt": {"tokens": 3},
    "prefix": {"tokens": 3},
    "bitfit": None,
    "linear_probe": {},
    "houlsby": {"width": 3},
}


@pytest.mark.parametrize("method", [name for name, options in OPTIONS.items() if options is not None])
def test_a_stopped_run_goes_on_bit_for_bit(base, tmp_path, method, monkeypatch):
    sft(recipe(base, tmp_path / "whole", method, **OPTIONS[method]), CHATS, quiet=True)
    real = training_loop.next_token
    calls = []

    def interrupting(model, batch):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return real(model, batch)

    cut = recipe(base, tmp_path / "cut", method, **OPTIONS[method])
    with monkeypatch.context() as patch:
        train = sft_job.train
        patch.setattr(sft_job, "train", lambda *given, **named: train(*given, **named, objective=interrupting))
        with pytest.raises(Stopped, match="after update 3 of 6"):
            sft(cut, CHATS, quiet=True)
    state = torch.load(latest(tmp_path / "cut" / "checkpoints") / "state.pt", weights_only=True)["weights"]
    if method == "delta_lora":
        assert any(name.endswith("storage.weight") for name in state) and "embedding.storage.weight" not in state
    else:
        assert state and all(".adapters." in name or name.startswith("head.") for name in state)
    sft(cut, CHATS, resume=True, quiet=True)
    kind = "model/model" if method == "delta_lora" else "adapter/adapter_model"
    assert (tmp_path / "whole" / f"{kind}.safetensors").read_bytes() == (
        tmp_path / "cut" / f"{kind}.safetensors"
    ).read_bytes()


def test_an_adapter_learns_and_becomes_a_model(base, tmp_path):
    lm = load(base)
    before = logits(lm, text(2, 8))
    write_recipe(tmp_path / "recipe.yaml", recipe(base, tmp_path / "run", rank=4, alpha=16))
    assert read_recipe(Sft, tmp_path / "recipe.yaml").tune.options == {"rank": 4, "alpha": 16}
    figures = sft(recipe(base, tmp_path / "run", steps=20, rank=4, alpha=16), CHATS, quiet=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0] - 0.3
    assert figures["trained_parameters"] < 0.5 * lm.spec.parameters()
    assert not (tmp_path / "run" / "model").exists()
    load_adapter(lm, tmp_path / "run" / "adapter")
    tuned = logits(lm, text(2, 8))
    apart(tuned, before)
    assert main(["merge", str(tmp_path / "run")]) == 0
    made = load(tmp_path / "run" / "model")
    near(logits(made, text(2, 8)), tuned, 1e-4)
    assert made.tokenizer.chat_template is not None
    adapter = str(tmp_path / "run" / "adapter")
    assert main(["merge", adapter, adapter, "--weights", "0.75", "0.25", "--out", str(tmp_path / "two")]) == 0
    near(logits(load(tmp_path / "two"), text(2, 8)), tuned, 1e-4)
    assert main(["merge", str(tmp_path)]) == 1


def test_methods_that_train_the_model_leave_a_model(base, tmp_path):
    for method, options in (("delta_lora", {"rank": 2, "warmup": 0}), ("frozen", {"layers": 1})):
        sft(recipe(base, tmp_path / method, method, **options), CHATS, quiet=True)
        lm, old = load(tmp_path / method / "model"), load(base)
        apart(logits(lm, text(2, 8)), logits(old, text(2, 8)))
        cold = lm.model.layers[0].mixer.q.weight
        assert torch.equal(cold, old.model.layers[0].mixer.q.weight) == (method == "frozen")


def test_a_quantised_base_trains(base, tmp_path):
    told = recipe(base, tmp_path / "run", steps=10, rank=4)
    sft(replace(told, tune=Tune("lora", quantize="nf4", options={"rank": 4})), CHATS, quiet=True)
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1] < losses[0]
    with pytest.raises(DougongError, match=r"tune\.quantize is 'nf4', but full trains"):
        Tune("full", quantize="nf4")


@pytest.mark.parametrize("family", FAMILIES[:6])
@pytest.mark.parametrize("form", ["nf4", "int8"])
def test_adapters_stack_on_quantised_weights(family, form):
    """Gradients of the adapter over a quantised base are those over its dense copy, up to rounding of activations."""
    lm, tokens = build(family), text()
    plain = logits(lm, tokens)
    assert quantize_base(lm, form) > 2
    attach(lm, LoRA(rank=3))
    shake(lm, size=0.1)
    quantised = logits(lm, tokens)
    assert float((quantised - plain).norm() / plain.norm()) < 2.0
    run(lm, tokens).square().mean().backward()
    for parameter in attached(lm)["default"].parameters().values():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all()
    merge(lm)
    merged = logits(lm, tokens)
    assert float((merged - quantised).norm() / quantised.norm()) < (1e-4 if form == "nf4" else 0.5)


def test_wrong_sections_are_refused_before_any_work():
    with pytest.raises(DougongError, match=r"tune\.method is 'lorra'; did you mean 'lora'"):
        Tune("lorra")
    with pytest.raises(DougongError, match=r"unknown key tune\.options\.rnak; did you mean 'rank'"):
        Tune("lora", options={"rnak": 3})
    with pytest.raises(DougongError, match="belong to a method"):
        Tune(options={"rank": 3})
    with pytest.raises(DougongError, match=r"weights has 1 numbers for 0 paths"):
        ChatData(weights=(1.0,))


def step(lm, method, rate=0.1, steps=10, count=1, kind="adamw"):
    """One or more updates on a fixed batch; returns the plug-ins' parameters before the last."""
    optimizers = Optimizer(kind, rate=rate, weight_decay=0.0).build(lm.model, steps)
    for number in range(count):
        run(lm, text(seed=number)).square().mean().backward()
        before = {name: p.detach().clone() for name, p in lm.model.named_parameters()}
        optimizers.step(1.0, torch.tensor(1.0))
    return before, optimizers


def test_lora_plus_moves_b_faster():
    moved = {}
    for ratio in (1.0, 4.0):
        lm = build("llama")
        attach(lm, LoRAPlus(rank=2, ratio=ratio))
        shake(lm)
        before, _ = step(lm, None, rate=0.001)
        moved[ratio] = {
            name: (p.detach() - before[name]).abs().mean() for name, p in lm.model.named_parameters() if p.requires_grad
        }
    for name in moved[1.0]:
        assert float(moved[4.0][name] / moved[1.0][name]) == pytest.approx(
            4.0 if name.endswith(".b") else 1.0, rel=1e-3
        )


def test_lora_fa_takes_the_nearest_update_of_the_weight():
    """Among changes s dB A of the weight, the corrected gradient's is the projection of the weight's own gradient."""
    generator = torch.Generator().manual_seed(0)
    a, own = torch.randn(3, 7, generator=generator), torch.randn(5, 7, generator=generator)
    from dougong.tune.lora_fa import correction

    scale = 1.7
    corrected = scale * (own @ a.T) @ correction(a, scale)  # the gradient of B, corrected
    change = scale * corrected @ a
    projection = own @ torch.linalg.pinv(a) @ a
    near(change, projection, 1e-4)


def test_delta_lora_moves_the_weight_with_the_product():
    lm = build("llama")
    attach(lm, DeltaLoRA(rank=2, ratio=0.5, warmup=1, alpha=6.0), "q")
    shake(lm)
    first = lm.model.layers[0].mixer.q
    start = first.weight.detach().clone()
    _, optimizers = step(lm, None, rate=0.01)
    assert torch.equal(first.weight, start)  # still warming up
    plug = attached(lm)["default"].plugs["layers.0.mixer.q"]
    a, b = plug.a.detach().clone(), plug.b.detach().clone()
    run(lm, text(seed=7)).square().mean().backward()
    assert first.storage.weight.grad is None
    optimizers.step(1.0, torch.tensor(1.0))
    near(first.weight, start + 0.5 * 3.0 * (plug.b @ plug.a - b @ a), 1e-6)


def test_adalora_spends_its_budget():
    lm = build("llama")
    attach(lm, AdaLoRA(rank=4, target=1, begin=1, end=2))
    step(lm, None, rate=0.01, steps=8, count=8)
    kept = [int((plug.e != 0).sum()) for plug in attached(lm)["default"].plugs.values()]
    assert sum(kept) == len(kept) * 1 and max(kept) > 1
    with pytest.raises(DougongError, match=r"AdaLoRA\.begin \+ end is 3 of 3 updates"):
        step(lm, None, steps=3)


@pytest.mark.filterwarnings("ignore")
def test_adalora_keeps_what_peft_keeps(tmp_path):
    """The same start and the same gradients leave the same triplets at every step."""
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    lm = build("llama")
    save(lm, tmp_path / "m")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", attn_implementation="eager")
    config = peft.AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=8, target_modules=["q_proj", "v_proj"], total_step=8, tinit=1, tfinal=2,
        orth_reg_weight=0.1, task_type="CAUSAL_LM",
    )  # fmt: skip
    theirs = peft.get_peft_model(model, config)
    theirs.save_pretrained(tmp_path / "start")
    tuning = load_adapter(lm, tmp_path / "start", train=True)
    tuning.method = replace(tuning.method, begin=1, end=2)
    optimizers = Optimizer(rate=0.02, weight_decay=0.0, beta2=0.95).build(lm.model, 8)
    adam = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], 0.02, (0.9, 0.95), 1e-8, 0.0)
    for number in range(8):
        tokens = text(seed=number)
        theirs(input_ids=tokens, labels=tokens).loss.backward()
        adam.step()
        theirs.base_model.update_and_allocate(number)
        adam.zero_grad()
        out = lm.model(tokens).logits[:, :-1]
        torch.nn.functional.cross_entropy(out.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizers.step(1.0, torch.tensor(1.0))
        for index in range(2):
            for name in "qv":
                mine = tuning.plugs[f"layers.{index}.mixer.{name}"]
                other = getattr(theirs.base_model.model.model.layers[index].self_attn, f"{name}_proj")
                near(mine.e.detach(), other.lora_E["default"].detach()[:, 0], 1e-3)
                assert torch.equal(mine.e == 0, other.lora_E["default"][:, 0] == 0), number


def test_lora_fa_is_as_in_peft(tmp_path):
    lm = build("llama")
    attach(lm, LoRAFA(rank=2))
    shake(lm)
    before, _ = step(lm, None, rate=0.01)
    for name, parameter in lm.model.named_parameters():
        assert torch.equal(parameter, before[name]) == (not name.endswith(".b")), name


def test_sources_are_mixed_by_weight():
    mixed = mix([list("abcdef"), list("xy")], [1.0, 3.0], seed=1)
    assert len(mixed) == 8 and sum(item in "xy" for item in mixed) == 6
    assert mixed.count("x") == mixed.count("y") == 3 and len({item for item in mixed if item in "abcdef"}) == 2
    assert mix(["ab", "c"]) == ["a", "b", "c"]
    assert mix(["abc", "d"], [1, 1], seed=1) == mix(["abc", "d"], [1, 1], seed=1)
    with pytest.raises(DougongError, match="source 2 has nothing"):
        mix(["ab", ""], [1, 1])
    with pytest.raises(DougongError, match="weights are"):
        mix(["ab"], [1, 1])


def test_sft_mixes_files(base, tmp_path):
    for name, count in (("many", 9), ("few", 3)):
        lines = [json.dumps({"instruction": f"{name} {n}", "output": f"{name}{n}"}) for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    data = ChatData((tmp_path / "many.jsonl", tmp_path / "few.jsonl"), (1.0, 1.0), held_out=0.0)
    figures = sft(replace(recipe(base, tmp_path / "run", steps=1), data=data), quiet=True)
    assert figures["conversations"] == 12


def test_the_last_turn_alone():
    turns = [
        {"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "one"), ("user", "b"), ("assistant", "two"))
    ]
    tokenizer = byte_tokenizer()
    from dougong.tokenizer.chatml import CHATML_TEMPLATE

    tokenizer = tokenizer.with_chat_template(CHATML_TEMPLATE)
    talk = [conversation_from({"messages": turns}, "x")]
    learnt = []
    for last in (False, True):
        (example,) = encode_conversations(tokenizer, talk, last_turn=last)
        learnt.append(tokenizer.decode([i for i, on in zip(example.ids, example.loss_mask, strict=True) if on]))
    assert "one" in learnt[0] and "two" in learnt[0] and "one" not in learnt[1] and "two" in learnt[1]


def test_questions_with_reasoning(data):
    found = list(read_conversations(data / "eval/gsm8k/test.jsonl"))
    assert len(found) == 1319 and all("####" in talk.messages[-1]["content"] for talk in found)
    row = {"question": "2 + 2?", "rationale": "two and two", "answer": "4"}
    question, answer = conversation_from(row, "x").messages
    assert question["content"] == "2 + 2?" and answer["content"] == "4" and answer["reasoning_content"] == "two and two"


def test_dora_leaves_rows_of_zeros_alone():
    """Output matrices of fresh models start as zeros: no direction, and nothing to divide by."""
    lm, tokens = build("llama"), text()
    dead = lm.model.layers[0].mixer.o
    with torch.no_grad():
        dead.weight[:5].zero_()
    before = logits(lm, tokens)
    attach(lm, DoRA(rank=2))
    near(logits(lm, tokens), before)
    lm.model.train()
    optimizers = Optimizer(rate=1e-2).build(lm.model, 10)
    for _ in range(2):
        run(lm, tokens).square().mean().backward()
        optimizers.step(1.0, torch.tensor(1.0))
    after = logits(lm, tokens)
    apart(after, before)
    merge(lm)
    near(logits(lm, tokens), after, 1e-4)
    assert not dead.weight[:5].any()
