"""Encoders, encoder-decoders and heads for tasks: the numbers of transformers, and its own tensors back bit for bit."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dougong
from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.hub.families import FAMILIES, harmless
from dougong.model import Model
from dougong.parts.heads import Span
from tests.hub import foreign
from tests.hub.draws.encoders import DRAWN_SHAPES, LABELS, PAD

transformers = pytest.importorskip("transformers", reason="transformers is the reference that is compared with")

TOLERANCE = 1e-4
LENGTH = 30
CLASSES, TOKENS, SPAN = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
TASKS = (CLASSES, TOKENS, SPAN)
NAMES = {"bert": "Bert", "roberta": "Roberta", "modernbert": "ModernBert", "llama": "Llama", "qwen2": "Qwen2"}
NAMES |= {"t5": "T5", "bart": "Bart", "switch_transformers": "SwitchTransformers"}
ROWS = {
    "bert": ("ForMaskedLM", "Model", "ForPreTraining", *TASKS),
    "roberta": ("ForMaskedLM", "Model", *TASKS),
    "modernbert": ("ForMaskedLM", "Model", *TASKS),
    "llama": ("Model", *TASKS),
    "qwen2": ("Model", *TASKS),
    "t5": ("EncoderModel",),
}
# Heads on other decoders, as far as transformers has them.
DECODERS = {
    "mistral": ("Mistral", TASKS),
    "mixtral": ("Mixtral", TASKS),
    "qwen2_moe": ("Qwen2Moe", TASKS),
    "qwen3": ("Qwen3", TASKS),
    "qwen3_moe": ("Qwen3Moe", TASKS),
    "qwen3_next": ("Qwen3Next", TASKS),
    "minimax": ("MiniMax", TASKS),
    "gemma": ("Gemma", TASKS[:2]),
    "gemma2": ("Gemma2", TASKS[:2]),
    "gemma3_text": ("Gemma3Text", TASKS[:1]),
    "phi3": ("Phi3", TASKS[:2]),
    "glm": ("Glm", TASKS[:2]),
    "glm4": ("Glm4", TASKS[:2]),
    "gpt_oss": ("GptOss", TASKS[:2]),
    "deepseek_v2": ("DeepseekV2", TASKS[:1]),
    "deepseek_v3": ("DeepseekV3", TASKS[:2]),
    "jamba": ("Jamba", TASKS[:1]),
    "olmo": ("Olmo", TASKS[:1]),
    "olmo2": ("Olmo2", TASKS[:1]),
    "olmo3": ("Olmo3", TASKS[:1]),
    "nanochat": ("NanoChat", ()),
    "gpt2": ("GPT2", (CLASSES,)),
    "falcon": ("Falcon", (CLASSES,)),
    "bloom": ("Bloom", (CLASSES,)),
    "mpt": ("Mpt", (CLASSES,)),
    "gpt_neox": ("GPTNeoX", (CLASSES,)),
    "mamba": ("Mamba", ()),
}
NAMES |= {family: name for family, (name, _) in DECODERS.items()}
ROWS |= {family: ("Model", *kinds) for family, (_, kinds) in DECODERS.items()}
PAIRS = {
    "t5": ("ForConditionalGeneration", "Model"),
    "bart": ("ForConditionalGeneration", "Model"),
    "switch_transformers": ("ForConditionalGeneration", "Model"),
}


def draw(family: str, seed: int) -> dict[str, Any]:
    rng = random.Random(f"{family} {seed}")
    if family in DRAWN_SHAPES:
        return DRAWN_SHAPES[family](rng, seed)
    names = {str(index): LABELS[str(index)] for index in range(rng.choice([1, 3]))}
    labels = {"id2label": names, "label2id": {label: int(index) for index, label in names.items()}}
    config = {**foreign.draw_config(family, seed), **labels, "pad_token_id": PAD, "vocab_size": 50}
    config.pop("rope_parameters", None)  # test_parity.py has its kinds
    return config


def build(family: str, kind: str, seed: int) -> Any:
    """A model of transformers with every parameter moved off its initial value."""
    drawn = draw(family, seed)
    if kind == SPAN:  # two scores a token, whatever the classes
        drawn = {key: value for key, value in drawn.items() if key not in ("id2label", "label2id")}
    return made(family, kind, drawn, seed)


def made(family: str, kind: str, drawn: dict[str, Any], seed: int) -> Any:
    """The model of one configuration."""
    config = transformers.AutoConfig.for_model(family, **json.loads(json.dumps(drawn)))
    untied = family == "t5" and not config.scale_decoder_outputs and kind == "ForConditionalGeneration"
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model = getattr(transformers, NAMES[family] + kind)._from_config(config, **how).eval()
    if untied:  # as its files are; transformers itself begins with tied ones
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.all_tied_weights_keys.pop("lm_head.weight")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_norm else noise * (0.3 if parameter.ndim == 1 else 0.25))
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.copy_(torch.randn(model.final_logits_bias.shape, generator=generator))
    return model


def reopen(folder: Path, kind: type) -> Any:
    how = {"attn_implementation": "eager", "experts_implementation": "eager"}
    model, told = kind.from_pretrained(folder, **how, output_loading_info=True)
    assert not any(told.values()), told
    return model.eval()


def told(output: Any) -> dict[str, torch.Tensor]:
    """What a model of transformers gives, under our names."""
    names = {
        "logits": "logits",
        "prediction_logits": "logits",
        "seq_relationship_logits": "task",
        "pooler_output": "task",
        "last_hidden_state": "hidden",
    }
    found = {ours: output[theirs] for theirs, ours in names.items() if output.get(theirs) is not None}
    if "start_logits" in output:
        found["logits"] = torch.stack((output.start_logits, output.end_logits), -1)
    return found


def text(model: Any, rows: int, tokens: int, seed: int) -> torch.Tensor:
    """No token of it is the padding token, by which transformers counts RoBERTa's positions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(5, model.config.vocab_size, (rows, tokens), generator=generator)


