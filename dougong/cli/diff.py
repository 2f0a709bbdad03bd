"""`dougong diff`: the first block where two models part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dougong.base import DougongError
from dougong.cli.folders import count
from dougong.cli.options import Device, Dtype, Flag, hint, open_model, parse

if TYPE_CHECKING:
    from torch import Tensor

    from dougong.evals.diff import Row, WeightRow
    from dougong.hub import LanguageModel

SHOWN = 10  # differences of specs and of weights that the terminal shows
LENGTH = 32  # tokens of the default text


@dataclass(frozen=True)
class Diff:
    """Run the same tokens through two models and show where they part: embedding, each layer's mixer and feed-forward,
    final norm, logits, the head of a task; then the specs' and the weights' differences. Exit status 0: the same; 1:
    they part.

    examples:
      dougong diff path/to/original runs/converted
      dougong diff model-a model-b --text "Once upon a time" --tolerance 0.01
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """a model folder, a run folder, a llama2.c .bin file, or a hub id"""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """the model to compare it with"""
    tolerance: Annotated[float | None, hint("1e-4; of float16 0.01, of bfloat16 0.1")] = None
    """largest difference that counts as the same, relative to the largest activation of the part"""
    text: Annotated[str | None, hint("random tokens")] = None
    """the text that both read, in the tokens of A's tokenizer"""
    tokens: Annotated[tuple[int, ...], hint(f"{LENGTH} random ones, always the same")] = ()
    """the token ids that both read"""
    dtype: Dtype = None
    """of both models' weights"""
    device: Device = None
    """where to run"""
    json: Flag = False
    """print one JSON object"""


def run(args: list[str]) -> int:
    options = parse(Diff, args, "diff")
    if options.text is not None and options.tokens:
        raise DougongError("give --text or --tokens, not both")
    from dougong.evals.diff import compare, compare_specs, compare_weights, first_apart

    a, b = (open_model(path, options.dtype, options.device) for path in (options.a, options.b))
    tolerance = options.tolerance if options.tolerance is not None else _tolerance(a, b)
    rows = compare(a, b, _tokens(options, a, b))
    apart, notes = first_apart(rows, tolerance), _notes(a, b)
    found = {
        "a": _facts(options.a, a),
        "b": _facts(options.b, b),
        "tolerance": tolerance,
        "same": apart is None and not notes,
        "notes": notes,
        "first_apart": apart.part if apart else None,
        "rows": rows,
        "spec": compare_specs(a.spec, b.spec),
        "weights": compare_weights(a.model, b.model),
    }
    if options.json:
        print(json.dumps(found, ensure_ascii=False, default=asdict))
    else:
        _print(found)
    return 0 if found["same"] else 1


def _tolerance(a: LanguageModel, b: LanguageModel) -> float:
    """Rounding in the coarser type of weights, with room for the layers through which it grows."""
    import torch

    kinds = {parameter.dtype for lm in (a, b) for parameter in lm.model.parameters()}
    return 0.1 if torch.bfloat16 in kinds else 0.01 if torch.float16 in kinds else 1e-4


def _tokens(options: Diff, a: LanguageModel, b: LanguageModel) -> Tensor:
    import torch

    if options.text is not None:
        if a.tokenizer is None:
            raise DougongError(f"{options.a} has no tokenizer to read --text with; give --tokens")
        ids = list(a.tokenizer.encode(options.text))
        if not ids:
            raise DougongError("--text has no tokens; give a longer one")
        return torch.tensor([ids])
    if options.tokens:
        if min(options.tokens) < 0:
            raise DougongError(f"token {min(options.tokens)} is outside the vocabulary; ids start at 0")
        return torch.tensor([options.tokens])
    vocab, length = min(a.spec.vocab, b.spec.vocab), min(LENGTH, a.spec.context, b.spec.context)
    return torch.randint(vocab, (1, length), generator=torch.Generator().manual_seed(0))


