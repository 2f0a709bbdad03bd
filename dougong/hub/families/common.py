"""What several families share: names of activations, and the check of exactness."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dougong.base import DougongError
from dougong.hub.families.reader import Reader
from dougong.model.difference import compare_specs
from dougong.model.spec import LayerSpec, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.feedforward import Activation

T = TypeVar("T")

# Those that are called the same everywhere.
PLAIN: tuple[Activation, ...] = ("quick_gelu", "relu6", "leaky_relu", "hardswish", "mish", "sigmoid", "tanh")
ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    # Five programs wrote the same tanh approximation in five ways.
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    **{name: name for name in PLAIN},
}


def read_activation(config: Reader, key: str, default: str) -> Activation:
    name = config.raw(key) or default
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise DougongError(f"config.json of {config.family}: {key} is {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def write_activation(activation: Activation, tanh: str = "gelu_pytorch_tanh") -> str:
    """The name in config.json; `tanh` is the family's usual name for the tanh approximation of GELU."""
    return tanh if activation == "gelu_tanh" else activation


def attention_of(family: str, spec: ModelSpec) -> Attention:
    """The first layer's mixer. Raises DougongError where that is not attention."""
    return expect(family, "mixer", first_layer(family, spec).mixer, Attention)


def first_layer(family: str, spec: ModelSpec) -> LayerSpec:
    if not spec.layers:
        raise DougongError(f"{family} cannot express a model without layers")
    return spec.layers[0]


def expect(family: str, slot: str, part: object, kind: type[T]) -> T:
    if not isinstance(part, kind):
        raise DougongError(f"{family} cannot express a {slot} of {type(part).__name__}; it has {kind.__name__}")
    return part


def exact(
    family: str,
    architecture: str,
    spec: ModelSpec,
    config: dict[str, Any],
    from_config: Callable[[Mapping[str, Any]], ModelSpec],
) -> dict[str, Any]:
    """`config` with its names, if reading it gives `spec` again.

    Raises DougongError that names the first part of the spec which the family has no keys for.
    """
    config = {"architectures": [architecture], "model_type": family, **config}
    for path, wanted, got in compare_specs(spec, from_config(config)):
        raise DougongError(f"{family} cannot express {path} = {wanted!r}; it would be read as {got!r}")
    return config
