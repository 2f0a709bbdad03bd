"""Experts in PEFT's files. Where Hugging Face keeps those of a layer in one tensor (experts, out, in), PEFT's
`target_parameters` puts one LoRA on the tensor: A (r * experts, in) and B (out, r * experts), of which expert e has
the rows e * r to e * r + r of A and every experts-th column of B from e on. Gate and up are one such tensor.

Here these are turned into a LoRA for each expert's projection, named as files of weights name them, and back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dougong.base import DougongError
from dougong.tune import peft_config
from dougong.tune.names import PREFIX, Foreign, Names, in_memory, same

# A projection's names in files of weights, and the tensor that it goes into with its place there.
_STACKED = {
    "gate_proj": ("gate_up_proj", 0), "up_proj": ("gate_up_proj", 1), "down_proj": ("down_proj", 0),
    "w1": ("gate_up_proj", 0), "w3": ("gate_up_proj", 1), "w2": ("down_proj", 0), "gate_up_proj": ("gate_up_proj", 0),
}  # fmt: skip
_PARTS = ("lora_A.weight", "lora_B.weight")


@dataclass
class Stack:
    """The experts of one layer in one tensor. holder: the module that has it, in memory; name: the tensor's own.

    pieces: for each projection in it, in order, the foreign module of every expert.
    """

    holder: str
    name: str
    pieces: list[list[Foreign]]

    @property
    def whole(self) -> str:
        return f"{self.holder}.{self.name}"

    @property
    def experts(self) -> int:
        return len(self.pieces[0])

    @property
    def modules(self) -> list[str]:
        """Foreign names of the modules whose weights it holds."""
        return [each.name for piece in self.pieces for each in piece]

    @property
    def outputs(self) -> list[int]:
        return [sum(each[0].outputs) for each in self.pieces]


def stacks_of(names: Names) -> list[Stack]:
    """The stacks of a model, in the order in which PEFT puts one adapter around another where a module has several."""
    found: dict[tuple[str, str], dict[int, list[Foreign]]] = {}
    for name, foreign in names.modules.items():
        parts = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)", name)
        if foreign.expert is not None and parts and parts[3] in _STACKED:
            stack, place = _STACKED[parts[3]]
            found.setdefault((in_memory(parts[1]), stack), {}).setdefault(place, []).append(foreign)
    made = []
    for (holder, name), places in found.items():
        pieces = [sorted(places[place], key=lambda each: each.expert or 0) for place in sorted(places)]
        whole = name == "down_proj" or pieces[0][0].name.endswith(f".{name}")
        if len(pieces) == (1 if whole else 2):
            made.append(Stack(holder, name, pieces))
    return sorted(made, key=lambda stack: stack.name, reverse=True)  # gate_up_proj lies inside


def _asked(wanted: list[str], parameter: str) -> bool:
    return any(parameter == each or parameter.endswith(f".{each}") for each in wanted)


def unstacked(
    names: Names, config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str
) -> tuple[dict[str, Any], dict[str, Tensor], set[str]]:
    """Config and tensors of a LoRA with `target_parameters` as those of one on modules, and the names of those modules
    that it does not name itself. Raises DougongError for parameters that have no place in this model, and for tensors
    of other shapes than the config says."""
    wanted = config["target_parameters"]
    if not isinstance(wanted, list) or not all(isinstance(each, str) for each in wanted):
        raise DougongError(f"{where}: target_parameters is {wanted!r}; expected names of parameters")
    stacks = [stack for stack in stacks_of(names) if _asked(wanted, stack.whole)]
    single = {name for name in names.modules if _asked(wanted, f"{in_memory(name)}.weight")}
    for each in wanted:
        if not any(_asked([each], stack.whole) for stack in stacks) and not any(
            _asked([each], f"{in_memory(name)}.weight") for name in single
        ):
            raise DougongError(
                f"{where}: target_parameters asks for {each}, which is no tensor of this {names.family} that an "
                "adapter can go on"
            )
    rest, ranks, alphas, given = dict(tensors), {}, {}, set(single)
    for stack in stacks:
        rank = peft_config.by_pattern(config.get("rank_pattern"), stack.whole, config.get("r", 8))
        alpha = peft_config.by_pattern(config.get("alpha_pattern"), stack.whole, config.get("lora_alpha", 8))
        a, b = (_take(rest, f"{PREFIX}{_inside(stack, stacks)}.{part}", where) for part in _PARTS)
        shapes = ((rank * stack.experts, stack.pieces[0][0].row.shapes[0][1]), (sum(stack.outputs), len(a)))
        for tensor, shape in zip((a, b), shapes, strict=True):
            if tuple(tensor.shape) != shape:
                raise DougongError(f"{where}: {stack.whole} has a tensor of {tuple(tensor.shape)}; expected {shape}")
        own_a = a.unflatten(0, (stack.experts, rank))  # (E, r, in)
        own_b = b.unflatten(1, (rank, stack.experts)).permute(2, 0, 1)  # (E, out, r)
        for piece, part in zip(stack.pieces, own_b.split(stack.outputs, 1), strict=True):
            for expert, foreign in enumerate(piece):
                rest[f"{PREFIX}{foreign.name}.{_PARTS[0]}"] = own_a[expert]
                rest[f"{PREFIX}{foreign.name}.{_PARTS[1]}"] = part[expert]
                given.add(foreign.name)
            ranks[_pattern(piece)], alphas[_pattern(piece)] = rank, alpha
    # The first pattern that fits counts.
    ranks |= config.get("rank_pattern") or {}
    alphas |= config.get("alpha_pattern") or {}
    left = {key: value for key, value in config.items() if key != "target_parameters"}
    return {**left, "rank_pattern": ranks, "alpha_pattern": alphas}, rest, given


def _pattern(piece: list[Foreign]) -> str:
    """A regular expression for one projection of all experts of a layer."""
    holder, _, last = piece[0].name.rpartition(".")
    return rf"{re.escape(holder.rpartition('.')[0])}\.\d+\.{re.escape(last)}"


def _take(tensors: dict[str, Tensor], key: str, where: str) -> Tensor:
    if key not in tensors:
        raise DougongError(f"{where}: it lacks {key}, which target_parameters asks for")
    return tensors.pop(key)


def _inside(stack: Stack, stacks: list[Stack]) -> str:
    """Where a stack's adapter is: those of one module lie around each other, the first tensor's innermost."""
    nested = [each for each in stacks if each.holder == stack.holder]
    return stack.holder + ".base_layer" * (len(nested) - 1 - nested.index(stack))


def stacked(
    names: Names, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The opposite: what PEFT reads of an adapter on modules of which some are experts, or routers, whose weight it
    takes as a parameter too. Raises DougongError where its form for these lacks something."""
    held = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    there = {match[1] for key in held if (match := re.match(r"(.*?)\.(?:lora|vera|ia3)_", key))} & names.modules.keys()
    stacks = [
        stack for stack in stacks_of(names) if any(each.name in there for piece in stack.pieces for each in piece)
    ]
    routers = [name for name in there if ".router" in names.modules[name].paths[0]]
    experts = {name for stack in stacks for name in stack.modules}
    if not stacks and not routers:
        return _spoken(config, there, names, experts), _renamed(tensors)
    if config["peft_type"] != "LORA" or config["use_dora"]:
        kind = "DoRA" if config["peft_type"] == "LORA" else config["peft_type"]
        what = stacks[0].whole if stacks else routers[0]
        raise DougongError(f"PEFT has no {kind} for a parameter such as {what}; save in the own format")
    ranks, alphas = dict(config["rank_pattern"]), dict(config["alpha_pattern"])
    out = {key: tensor for key, tensor in held.items() if key.rpartition(".lora_")[0] not in experts}
    for stack in stacks:
        a, b, scale = _joined(stack, config, held)
        rank = a.shape[1]
        out[f"{_inside(stack, stacks)}.{_PARTS[0]}"] = a.flatten(0, 1)
        out[f"{_inside(stack, stacks)}.{_PARTS[1]}"] = b.permute(1, 2, 0).flatten(1)
        key = stack.whole.replace(".", r"\.")
        ranks[key], alphas[key] = rank, round(scale * (rank**0.5 if config["use_rslora"] else rank), 9)
    for name in routers:  # PEFT looks for the parameter's name where ours is the module's
        for values in (ranks, alphas):
            if (key := name.replace(".", r"\.")) in values:
                values[rf"{in_memory(name)}.weight".replace(".", r"\.")] = values.pop(key)
    made = {
        **_spoken(config, there - set(routers), names, experts),
        "target_parameters": [*(stack.whole for stack in stacks), *(f"{in_memory(each)}.weight" for each in routers)],
        "rank_pattern": {key: each for key, each in ranks.items() if key.replace("\\", "") not in experts},
        "alpha_pattern": {key: each for key, each in alphas.items() if key.replace("\\", "") not in experts},
        "lora_dropout": 0.0,  # PEFT has none on parameters; a finished adapter needs none
    }
    return made, _renamed({PREFIX + key: tensor for key, tensor in out.items()})


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {in_memory(key): tensor for key, tensor in tensors.items()}


