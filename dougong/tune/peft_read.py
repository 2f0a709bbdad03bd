"""An adapter from PEFT's files: every tensor has a place, and every module that the config asks for has its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.parts.embedding import EmbeddingLayer
from dougong.tune import peft_config
from dougong.tune.adalora import AdaLoRA, AdaLoRAPlugin
from dougong.tune.attach import adopt
from dougong.tune.dora import DoRA, DoRAPlugin
from dougong.tune.ia3 import IA3, IA3Plugin
from dougong.tune.insert import prompted
from dougong.tune.lora import BiasedPlugin, LoRA, LowRankPlugin
from dougong.tune.method import kind as number_kind
from dougong.tune.names import PREFIX, Foreign, Names, in_memory, names_of
from dougong.tune.peft_experts import unstacked
from dougong.tune.prefix import PrefixTuning
from dougong.tune.prefix_file import attentions, prefix_from_file
from dougong.tune.prompt import PromptPlugin, PromptTuning, embedding_of, reader, reserve
from dougong.tune.swap import swap_in
from dougong.tune.tuning import Plugin, Tuning, tunings
from dougong.tune.vera import VeRA, VeRAPlugin, kaiming

_PARTS = {
    "LORA": (
        "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_embedding_A",
        "lora_embedding_B",
    ),
    "ADALORA": ("lora_A", "lora_B", "lora_E"),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "IA3": ("ia3_l",),
}  # fmt: skip
_SHARED = {"base_model.vera_A": "a", "base_model.vera_B": "b"}


@dataclass
class File:
    """A folder's content: the config; tensors by foreign module and part; whole parameters by own names; the rest.
    given: modules that target_parameters asks for."""

    where: str
    config: Mapping[str, Any]
    kind: str
    given: set[str] = field(default_factory=set)
    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    shared: dict[str, Tensor] = field(default_factory=dict)

    def wrong(self, what: str) -> DougongError:
        return DougongError(f"{self.where}: {what}")


def read(lm: LanguageModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, where: str) -> Tuning:
    """Attach what the files hold. Raises DougongError for what has no place or no meaning; the model is as it was."""
    given: set[str] = set()
    if config.get("peft_type") == "LORA" and config.get("target_parameters"):
        peft_config.check({**config, "target_parameters": None}, where)
        config, tensors, given = unstacked(names_of(lm), config, tensors, where)
    file = File(where, config, peft_config.check(config, where), given)
    if file.kind in ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"):
        return _read_prompt(lm, file, tensors, name)
    names = names_of(lm)
    _sort(lm, file, tensors, names)
    _check_targets(file, names)
    method, fill = {
        "LORA": _lora, "ADALORA": _adalora, "VERA": _vera, "IA3": _ia3,
    }[file.kind](lm, file, names)  # fmt: skip
    tuning = Tuning(name, method)
    model: Any = lm.model

    def put() -> None:
        for module, parts in file.modules.items():
            fill(tuning, names.modules[module], parts)
        swap_in(model, tuning, file.whole, file.whole)

    return adopt(model, tuning, put)


def _sort(lm: LanguageModel, file: File, tensors: Mapping[str, Tensor], names: Names) -> None:
    """Each tensor to its module, or to the parameter that it stands for."""
    base: dict[str, Tensor] = {**lm.model.weights()}
    if lm.model.head is not None:
        base["head.weight"] = lm.model.head.weight
    own_name = {in_memory(name): name for name in names.modules}
    for key, tensor in tensors.items():
        if key in _SHARED and file.kind == "VERA":
            file.shared[_SHARED[key]] = tensor
            continue
        foreign = key.removeprefix(PREFIX).replace(".base_layer.", ".")
        part = next((each for each in _PARTS[file.kind] if foreign.endswith(f".{each}")), None)
        if part is not None:
            module = own_name.get(foreign.removesuffix(f".{part}"), foreign.removesuffix(f".{part}"))
            if module not in names.modules:
                raise file.wrong(f"{key} belongs to no module of this {names.family}")
            file.modules.setdefault(module, {})[part] = tensor
        elif (row := names.row(foreign)) is not None and row.expert is None:
            if tuple(tensor.shape) != row.shape:
                raise file.wrong(f"{key} is {tuple(tensor.shape)}; the model's is {row.shape}")
            asked = [str(each) for each in file.config.get("modules_to_save") or ()]
            for own, piece in row.split(tensor):
                # PEFT writes embeddings that it did not train as well.
                if any(each in foreign for each in asked) or not torch.equal(piece.to(base[own]), base[own]):
                    file.whole[own] = piece
        else:
            raise file.wrong(f"{key} has no place in this {names.family}")
    if not file.modules:
        raise file.wrong("it holds no tensor of an adapter")


def _check_targets(file: File, names: Names) -> None:
    for module in file.modules:
        called = {module, in_memory(module)}
        if module not in file.given and not any(peft_config.targeted(file.config, each) for each in called):
            raise file.wrong(f"it holds {module}, which target_modules does not ask for")
    wanted = file.config.get("target_modules")
    if isinstance(wanted, list) and not file.config.get("layers_to_transform"):
        for module, foreign in names.modules.items():
            if foreign.expert is not None or module in file.modules:
                continue
            if peft_config.targeted(file.config, in_memory(module)):
                raise file.wrong(f"target_modules asks for {module}, of which it holds nothing")


def _part(file: File, module: str, parts: Mapping[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in parts:
        raise file.wrong(f"{module} lacks {name}")
    if tuple(parts[name].shape) != shape:
        raise file.wrong(f"{module}.{name} is {tuple(parts[name].shape)}; the model calls for {shape}")
    return parts[name]


def _sizes(foreign: Foreign) -> tuple[int, int]:
    """(inputs, outputs) of a foreign module."""
    return foreign.row.shapes[0][1], sum(foreign.outputs)


Fill = Callable[[Tuning, Foreign, dict[str, Tensor]], None]


def _put(
    lm: LanguageModel,
    tuning: Tuning,
    foreign: Foreign,
    path: str,
    make: Callable[[Any], Plugin],
    parts: dict[str, Tensor],
) -> None:
    """Make the plug-in of one own module from its tensors; an expert's are one entry of a stack, 0 until it comes."""
    site: Any = lm.model.get_submodule(path)
    like = site.storage.dense()
    parts = {name: tensor.to(like.device, number_kind(like)).clone() for name, tensor in parts.items()}
    if foreign.expert is None:
        tuning.plugs[path] = make(parts)
        return
    if path not in tuning.plugs:
        stacks = {name: tensor.new_zeros(site.experts, *tensor.shape) for name, tensor in parts.items()}
        tuning.plugs[path] = make(stacks)
    for name, tensor in parts.items():
        held = getattr(tuning.plugs[path], name)
        if held.shape[1:] != tensor.shape:
            raise DougongError(f"{foreign.name}: experts of different ranks; ours have one rank a layer")
        held.data[foreign.expert] = tensor