def _notes(a: LanguageModel, b: LanguageModel) -> list[str]:
    """What keeps the models from lining up to the end."""
    notes = []
    if a.spec.vocab != b.spec.vocab:
        notes.append(f"vocabularies of {a.spec.vocab:,} and {b.spec.vocab:,}: only the tokens of both are compared")
    shapes = [("layers", a.spec, b.spec)]
    if a.spec.encoder and b.spec.encoder:
        shapes.append(("encoder layers", a.spec.encoder, b.spec.encoder))
    elif a.spec.encoder or b.spec.encoder:
        notes.append(f"only {'A' if a.spec.encoder else 'B'} has an encoder")
    for what, x, y in shapes:
        if len(x.layers) != len(y.layers):
            both = min(len(x.layers), len(y.layers))
            notes.append(f"{len(x.layers)} and {len(y.layers)} {what}: the first {both} are compared")
    if (a.spec.head is None) != (b.spec.head is None):
        notes.append(f"only {'A' if a.spec.head else 'B'} has a head: no logits are compared")
    return notes


def _facts(path: str, lm: LanguageModel) -> dict[str, Any]:
    kinds = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in lm.model.parameters()})
    return {"path": path, "family": lm.family, "parameters": lm.spec.parameters(), "dtype": ", ".join(kinds)}


def _print(found: dict[str, Any]) -> None:
    for name in "ab":
        model = found[name]
        print(f"{name.upper()}  {model['path']}: {model['family']}, {count(model['parameters'])} parameters, ", end="")
        print(model["dtype"])
    for note in found["notes"]:
        print(f"!  {note}")
    rows: list[Row] = found["rows"]
    width = max(len(row.part) for row in rows)
    print(f"\n  {'part':<{width}}  difference  cosine")
    for row in rows:
        mark = ">" if row.part == found["first_apart"] else " "
        print(f"{mark} {row.part:<{width}}  {row.difference:<10.3g}  {row.cosine:.6f}")
    if found["first_apart"]:
        print(f"\nthey part at {found['first_apart']} (tolerance {found['tolerance']:g})")
    else:
        what = "the same" if found["same"] else "the same as far as they line up"
        print(f"\n{what}, within {found['tolerance']:g}")
    _print_specs(found["spec"])
    _print_weights(found["weights"], found["first_apart"] or "")


def _print_specs(changes: list[tuple[str, Any, Any]]) -> None:
    if not changes:
        return
    print(f"\nspecs differ in {_places(len(changes))}")
    for path, a, b in changes[:SHOWN]:
        print(f"  {path}: {json.dumps(a, ensure_ascii=False)} in A, {json.dumps(b, ensure_ascii=False)} in B")
    _rest(len(changes))


def _print_weights(rows: list[WeightRow], part: str) -> None:
    """The weights that differ: those of the block where the models part first, then the largest differences."""
    differ = [row for row in rows if row.difference != 0]
    if not differ:
        print("\nall weights are equal")
        return
    # layers.3.mixer: its norms stand beside it, in layers.3.
    block = ".".join(part.split(".")[: 3 if part.startswith("encoder.") else 2])
    near = [row for row in differ if part and row.name.startswith(f"{block}.")]
    far = [row for row in differ if row not in near]
    ordered = [row for group in (near, far) for row in sorted(group, key=_largest_first)]
    print(f"\n{len(differ)} of {len(rows)} weights differ")
    for row in ordered[:SHOWN]:
        print(f"  {row.name:<36}  {row.told if row.difference is None else format(row.difference, '.3g')}")
    _rest(len(ordered))


def _largest_first(row: WeightRow) -> float:
    return float("-inf") if row.difference is None else -row.difference


def _places(number: int) -> str:
    return "1 place" if number == 1 else f"{number} places"


def _rest(number: int) -> None:
    if number > SHOWN:
        print(f"  and {number - SHOWN} more (--json has all)")
