"""`dougong merge`: adapters into the weights of their model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dougong.base import DougongError, read_json
from dougong.cli.options import existing, hint, parse


@dataclass(frozen=True)
class Merge:
    """Make a model of a model and one or several adapters.

    examples:
      dougong merge runs/sft                            (RUN/adapter into its model, to RUN/model)
      dougong merge lora --base models/llama --out models/tuned
      dougong merge a b --weights 0.7 0.3 --out models/mixed
    """

    adapters: tyro.conf.Positional[tuple[Path, ...]]
    """folders of adapters, or run folders with one"""
    base: Annotated[str | None, hint("what the adapter names", "PATH")] = None
    """the model that the adapters belong to"""
    out: Annotated[Path | None, hint("RUN/model", "PATH")] = None
    """where the new model goes"""
    weights: tuple[float, ...] = ()
    """a factor for each adapter, of several that are summed; none: 1 each"""
    dtype: Annotated[str | None, hint("as stored", "float32|bfloat16|float16")] = None
    """type of the weights"""


def run(args: list[str]) -> int:
    options = parse(Merge, args, "merge")
    if not options.adapters:
        raise DougongError("name the folder of an adapter, or of a run that made one")
    if options.weights and len(options.weights) != len(options.adapters):
        raise DougongError(f"--weights has {len(options.weights)} numbers for {len(options.adapters)} adapters")
    folders = [_adapter(existing(path)) for path in options.adapters]
    out = options.out or (options.adapters[0] / "model" if folders[0] != options.adapters[0] else None)
    if out is None:
        raise DougongError("say with --out where the model goes")
    base = options.base or _base(folders[0])

    from dougong.hub import load, save
    from dougong.tokenizer import Tokenizer
    from dougong.tune import combine, load_adapter, merge

    lm = load(base, dtype=options.dtype)
    for number, folder in enumerate(folders):
        load_adapter(lm, folder, f"a{number}")
    if options.weights:
        combine(lm, {f"a{number}": weight for number, weight in enumerate(options.weights)}, "sum")
        merge(lm, ["sum"])
        from dougong.tune import detach

        for number in range(len(folders)):
            detach(lm, f"a{number}")
    else:
        merge(lm)
    if (folders[0] / "tokenizer.json").is_file():
        lm.tokenizer = Tokenizer.load(folders[0])
    save(lm, out)
    print(f"merged {', '.join(map(str, folders))} into {base}\nthe model is {out}")
    return 0


def _adapter(path: Path) -> Path:
    """The folder with adapter_config.json: this one, or `adapter/` in a run folder."""
    for place in (path, path / "adapter"):
        if (place / "adapter_config.json").is_file():
            return place
    raise DougongError(f"{path} has no adapter_config.json (nor adapter/adapter_config.json, as a run folder has)")


def _base(folder: Path) -> str:
    named = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if not named:
        raise DougongError(f"{folder / 'adapter_config.json'} does not name its model; give it with --base")
    return str(named)