def _lora(lm: LanguageModel, file: File, names: Names) -> tuple[Any, Fill]:
    config = file.config
    dora, biased = bool(config.get("use_dora")), bool(config.get("lora_bias"))
    if dora and biased:
        raise file.wrong("use_dora and lora_bias are both true, which go together neither here nor in PEFT")
    common = {
        "rank": config.get("r", 8), "alpha": float(config.get("lora_alpha", 8)),
        "dropout": config.get("lora_dropout", 0.0), "rslora": bool(config.get("use_rslora")),
    }  # fmt: skip
    method = DoRA(**common) if dora else LoRA(**common, bias=biased)

    def fill(tuning: Tuning, foreign: Foreign, parts: dict[str, Tensor]) -> None:
        inputs, outputs = _sizes(foreign)
        rank = peft_config.by_pattern(config.get("rank_pattern"), foreign.name, config.get("r", 8))
        on_embedding = isinstance(lm.model.get_submodule(foreign.paths[0]), EmbeddingLayer)
        if on_embedding:
            inputs, outputs = outputs, inputs
            a = _part(file, foreign.name, parts, "lora_embedding_A", (rank, inputs))
            pieces = [_part(file, foreign.name, parts, "lora_embedding_B", (outputs, rank))]
        else:
            a = _part(file, foreign.name, parts, "lora_A.weight", (rank, inputs))
            pieces = foreign.split(_part(file, foreign.name, parts, "lora_B.weight", (outputs, rank)))
        scale = peft_config.scale(config, foreign.name, rank)
        if biased and (on_embedding or foreign.expert is not None):
            raise file.wrong(f"lora_bias is True, but {foreign.name} is an embedding or an expert")
        if "lora_B.bias" in parts and not biased:
            raise file.wrong(f"{foreign.name} holds lora_B.bias, which lora_bias does not ask for")
        biases = [None] * len(pieces)
        if biased:
            whole = _part(file, foreign.name, parts, "lora_B.bias", (outputs,))
            biases = [each[:, 0] for each in foreign.split(whole[:, None])]
        lengths: list[Tensor | None] = [None] * len(pieces)
        if dora:
            whole = _part(file, foreign.name, parts, "lora_magnitude_vector", (outputs,))
            lengths = [whole] if on_embedding else [each[:, 0] for each in foreign.split(whole[:, None])]
        for path, b, length, bias in zip(foreign.paths, pieces, lengths, biases, strict=True):
            own = {"a": a, "b": b} | ({} if length is None else {"magnitude": length})
            own |= {} if bias is None else {"bias": bias}

            def make(t: dict[str, Tensor]) -> Plugin:
                if "magnitude" in t:
                    return DoRAPlugin(tuning, t["a"], t["b"], scale, method.dropout, t["magnitude"])
                if "bias" in t:
                    return BiasedPlugin(tuning, t["a"], t["b"], scale, method.dropout, t["bias"])
                return LowRankPlugin(tuning, t["a"], t["b"], scale, method.dropout)

            _put(lm, tuning, foreign, path, make, own)

    return method, fill