def _spoken(config: Mapping[str, Any], there: set[str], names: Names, experts: set[str]) -> dict[str, Any]:
    """The config with target_modules for what is adapted and no expert, by the names that modules have in memory."""
    kept = [in_memory(name) for name in names.modules if name in there and name not in experts]
    every = [in_memory(name) for name in names.modules if name not in experts]
    return {**config, "target_modules": peft_config.targets(kept, every)}


def _joined(stack: Stack, config: Mapping[str, Any], held: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, float]:
    """A (E, r, in), B (E, out, r) and the scale of a stack, from the LoRA of each expert's projections: one A where
    all share it, else of the ranks' sum."""
    found: list[tuple[Tensor, Tensor, float] | None] = []
    for piece in stack.pieces:
        if f"{piece[0].name}.{_PARTS[0]}" not in held:
            found.append(None)
            continue
        a, b = (torch.stack([held[f"{each.name}.{part}"] for each in piece]) for part in _PARTS)
        found.append((a, b, peft_config.scale(config, piece[0].name, a.shape[1])))
    there = [each for each in found if each is not None]
    scale = next((each[2] for each in there if each[2]), 0.0)
    shared = len(there) == len(found) and same([each[0] for each in there])
    a = there[0][0] if shared else torch.cat([each[0] for each in there], 1)
    rows, start = [], 0
    for each, outputs in zip(found, stack.outputs, strict=True):
        row = a.new_zeros(stack.experts, outputs, a.shape[1])
        if each is not None:
            end = start + each[0].shape[1]
            row[:, :, start:end] = each[1] * (each[2] / scale if scale else 1.0)
            start = start if shared else end
        rows.append(row)
    return a, torch.cat(rows, 1), scale
