"""`dougong show`: what is in a folder, without loading weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dougong.base import DougongError
from dougong.cli.folders import Described, count, describe, size
from dougong.cli.options import Flag, existing, parse

if TYPE_CHECKING:
    from dougong.tokenizer import Tokenizer


@dataclass(frozen=True)
class Show:
    """What is in a model folder (spec, parameters, tokenizer, weights) or a run folder (recipe, last figures, model).

    examples:
      dougong show runs/demo
      dougong show path/to/model --json
    """

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PATH")]
    """a model folder, a run folder, a config.json, or a llama2.c checkpoint"""
    json: Flag = False
    """print one JSON object"""


def run(args: list[str]) -> int:
    options = parse(Show, args, "show")
    found = look(existing(options.path))
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print(found)
    return 0


def look(path: Path) -> dict[str, Any]:
    """Everything that is known of a path, as plain data. Raises DougongError when it is neither a model nor a run."""
    found: dict[str, Any] = {"path": str(path)}
    if (path / "recipe.yaml").is_file():
        found |= _run_facts(path)
    try:
        found["model"] = _model_facts(describe(path))
    except DougongError:
        if "recipe" not in found:  # a run that has not finished has no model yet
            raise
    return found


def _run_facts(path: Path) -> dict[str, Any]:
    import yaml

    from dougong.train.monitor import read_metrics

    try:
        recipe = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DougongError(f"{path / 'recipe.yaml'} is not readable YAML: {error}") from None
    records = read_metrics(path / "metrics.jsonl")
    # Not every record holds every figure (evaluations are rarer than steps): the newest of each.
    last: dict[str, Any] = {}
    for record in records:
        last |= record
    return {"recipe": recipe, "records": len(records), "last": last}


def _model_facts(described: Described) -> dict[str, Any]:
    import torch

    from dougong.model import Model

    spec = described.spec
    with torch.device("meta"):
        weights = {name: list(weight.shape) for name, weight in Model(spec).weights().items()}
    first = {name: shape for name, shape in weights.items() if not name.startswith("layers.")}
    first |= {name: shape for name, shape in weights.items() if name.startswith("layers.0.")}
    facts: dict[str, Any] = {
        "family": described.family,
        "parameters": spec.parameters(),
        "state_bytes_per_token": spec.state_bytes(spec.context) / spec.context,
        "spec": spec.to_json(),
        "weights": first,
        "tokenizer": _tokenizer_facts(described.tokenizer) if described.tokenizer is not None else None,
    }
    if described.folder is not None:
        files = [file for file in sorted(described.folder.iterdir()) if file.is_file()]
        facts["files"] = {file.name: file.stat().st_size for file in files}
    return facts


def _tokenizer_facts(tokenizer: Tokenizer) -> dict[str, Any]:
    return {
        "size": tokenizer.vocab_size,
        "special": tokenizer.roles,
        "ends": list(tokenizer.eos_ids),
        "chat_template": tokenizer.chat_template is not None,
    }


def _print(found: dict[str, Any]) -> None:
    print(found["path"])
    if "recipe" in found:
        print("\nrecipe")
        _tree(found["recipe"], 2)
        print(f"\nlast figures, of {found['records']:,} records")
        _tree(found["last"], 2)
    if "model" not in found:
        print("\nno model yet: the run has not finished")
        return
    model = found["model"]
    spec = model["spec"]
    layers = spec["layers"]
    print(f"\nmodel: {model['family']}, {count(model['parameters'])} parameters ({model['parameters']:,})")
    print(f"  vocab {spec['vocab']:,}, width {spec['width']:,}, {len(layers)} layers, context {spec['context']:,}")
    print(f"  state {size(model['state_bytes_per_token'])} a token in float32")
    if layers:
        alike = sum(layer == layers[0] for layer in layers)
        print(f"\nlayer 0 ({alike} of {len(layers)} are alike)")
        _tree(layers[0], 2)
    print("\nweights outside the layers and of layer 0")
    for name, shape in model["weights"].items():
        print(f"  {name:<32} {' x '.join(map(str, shape))}")
    tokenizer = model["tokenizer"]
    if tokenizer is None:
        print("\nno tokenizer beside it")
    else:
        template = "with" if tokenizer["chat_template"] else "without"
        print(f"\ntokenizer: {tokenizer['size']:,} tokens, {template} a chat template")
        _tree(tokenizer["special"], 2)
    if model.get("files"):
        print("\nfiles")
        for name, number in model["files"].items():
            print(f"  {name:<32} {size(number)}")


def _tree(data: dict[str, Any], indent: int) -> None:
    """Plain data, a key a line."""
    for key, value in data.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{key}")
            _tree(value, indent + 2)
        elif value is not None:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            print(f"{' ' * indent}{key:<{max(1, 24 - indent)}} {shown}")