def _adalora(lm: LanguageModel, file: File, names: Names) -> tuple[Any, Fill]:
    config = file.config
    full = config.get("init_r", 12)
    method = AdaLoRA(
        rank=full, alpha=float(config.get("lora_alpha", 8)), dropout=config.get("lora_dropout", 0.0),
        target=min(config.get("target_r", 8), full), every=config.get("deltaT", 1), beta1=config.get("beta1", 0.85),
        beta2=config.get("beta2", 0.85), orthogonal=config.get("orth_reg_weight", 0.5),
    )  # fmt: skip
    # Of the rank before pruning: a pruned module keeps its scale.
    scale = (config.get("lora_alpha", 8) or full) / (full + 1e-5)

    def fill(tuning: Tuning, foreign: Foreign, parts: dict[str, Tensor]) -> None:
        inputs, outputs = _sizes(foreign)
        rank = len(parts["lora_A"]) if "lora_A" in parts else full
        a = _part(file, foreign.name, parts, "lora_A", (rank, inputs))
        e = _part(file, foreign.name, parts, "lora_E", (rank, 1))[:, 0]
        pieces = foreign.split(_part(file, foreign.name, parts, "lora_B", (outputs, rank)))
        for path, b in zip(foreign.paths, pieces, strict=True):
            make = lambda t: AdaLoRAPlugin(tuning, t["a"], t["e"], t["b"], scale, method.dropout)  # noqa: E731
            _put(lm, tuning, foreign, path, make, {"a": a, "e": e, "b": b})

    return method, fill