def agree(ours: Any, theirs: dict[str, torch.Tensor], where: Any = slice(None)) -> None:
    assert theirs
    for name, expected in theirs.items():
        actual = getattr(ours, name)
        assert actual.shape == expected.shape, name
        by_token = expected.ndim == 3
        where_ = where if by_token else slice(None)
        assert foreign.error(actual[where_], expected[where_]) <= TOLERANCE, name


def idle(lm: LanguageModel) -> dict[str, str]:
    """Tensors that the reference holds and does not read, and those that are written in their place."""
    assert lm.family is not None
    return {other: ours for ours, other in reversed(FAMILIES[lm.family].keys(lm.spec).idle)}


def unread(lm: LanguageModel, theirs: Any) -> int:
    """The parameters in them."""
    held = dict(theirs.named_parameters())
    return sum(held[name].numel() for name in idle(lm) if name in held)


def same_files(lm: Any, theirs: Any, folder: Path) -> Any:
    """Saving gives the same tensors, which transformers reopens; so does a config.json of our own making."""
    dougong.save(lm, folder / "out")
    before, after = (load_file(folder / name / "model.safetensors") for name in ("in", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    first, second = (json.loads((folder / name / "config.json").read_text()) for name in ("in", "out"))
    assert first == {key: value for key, value in second.items() if key in first}
    lm.config = {key: value for key, value in harmless(lm.config).items() if key != "architectures"}
    dougong.save(lm, folder / "own")
    assert dougong.load(folder / "own").spec == lm.spec
    reopen(folder / "out", type(theirs))
    return reopen(folder / "own", type(theirs))


@pytest.mark.parametrize(
    ("family", "kind", "seed"),
    [
        (family, kind, seed)
        for family in ROWS
        for kind in ROWS[family]
        for seed in range(1 if family in DECODERS else 2)
    ],
)
def test_rows_of_tokens(family: str, kind: str, seed: int, tmp_path: Path) -> None:
    theirs = build(family, kind, seed)
    theirs.save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    assert lm.family == family
    assert lm.spec.parameters() == sum(each.numel() for each in theirs.parameters()) - unread(lm, theirs)
    tokens = text(theirs, 2, LENGTH, seed)
    padding = torch.zeros(2, LENGTH, dtype=torch.bool)
    padding[1, 17:] = True
    tokens = tokens.masked_fill(padding, PAD)
    types = torch.randint(lm.spec.embedding.types or 1, tokens.shape)
    given = {"token_type_ids": types} if lm.spec.embedding.types and family != "roberta" else {}
    with torch.no_grad():
        expected = told(theirs(tokens, attention_mask=(~padding).long(), **given))
        ours = lm.model(tokens, padding=padding, types=types if given else None)
        agree(ours, expected, ~padding)
        expected = told(theirs(tokens[:1], attention_mask=torch.ones(1, LENGTH)))
        agree(lm.model(tokens[:1]), expected)
        if not isinstance(lm.spec.task, Span):
            left = tokens.roll(LENGTH - 17, 1)
            padded = lm.model(left, padding=padding.roll(LENGTH - 17, 1))
            alone = lm.model(tokens[1:, :17])
            assert foreign.error(padded.hidden[1:, LENGTH - 17 :], alone.hidden) <= TOLERANCE
            if lm.model.task is not None:
                last = padded.task[1:] if padded.task.ndim == 2 else padded.task[1:, LENGTH - 17 :]
                assert foreign.error(last, alone.task) <= TOLERANCE
        again = same_files(lm, theirs, tmp_path)
        for name, value in told(again(tokens[:1], attention_mask=torch.ones(1, LENGTH))).items():
            assert foreign.error(value, expected[name]) <= 1e-5


@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family in PAIRS for kind in PAIRS[family]])
@pytest.mark.parametrize("seed", range(4))
def test_source_and_text(family: str, kind: str, seed: int, tmp_path: Path) -> None:
    theirs = build(family, kind, seed)
    theirs.save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    extra = lm.spec.vocab if hasattr(theirs, "final_logits_bias") else 0  # BART's own bias is no parameter there
    extra -= unread(lm, theirs)
    assert lm.spec.parameters() == sum(parameter.numel() for parameter in theirs.parameters()) + extra
    source, tokens = text(theirs, 2, LENGTH, seed), text(theirs, 2, 12, seed + 1)
    padding = torch.zeros(2, LENGTH, dtype=torch.bool)
    padding[1, 20:] = True
    with torch.no_grad():
        given = {"attention_mask": (~padding).long(), "decoder_input_ids": tokens, "use_cache": False}
        expected = told(theirs(source, **given))
        agree(lm.model(tokens, source, source_padding=padding), expected)
        whole = told(theirs(source, decoder_input_ids=tokens, use_cache=False))
        agree(lm.model(tokens, source), whole)
        again = same_files(lm, theirs, tmp_path)
        for name, value in told(again(source, **given)).items():
            assert foreign.error(value, expected[name]) <= 1e-5


