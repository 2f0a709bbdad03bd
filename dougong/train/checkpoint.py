"""Checkpoints: everything that training needs to continue bit for bit, written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dougong.base import DougongError, atomic_directory, read_json, write_json
from dougong.tune import held

_FILE = "state.pt"


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, optimizer: Mapping[str, Any], facts: Mapping[str, Any], keep: int = 1
) -> Path:
    """Write `folder`/step-N with the weights, the optimizer's state, the random state and `facts` (JSON). Older ones
    go, but for the newest `keep`. Raises DougongError on a full disk; the older checkpoint is then still there."""
    path = folder / f"step-{step:08d}"
    weights = {name: parameter.detach() for name, parameter in _changing(model).items()}
    random = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random["cuda"] = torch.cuda.get_rng_state()
    with atomic_directory(path) as temporary:
        torch.save({"weights": weights, "optimizer": dict(optimizer), "random": random}, temporary / _FILE)
        write_json(temporary / "facts.json", {"step": step, **facts})
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def _changing(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but those that adapters keep frozen, which whoever resumes has from the base model."""
    frozen = held(model)
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in frozen}


def checkpoints(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "facts.json").is_file())


def latest(folder: Path) -> Path | None:
    """The newest finished checkpoint, or None."""
    found = checkpoints(folder)
    return found[-1] if found else None


def read_facts(path: Path) -> dict[str, Any]:
    """The JSON facts of a checkpoint, its step among them."""
    return read_json(path / "facts.json")


def restore_checkpoint(path: Path, model: nn.Module) -> dict[str, Any]:
    """Fill the model's weights and the random state; returns the optimizer's state.

    Raises DougongError when the file is damaged or belongs to another model.
    """
    try:
        state = torch.load(path / _FILE, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DougongError(f"{path} has no {_FILE}; delete the folder and resume from an older checkpoint") from None
    except Exception as error:  # torch.load raises a different type for every kind of damage
        raise DougongError(f"{path / _FILE} is damaged ({type(error).__name__}); delete {path} and resume") from error
    parameters: dict[str, Tensor] = dict(_changing(model))
    saved: dict[str, Tensor] = state["weights"]
    if parameters.keys() != saved.keys() or any(parameters[name].shape != saved[name].shape for name in saved):
        different = sorted(parameters.keys() ^ saved.keys()) or [
            name for name in saved if parameters[name].shape != saved[name].shape
        ]
        raise DougongError(f"{path} belongs to another model ({different[0]} differs); choose another run folder")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])
    torch.set_rng_state(state["random"]["cpu"])
    if "cuda" in state["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["random"]["cuda"])
    return state["optimizer"]
