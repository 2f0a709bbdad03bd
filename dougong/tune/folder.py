"""Adapter folders: adapter_config.json and adapter_model.safetensors, in PEFT's form where it has the method.

What PEFT has no form for (Houlsby, parallel adapters, BitFit, linear probes, ...) is kept in a form of our own in files
of the same names, whose peft_type is DOUGONG: the method as a record, and the adapter's parameters by own names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dougong.base import DougongError, atomic_directory, read_json, record_from, record_to, write_json
from dougong.tune.attach import attach, detach
from dougong.tune.lora import LowRank
from dougong.tune.methods import METHODS, method_name
from dougong.tune.peft_read import read
from dougong.tune.peft_write import write
from dougong.tune.prefix import PrefixTuning
from dougong.tune.prompt import Prompting
from dougong.tune.tuning import Tuning, tuning_named

if TYPE_CHECKING:
    from dougong.hub import LanguageModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_OWN = "DOUGONG"
_BINARY = "adapter_model.bin"


def save_adapter(
    lm: LanguageModel,
    path: str | os.PathLike[str],
    name: str = "default",
    *,
    base: str | None = None,
    form: Literal["auto", "peft", "own"] = "auto",
    tokenizer: bool = False,
) -> None:
    """Write an adapter, and nothing of the model, as a folder that appears whole or not at all.

    base   where its model is found, for who reads it (base_model_name_or_path)
    form   peft: PEFT's, or an error that says why not; auto: PEFT's where that can hold it, else our own
    tokenizer   write the tokenizer too, whose chat template the adapter may have been trained with

    Raises DougongError for methods whose result is the model itself (save that), and where `path` holds anything else.
    """
    tuning = tuning_named(lm.model, name)
    if tuning.method.whole:
        raise DougongError(
            f"{type(tuning.method).__name__} trains the model's own weights, which an adapter's file cannot hold; "
            "detach or merge it and save the model"
        )
    if tuning.merged:
        raise DougongError(f"the adapter {name!r} is merged; unmerge it to save it, or save the model")
    folder = Path(path).expanduser()
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file()):
        raise DougongError(f"{folder} holds something other than an adapter; choose another folder")
    config, tensors = _own(tuning) if form == "own" else _peft(lm, tuning, form)
    config["base_model_name_or_path"] = base
    with atomic_directory(folder) as temporary:
        write_json(temporary / CONFIG, config)
        save_file(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()},
            temporary / WEIGHTS,
            metadata={"format": "pt"},
        )
        if tokenizer and lm.tokenizer is not None:
            lm.tokenizer.save(temporary)


def _peft(lm: LanguageModel, tuning: Tuning, form: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        return write(lm, tuning)
    except DougongError as error:
        if form == "peft":
            raise DougongError(f"the adapter {tuning.name!r} has no form in PEFT's files: {error}") from None
        return _own(tuning)


def _own(tuning: Tuning) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config = {
        "peft_type": _OWN,
        "method": method_name(tuning.method),
        "options": record_to(tuning.method),
        "modules": list(tuning.plugs),
        "also": list(tuning.also),
        "scales": {
            path: plug.scale for path, plug in tuning.plugs.items() if isinstance(getattr(plug, "scale", None), float)
        },
    }
    shared = {f"shared.{name}": tensor for name, tensor in tuning.shared.items()}
    return config, {**dict(tuning.parameters()), **shared}


def load_adapter(
    lm: LanguageModel, path: str | os.PathLike[str], name: str = "default", *, train: bool = False
) -> Tuning:
    """Attach the adapter of a folder that PEFT or `save_adapter` wrote.

    train   go on training it; otherwise nothing of it is trained

    Raises DougongError, naming the thing, for a damaged or incomplete folder, tensors that have no place in this model
    or are missing, and keys of the config that would change the computation and are not understood.
    """
    folder = Path(path).expanduser()
    config, tensors = _files(folder)
    if config.get("peft_type") == _OWN:
        tuning = _read_own(lm, config, tensors, name, str(folder))
    else:
        tuning = read(lm, config, tensors, name, str(folder / CONFIG))
    fixed = getattr(tuning.method, "correct", None) is not None
    for key, parameter in tuning.parameters().items():
        parameter.requires_grad_(train and not (fixed and key.endswith(".a")))
    return tuning


def _files(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if not (folder / CONFIG).is_file():
        raise DougongError(f"{folder} has no {CONFIG}; give the folder of an adapter")
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise DougongError(f"{folder / CONFIG} holds a {type(config).__name__}; expected an object")
    if not (folder / WEIGHTS).is_file():
        also = f"; {_BINARY} is a pickle: convert it to safetensors" if (folder / _BINARY).is_file() else ""
        raise DougongError(f"{folder} has no {WEIGHTS}{also}")
    try:
        return config, load_file(folder / WEIGHTS)
    except (safetensors.SafetensorError, OSError) as error:
        raise DougongError(f"{folder / WEIGHTS} is damaged: {error}; copy it again") from None


def _read_own(
    lm: LanguageModel, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str, where: str
) -> Tuning:
    kind = METHODS.get(str(config.get("method")))
    if kind is None:
        raise DougongError(f"{where}: method is {config.get('method')!r}; known: {', '.join(METHODS)}")
    method = record_from(kind, config.get("options", {}), where)
    modules, also = list(config.get("modules", ())), list(config.get("also", ()))
    if isinstance(method, PrefixTuning):
        modules = [path for path in modules if path.rpartition(".")[2] != "embedding"]
    placed = bool(modules) and not isinstance(method, Prompting)
    names = sorted({each.rpartition(".")[0] for each in also}) if placed else ()
    tuning = attach(lm, method, modules if placed else None, name, also=names)
    try:
        _fill_own(tuning, config, tensors, where)
    except DougongError:
        detach(lm, name)
        raise
    return tuning


def _fill_own(tuning: Tuning, config: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> None:
    held = {**tuning.parameters(), **{f"shared.{key}": tensor for key, tensor in tuning.shared.items()}}
    if held.keys() != tensors.keys():
        different = sorted(held.keys() ^ tensors.keys())
        raise DougongError(f"{where} belongs to another model: {different[0]} is on one side only")
    for key, tensor in tensors.items():
        if isinstance(tuning.method, LowRank) and held[key].ndim == tensor.ndim:  # modules may differ in rank
            held[key].data = torch.empty_like(tensor, device=held[key].device)
        if held[key].shape != tensor.shape:
            raise DougongError(f"{where}: {key} is {tuple(tensor.shape)}; the model calls for {tuple(held[key].shape)}")
        held[key].data.copy_(tensor)
    for path, scale in config.get("scales", {}).items():
        plug: Any = tuning.plugs[path]
        plug.scale = scale
