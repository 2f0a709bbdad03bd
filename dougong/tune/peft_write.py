"""An adapter as PEFT's files have it: one function for each of its methods, giving config and tensors.

Where a file keeps several of our matrices in one (q, k and v of GPT-2), their changes become one of the ranks' sum,
with zeros where a matrix has none of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.hub import LanguageModel
from dougong.parts.embedding import EmbeddingLayer
from dougong.tune.adalora import AdaLoRA, AdaLoRAPlugin
from dougong.tune.dora import DoRAPlugin, lengths
from dougong.tune.ia3 import IA3, IA3Plugin
from dougong.tune.lora import BiasedPlugin, LowRank, LowRankPlugin
from dougong.tune.method import matrix
from dougong.tune.names import PREFIX, Foreign, Names, foreign_of, names_of, piece, same
from dougong.tune.peft_config import targets
from dougong.tune.peft_experts import stacked
from dougong.tune.prefix import PrefixTuning
from dougong.tune.prefix_file import prefix_to_file
from dougong.tune.prompt import PromptBase, Prompting
from dougong.tune.tuning import Tuning
from dougong.tune.vera import VeRA, VeRAPlugin

Written = tuple[dict[str, Any], dict[str, Tensor]]


@torch.no_grad()
def write(lm: LanguageModel, tuning: Tuning) -> Written:
    """Config and tensors. Raises DougongError for a method that PEFT has not, and for what its files cannot hold."""
    method = tuning.method
    writers: tuple[tuple[type, Callable[[LanguageModel, Tuning], Written]], ...] = (
        (AdaLoRA, _adalora), (LowRank, _lora), (VeRA, _vera), (IA3, _ia3), (Prompting, _prompt),
        (PrefixTuning, _prefix),
    )  # fmt: skip
    for kind, writer in writers:
        if isinstance(method, kind):
            config, tensors = writer(lm, tuning)
            if "target_modules" in config:
                config, tensors = stacked(names_of(lm), config, tensors)
            also = whole(lm, tuning)
            modules = list(dict.fromkeys(name.rpartition(".")[0] for name in also))
            config |= {"task_type": "CAUSAL_LM", "inference_mode": True}
            adapted = {module for key in tensors if (module := _module(key)) in modules}
            if adapted:
                config["bias"] = _biases(lm, list(also), modules, tensors, adapted)
                also = {_under(name, adapted): tensor for name, tensor in also.items()}
                modules = []
            if not isinstance(method, (Prompting, PrefixTuning)):
                config["modules_to_save"] = modules or None
            elif modules:
                raise DougongError("PEFT's prompt files hold the prompt alone, not modules trained beside it")
            return config, {name: t.contiguous() for name, t in {**tensors, **_prefixed(also)}.items()}
    raise DougongError(f"PEFT has no {type(method).__name__}")


def _module(key: str) -> str:
    """The module that a tensor of an adapter belongs to: before "lora_A.weight", "vera_lambda_b" or "ia3_l"."""
    return key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".bias").rpartition(".")[0]


def _biases(
    lm: LanguageModel, also: list[str], modules: list[str], tensors: Mapping[str, Tensor], adapted: set[str]
) -> str:
    """What PEFT's `bias` calls the biases that were trained beside adapters of the same modules: all, or those of the
    adapted modules. Raises DougongError where it has no name for them, or weights were trained too."""
    held = {name for row in names_of(lm).rows if (name := row.foreign).endswith(".bias")}
    first = min(adapted)
    if any("vera" in key for key in tensors):
        kind = "vera_only"
    elif any("lora" in key for key in tensors):
        kind = "lora_only"
    else:
        raise DougongError(f"{first} has an adapter and was trained besides, which PEFT's files of this method lack")
    if set(also) == held:
        return "all"
    if set(also) == {f"{_module(key)}.bias" for key in tensors} & held:
        return kind
    raise DougongError(
        f"{first} has an adapter and was trained besides; PEFT's files hold that only of all biases, or of those of "
        "all adapted modules"
    )


def _under(name: str, adapted: set[str]) -> str:
    """The name of a tensor in a model whose adapted modules PEFT has wrapped."""
    module, _, last = name.rpartition(".")
    return f"{module}.base_layer.{last}" if module in adapted else name


def _prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def whole(lm: LanguageModel, tuning: Tuning) -> dict[str, Tensor]:
    """What is trained whole beside an adapter, by foreign names of tensors."""
    if not tuning.also:
        return {}
    own = {name: parameter for name, parameter in tuning.parameters().items() if name in tuning.also}
    out = {}
    for row in names_of(lm).rows:
        if any(name in own for name in row.own):
            if row.expert is not None or not all(name in own for name in row.own):
                raise DougongError(f"{row.foreign} holds more than what was trained of it; train {row.own} together")
            out[row.foreign] = row.join(own)
    return out


def _joined(foreign: Foreign, tuning: Tuning) -> tuple[Tensor, Tensor, float, int]:
    """(A, B, scale, rank of each piece) of one foreign module."""
    held = [tuning.plugs.get(path) for path in foreign.paths]
    plugs = [plug for plug in held if isinstance(plug, LowRankPlugin)]
    factors = {id(plug): (piece(plug.a, foreign), piece(plug.b, foreign)) for plug in plugs}
    first, scale = plugs[0], next((plug.scale for plug in plugs if plug.scale), 0.0)
    a, b = factors[id(first)]
    if len(held) == 1 and len(b) != foreign.outputs[0]:
        return a, b, scale, len(a)  # an embedding's B has a row for every place of the width, not for every token
    if same([factors[id(plug)][0] for plug in plugs]):
        ranges = {id(plug): (0, plug.a.shape[-2]) for plug in plugs}
        a = factors[id(first)][0]
    else:
        ranges, start = {}, 0
        for plug in plugs:
            ranges[id(plug)] = (start, start + plug.a.shape[-2])
            start += plug.a.shape[-2]
        a = torch.cat([factors[id(plug)][0] for plug in plugs])
    pieces = []
    for plug, outputs in zip(held, foreign.outputs, strict=True):
        b = a.new_zeros(outputs, len(a))
        if isinstance(plug, LowRankPlugin):
            low, high = ranges[id(plug)]
            b[:, low:high] = factors[id(plug)][1] * (plug.scale / scale if scale else 1.0)
        pieces.append(b)
    return a, foreign.join(pieces), scale, len(a)


def _low_rank(lm: LanguageModel, tuning: Tuning) -> tuple[Names, dict[str, Foreign]]:
    names = names_of(lm)
    return names, foreign_of(names, list(tuning.plugs))


def _common(names: Names, chosen: dict[str, Foreign]) -> dict[str, Any]:
    turned = all(each.row.transpose for each in chosen.values())
    return {"target_modules": targets(list(chosen), list(names.modules)), "fan_in_fan_out": turned}


def _lora(lm: LanguageModel, tuning: Tuning) -> Written:
    method = tuning.method
    names, chosen = _low_rank(lm, tuning)
    model: Any = lm.model
    dora = any(isinstance(plug, DoRAPlugin) for plug in tuning.plugs.values())
    biased = any(isinstance(plug, BiasedPlugin) for plug in tuning.plugs.values())
    tensors, ranks, alphas = {}, {}, {}
    for name, foreign in chosen.items():
        a, b, scale, rank = _joined(foreign, tuning)
        on_embedding = isinstance(model.get_submodule(foreign.paths[0]), EmbeddingLayer)
        names_ab = ("lora_embedding_A", "lora_embedding_B") if on_embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= {f"{name}.{names_ab[0]}": a, f"{name}.{names_ab[1]}": b}
        alpha = scale * (rank**0.5 if method.rslora else rank)
        ranks[name], alphas[name] = rank, round(alpha, 9)
        if biased:
            own = [tuning.plugs.get(path) for path in foreign.paths]
            parts = [
                piece(plug.bias, foreign) * (plug.scale / scale if scale else 1.0)
                if isinstance(plug, BiasedPlugin)
                else b.new_zeros(outputs)
                for plug, outputs in zip(own, foreign.outputs, strict=True)
            ]
            tensors[f"{name}.lora_B.bias"] = foreign.join([each[:, None] for each in parts])[:, 0]
        if dora:
            lengths_of = [
                piece(plug.magnitude, foreign)
                if isinstance(plug := tuning.plugs.get(path), DoRAPlugin)
                else lengths(piece(matrix(model.get_submodule(path)), foreign))
                for path in foreign.paths
            ]
            # An embedding's rows are tokens, but its lengths are those of the places of the width.
            joined = lengths_of[0] if on_embedding else foreign.join([each[:, None] for each in lengths_of])[:, 0]
            tensors[f"{name}.lora_magnitude_vector"] = joined
    rank, alpha = _usual(ranks), _usual(alphas)
    config = {
        "peft_type": "LORA", **_common(names, chosen), "r": rank, "lora_alpha": alpha, "lora_dropout": method.dropout,
        "use_rslora": method.rslora, "use_dora": dora, "lora_bias": biased, "bias": "none",
        "rank_pattern": _others(ranks, rank), "alpha_pattern": _others(alphas, alpha),
    }  # fmt: skip
    return config, _prefixed(tensors)


def _usual(values: Mapping[str, Any]) -> Any:
    held = list(values.values())
    return max(dict.fromkeys(held), key=held.count)


def _others(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """PEFT reads the keys as regular expressions for the end of a name."""
    return {name.replace(".", r"\."): value for name, value in values.items() if value != usual}


def _adalora(lm: LanguageModel, tuning: Tuning) -> Written:
    method: AdaLoRA = tuning.method
    names, chosen = _low_rank(lm, tuning)
    made, scales = {}, []
    for name, foreign in chosen.items():
        a, b, scale, _ = _joined(foreign, tuning)
        plugs = [plug for path in foreign.paths if isinstance(plug := tuning.plugs.get(path), AdaLoRAPlugin)]
        values = [piece(plug.e, foreign) for plug in plugs]
        if len(a) == len(values[0]) and not same(values):
            raise DougongError(f"{name} holds pieces with one A and several diagonals, which AdaLoRA's files cannot")
        made[name] = (a, values[0] if len(a) == len(values[0]) else torch.cat(values), b)
        scales.append(scale)
    rank = max(len(a) for a, _, _ in made.values())
    usual = next((scale for scale in scales if scale), 0.0)
    tensors = {}
    for (name, (a, e, b)), scale in zip(made.items(), scales, strict=True):
        more = rank - len(a)
        tensors[f"{name}.lora_A"] = torch.cat((a, a.new_zeros(more, a.shape[1])))
        tensors[f"{name}.lora_E"] = torch.cat((e, e.new_zeros(more)))[:, None]
        tensors[f"{name}.lora_B"] = torch.cat((b, b.new_zeros(len(b), more)), 1) * (scale / usual if usual else 1.0)
    config = {
        "peft_type": "ADALORA", **_common(names, chosen), "init_r": rank, "target_r": min(method.target, rank),
        "lora_alpha": usual * (rank + 1e-5), "lora_dropout": method.dropout, "bias": "none", "total_step": 1,
        "tinit": 0, "tfinal": 0, "deltaT": method.every, "beta1": method.beta1, "beta2": method.beta2,
        "orth_reg_weight": method.orthogonal, "rank_pattern": None,
    }  # fmt: skip
    return config, _prefixed(tensors)


def _vera(lm: LanguageModel, tuning: Tuning) -> Written:
    method: VeRA = tuning.method
    names, chosen = _low_rank(lm, tuning)
    tensors = {}
    for name, foreign in chosen.items():
        plugs = [tuning.plugs.get(path) for path in foreign.paths]
        placed = all(isinstance(plug, VeRAPlugin) and plug.rows is not None for plug in plugs)
        if len(plugs) > 1 and not (
            placed and same([piece(plug.d, foreign) for plug in plugs if isinstance(plug, VeRAPlugin)])
        ):
            raise DougongError(f"files keep {', '.join(foreign.paths)} in one matrix, for which VeRA has one vector d")
        held = [plug for plug in plugs if isinstance(plug, VeRAPlugin)]
        tensors[f"{name}.vera_lambda_d"] = piece(held[0].d, foreign)
        tensors[f"{name}.vera_lambda_b"] = foreign.join([piece(plug.b, foreign)[:, None] for plug in held])[:, 0]
    config = {
        "peft_type": "VERA", **_common(names, chosen), "r": method.rank, "vera_dropout": method.dropout,
        "projection_prng_key": method.projection_seed, "save_projection": True, "d_initial": method.d_initial,
        "bias": "none",
    }  # fmt: skip
    shared = {"base_model.vera_A": tuning.shared["a"], "base_model.vera_B": tuning.shared["b"]}
    return config, {**_prefixed(tensors), **shared}


def _ia3(lm: LanguageModel, tuning: Tuning) -> Written:
    names, chosen = _low_rank(lm, tuning)
    tensors, inputs = {}, []
    for name, foreign in chosen.items():
        plugs = [tuning.plugs.get(path) for path in foreign.paths]
        held = [plug for plug in plugs if isinstance(plug, IA3Plugin)]
        if any(plug.inputs for plug in held):
            scales = [piece(plug.scale, foreign) for plug in held if plug.inputs]
            if len(scales) < len(plugs) or not same(scales):
                raise DougongError(
                    f"files keep {', '.join(foreign.paths)} in one matrix, with one vector for its input"
                )
            tensors[f"{name}.ia3_l"] = scales[0][None]
            inputs.append(name)
            continue
        parts = [
            piece(plug.scale, foreign)[:, None] if isinstance(plug, IA3Plugin) else torch.ones(outputs, 1)
            for plug, outputs in zip(plugs, foreign.outputs, strict=True)
        ]
        tensors[f"{name}.ia3_l"] = foreign.join([part.to(held[0].scale) for part in parts])
    config = {"peft_type": "IA3", **_common(names, chosen)}
    config["feedforward_modules"] = [each for each in targets(inputs, list(names.modules)) if inputs]
    if not set(config["feedforward_modules"]) <= set(config["target_modules"]):
        config["feedforward_modules"] = config["target_modules"] = list(chosen)
        config["feedforward_modules"] = inputs
    return config, _prefixed(tensors)


def _only_decoder(lm: LanguageModel) -> None:
    if lm.spec.encoder is not None:
        raise DougongError("PEFT puts prompts of an encoder-decoder elsewhere than we do; save in the own format")


def _prompt(lm: LanguageModel, tuning: Tuning) -> Written:
    _only_decoder(lm)
    plug = next(iter(tuning.plugs.values()))
    assert isinstance(plug, PromptBase)
    # Embeddings with a factor multiply a prompt by it as well; PEFT puts its vectors in behind the factor.
    vectors = plug.vectors() * lm.spec.embedding.factor
    config = {
        "peft_type": "PROMPT_TUNING", "num_virtual_tokens": len(vectors), "token_dim": vectors.shape[1],
        "num_transformer_submodules": 1, "num_layers": lm.spec.depth, "num_attention_heads": 1,
        "prompt_tuning_init": "RANDOM",
    }  # fmt: skip
    return config, {"prompt_embeddings": vectors}


def _prefix(lm: LanguageModel, tuning: Tuning) -> Written:
    _only_decoder(lm)
    made, heads, size = prefix_to_file(lm, tuning)
    config = {
        "peft_type": "PREFIX_TUNING", "num_virtual_tokens": len(made), "token_dim": heads * size,
        "num_transformer_submodules": 1, "num_layers": lm.spec.depth, "num_attention_heads": heads,
        "prefix_projection": False, "encoder_hidden_size": heads * size,
    }  # fmt: skip
    return config, {"prompt_embeddings": made}