def _vera(lm: LanguageModel, file: File, names: Names) -> tuple[Any, Fill]:
    config = file.config
    method = VeRA(
        rank=config.get("r", 256), dropout=config.get("vera_dropout", 0.0),
        projection_seed=config.get("projection_prng_key", 0), d_initial=config.get("d_initial", 0.1),
    )  # fmt: skip
    if file.shared.keys() != {"a", "b"}:
        if config.get("save_projection", True):
            raise file.wrong("save_projection is true, but base_model.vera_A and base_model.vera_B are not both there")
        dims = [_sizes(names.modules[module]) for module in file.modules]
        generator = torch.Generator().manual_seed(method.projection_seed)
        file.shared["a"] = kaiming((method.rank, max(inputs for inputs, _ in dims)), generator)
        file.shared["b"] = kaiming((max(outputs for _, outputs in dims), method.rank), generator)

    def fill(tuning: Tuning, foreign: Foreign, parts: dict[str, Tensor]) -> None:
        tuning.shared.update(file.shared)
        _, outputs = _sizes(foreign)
        d = _part(file, foreign.name, parts, "vera_lambda_d", (method.rank,))
        pieces = foreign.split(_part(file, foreign.name, parts, "vera_lambda_b", (outputs,))[:, None])
        places = foreign.split(torch.arange(outputs)[:, None])
        for path, b, rows in zip(foreign.paths, pieces, places, strict=True):
            own = None if len(pieces) == 1 else rows[:, 0]
            make = lambda t, own=own: VeRAPlugin(tuning, t["d"], t["b"], method.dropout, own)  # noqa: E731
            _put(lm, tuning, foreign, path, make, {"d": d, "b": b[:, 0]})

    return method, fill


def _ia3(lm: LanguageModel, file: File, names: Names) -> tuple[Any, Fill]:
    forward = file.config.get("feedforward_modules")
    before: list[str] = []

    def fill(tuning: Tuning, foreign: Foreign, parts: dict[str, Tensor]) -> None:
        inputs, outputs = _sizes(foreign)
        only = {"target_modules": forward}
        first = bool(forward) and peft_config.targeted(only, foreign.name)
        scale = _part(file, foreign.name, parts, "ia3_l", (1, inputs) if first else (outputs, 1))
        pieces = [scale[0]] * len(foreign.paths) if first else [each[:, 0] for each in foreign.split(scale)]
        for path, each in zip(foreign.paths, pieces, strict=True):
            new = path not in tuning.plugs
            make = lambda t: IA3Plugin(tuning, t["scale"], first)  # noqa: E731
            _put(lm, tuning, foreign, path, make, {"scale": each})
            if first and new:
                before.append(path)
                plug: Any = tuning.plugs[path]
                tuning.undo.append(lm.model.get_submodule(path).register_forward_pre_hook(plug.before).remove)
                tuning.method = replace(tuning.method, inputs=" ".join(before))

    return IA3(inputs="!*"), fill


def _read_prompt(lm: LanguageModel, file: File, tensors: Mapping[str, Tensor], name: str) -> Tuning:
    model: Any = lm.model
    if set(tensors) != {"prompt_embeddings"}:
        raise file.wrong(f"it holds {', '.join(sorted(tensors)) or 'nothing'}; expected prompt_embeddings alone")
    if lm.spec.encoder is not None:
        raise file.wrong("PEFT puts prompts of an encoder-decoder elsewhere than we do; it cannot be read")
    stored, count = tensors["prompt_embeddings"], file.config.get("num_virtual_tokens")
    if stored.ndim != 2 or len(stored) != count:
        raise file.wrong(f"prompt_embeddings is {tuple(stored.shape)}, but num_virtual_tokens is {count}")
    if file.kind == "PREFIX_TUNING":
        attentions(lm)
        method: Any = PrefixTuning(tokens=len(stored))
        tuning = Tuning(name, method)

        def put() -> None:
            method.install(model, method.places(model, None), tuning, torch.Generator())
            prefix_from_file(lm, tuning, stored)

        return adopt(model, tuning, put)
    if stored.shape[1] != lm.spec.width:
        raise file.wrong(f"prompt_embeddings has vectors of {stored.shape[1]}; the model's width is {lm.spec.width}")
    tuning = Tuning(name, PromptTuning(tokens=len(stored)))

    def put_prompt() -> None:
        path, embedding = embedding_of(model)
        reserve(model, tuning, len(stored))
        like = embedding.storage.dense()
        vectors = stored.to(like.device, number_kind(like)) / lm.spec.embedding.factor
        tuning.plugs[path] = PromptPlugin(tuning, vectors.clone())
        tuning.undo += prompted(reader(model), tunings(model))

    return adopt(model, tuning, put_prompt)