@pytest.mark.parametrize("kind", ["ForConditionalGeneration", "Model"])
def test_a_t5_without_a_head_of_its_own_is_tied_whatever_its_config_says(kind: str, tmp_path: Path) -> None:
    """transformers 5 ties every T5 that it makes, and scales as `tie_word_embeddings` says."""
    config = transformers.AutoConfig.for_model("t5", **draw("t5", 1))
    theirs = getattr(transformers, NAMES["t5"] + kind)._from_config(config).eval()
    assert not config.scale_decoder_outputs
    theirs.save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    assert lm.spec.parameters() == sum(parameter.numel() for parameter in theirs.parameters())
    source, tokens = text(theirs, 2, 11, 0), text(theirs, 2, 5, 1)
    with torch.no_grad():
        expected = told(theirs(source, decoder_input_ids=tokens, use_cache=False))
        agree(lm.model(tokens, source), expected)
        again = same_files(lm, theirs, tmp_path)
        agree(lm.model(tokens, source), told(again(source, decoder_input_ids=tokens, use_cache=False)))


@pytest.mark.parametrize(("family", "kind"), [("bert", "ForMaskedLM"), ("roberta", "ForMaskedLM")])
def test_an_old_file_has_the_untied_head_s_bias_under_the_head_s_name(family: str, kind: str, tmp_path: Path) -> None:
    """Versions before transformers 5 made one bias of the two."""
    theirs = build(family, kind, 1)
    theirs.save_pretrained(tmp_path)
    lm, tokens = dougong.load(tmp_path), text(theirs, 1, 9, 0)
    ((other, ours),) = idle(lm).items()
    held = load_file(tmp_path / "model.safetensors")
    held[other] = held.pop(ours)
    save_file(held, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(dougong.load(tmp_path).model(tokens).logits, lm.model(tokens).logits)
    save_file({name: each for name, each in held.items() if name != other}, tmp_path / "model.safetensors")
    with pytest.raises(DougongError, match=ours):
        dougong.load(tmp_path)


def test_what_nothing_reads_is_written_as_a_copy_where_no_file_had_it(tmp_path: Path) -> None:
    build("bert", "ForMaskedLM", 1).save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    ((other, ours),) = idle(lm).items()
    before = load_file(tmp_path / "in/model.safetensors")
    assert not torch.equal(before[other], before[ours])
    dougong.save(LanguageModel(lm.model, family="bert"), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(after[other], after[ours])
    assert torch.equal(after[ours], before[ours])


def test_an_old_untied_bart_has_one_table_for_both_sides(tmp_path: Path) -> None:
    theirs = build("bart", "ForConditionalGeneration", 1)
    theirs.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    table = held["model.shared.weight"]
    sides = [f"model.{side}.embed_tokens.weight" for side in ("encoder", "decoder")]
    save_file({name: each for name, each in held.items() if name not in sides}, tmp_path / "model.safetensors")
    model = dougong.load(tmp_path).model
    assert torch.equal(model.embedding.weight, table)
    assert torch.equal(model.encoder.embedding.weight, table)
    assert not torch.equal(model.head.weight, table)


def test_an_unknown_head_is_refused_by_name(tmp_path: Path) -> None:
    build("bert", "ForMaskedLM", 0).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": ["BertForMultipleChoice"]}))
    with pytest.raises(DougongError, match=r"architectures is .*BertForMultipleChoice.*BertForTokenClassification"):
        dougong.load(tmp_path)


def test_files_of_berts_first_release_hold_more_than_their_config_says(tmp_path: Path) -> None:
    """bert-base-uncased: a BertForMaskedLM in name, whose files hold the pooler and the other head too, a copy of the
    table, and norms with gamma and beta."""
    theirs = build("bert", "ForPreTraining", 0)
    theirs.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, weight in weights.items():
        ending = next((each for each in old if name.endswith(each)), "")
        renamed[name.removesuffix(ending) + old.get(ending, "")] = weight.clone()
    renamed["cls.predictions.decoder.weight"] = weights["bert.embeddings.word_embeddings.weight"].clone()
    renamed["bert.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(renamed, tmp_path / "model.safetensors")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    lm, tokens = dougong.load(tmp_path), text(theirs, 1, 9, 0)
    with torch.no_grad():
        assert foreign.error(lm.model(tokens).logits, theirs(tokens).prediction_logits) <= TOLERANCE


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_without_a_pooler_the_config_says_so(family: str, tmp_path: Path) -> None:
    build(family, "Model", 0).save_pretrained(tmp_path / "in")
    lm = dougong.load(tmp_path / "in")
    bare = Model(replace(lm.spec, task=None))
    bare.load_state_dict({name: weight for name, weight in lm.model.state_dict().items() if "task" not in name})
    dougong.save(LanguageModel(bare, family=family), tmp_path / "out")
    again = dougong.load(tmp_path / "out")
    assert again.spec == bare.spec
    tokens = torch.arange(5, 14)[None]
    with torch.no_grad():
        assert torch.equal(again.model(tokens).hidden, lm.model(tokens).hidden)
