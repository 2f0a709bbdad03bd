"""`dougong plan`: what a model costs before it is built."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from dougong.base import DougongError, record_to
from dougong.cli.folders import amount, count, describe, duration, size
from dougong.cli.options import Flag, hint, parse

if TYPE_CHECKING:
    from dougong.model import ModelSpec
    from dougong.plan import Plan as Bill


@dataclass(frozen=True)
class Shape:
    """A decoder given by its sizes, instead of a path (pre-RMSNorm, RoPE, SwiGLU)."""

    vocab: Annotated[int | None, hint("4096")] = None
    """tokens in the vocabulary"""
    width: Annotated[int | None, hint("256")] = None
    """of the residual path"""
    depth: Annotated[int | None, hint("4")] = None
    """layers"""
    heads: Annotated[int | None, hint("4")] = None
    """query heads"""
    kv_heads: Annotated[int | None, hint("as many as heads")] = None
    """key-value heads"""
    ffn: Annotated[int | None, hint("8/3 of the width")] = None
    """width of the feed-forward"""
    context: Annotated[int | None, hint("1024")] = None
    """longest text, in tokens"""
    tied: Annotated[bool | None, hint("yes")] = None
    """one matrix for embedding and head"""

    def spec(self) -> ModelSpec:
        from dougong.model import decoder_spec

        usual = {"vocab": 4096, "width": 256, "depth": 4, "heads": 4, "context": 1024, "tied": True}
        return decoder_spec(**{**usual, **self.given()})

    def given(self) -> dict[str, Any]:
        """The sizes that were asked for."""
        asked = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        for name, value in asked.items():
            if value is not True and value is not False and value < 1:
                raise DougongError(f"--{name.replace('_', '-')} is {value}; expected at least 1")
        return asked


@dataclass(frozen=True)
class Plan:
    """Parameters, operations, memory, and with --device time, energy and carbon of a model before it is built.

    examples:
      dougong plan --width 512 --depth 8 --heads 8 --vocab 8192 --batch 16 --tokens 512
      dougong plan path/to/config.json --device h100 --devices 8 --train-tokens 2e12
      dougong plan runs/demo --json
    """

    path: Annotated[Path | None, tyro.conf.Positional, hint("the sizes below", "PATH")] = None
    """a model folder, a run folder, a config.json, or a llama2.c checkpoint"""
    shape: Annotated[Shape, tyro.conf.OmitArgPrefixes] = field(default_factory=Shape)
    batch: int = 8
    """sequences in a training step"""
    tokens: Annotated[int | None, hint("the model's context")] = None
    """tokens in a training sequence"""
    optimizer: Literal["adamw", "muon", "sgd"] = "adamw"
    """of the training step"""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """that training computes in"""
    accumulate: int = 1
    """micro-batches in an update"""
    serving_batch: int = 1
    """sequences served at once"""
    serving_context: Annotated[int | None, hint("the model's context")] = None
    """tokens in each of them"""
    serving_dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """of weights and state while serving"""
    device: Annotated[str | None, hint("no estimate of time", "NAME")] = None
    """what to train on, such as h100 or rtx4090"""
    devices: int = 1
    """how many of them"""
    train_tokens: Annotated[float | None, hint("20 a parameter")] = None
    """tokens of the whole run"""
    utilisation: float = 0.4
    """share of the peak that becomes useful work"""
    watts: Annotated[float | None, hint("the device's limit")] = None
    """drawn by one device"""
    pue: float = 1.59
    """what the data centre draws for each watt of its computers"""
    region: str = "world"
    """whose electricity: world, us, china"""
    price_per_device_hour: Annotated[float | None, hint("no cost")] = None
    """in any currency"""
    json: Flag = False
    """print one JSON object"""


def run(args: list[str]) -> int:
    options = parse(Plan, args, "plan")
    from dougong.plan import plan

    spec = _spec(options)
    same = {field.name for field in dataclasses.fields(Plan)} - {"path", "shape", "json"}
    bill = plan(spec, **{name: getattr(options, name) for name in same})
    if options.json:
        print(json.dumps({**record_to(bill), "embedding_share": bill.embedding_share}))
        return 0
    _print(spec, bill, options)
    return 0


def _spec(options: Plan) -> ModelSpec:
    given = options.shape.given()
    if options.path is None:
        return options.shape.spec()
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise DougongError(f"{options.path} says what the model is; leave out {flags}, or leave out the path")
    return describe(options.path).spec


def _print(spec: ModelSpec, bill: Bill, options: Plan) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in _rows(spec, bill, options):
        if row is None:
            table.add_section()
        else:
            table.add_row(*row)
    # A pipe has no width: lines are then as long as they are.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=160)
    console.print(table)


def _rows(spec: ModelSpec, bill: Bill, options: Plan) -> list[tuple[str, str, str] | None]:
    length = options.tokens or spec.context
    training, serving = bill.training, bill.serving
    rows: list[tuple[str, str, str] | None] = [
        ("parameters", count(bill.parameters), f"{bill.parameters:,}"),
        ("  in embedding and head", f"{bill.embedding_share:.1%}", count(bill.embedding_parameters)),
        ("forward", f"{count(bill.forward_flops_per_token)}FLOP", f"a token, in texts of {length:,}"),
        ("training", f"{count(bill.training_flops_per_token)}FLOP", "a token, forward and backward"),
        None,
        ("memory of training", size(training.peak_bytes), f"{options.batch} x {length:,} tokens, {options.optimizer}"),
        ("  weights", size(training.weights_bytes), ""),
        ("  gradients", size(training.gradients_bytes), ""),
        ("  optimizer", size(training.optimizer_bytes), ""),
        ("  activations", size(training.activations_bytes), ""),
        ("  loss and passing", size(training.workspace_bytes), "not all of it at the peak"),
        None,
        ("memory of serving", size(serving.total_bytes), f"{options.serving_batch} sequences, {options.serving_dtype}"),
        ("  weights", size(serving.weights_bytes), ""),
        ("  state", size(serving.state_bytes), f"{size(serving.state_bytes_per_token)} a token"),
    ]
    if bill.run is not None:
        done = bill.run
        rows += [
            None,
            ("time", duration(done.seconds), f"{done.devices} x {options.device}, {count(done.tokens)} tokens"),
            ("speed", f"{count(done.tokens_per_second)} tokens/s", f"at {options.utilisation:.0%} of the peak"),
            ("energy", f"{amount(done.footprint.energy_kwh)} kWh", f"PUE {options.pue}"),
            ("carbon", f"{amount(done.footprint.carbon_kg_co2e)} kg CO2e", f"electricity: {options.region}"),
        ]
        if done.cost is not None:
            rows.append(("cost", f"{done.cost:,.2f}", f"at {options.price_per_device_hour} a device and hour"))
    return rows
