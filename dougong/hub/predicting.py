"""What a checkpoint's tensors say, and its config does not: whether it has layers for predicting further tokens (MTP),
and, in some families, whether it has a head of its own.

`num_nextn_predict_layers` is no help: files written by transformers keep the key and drop the layers. And of T5 it says
that all are tied, whether they are or not.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from dougong.base import DougongError
from dougong.hub.keymap import KeyMap
from dougong.model.spec import MTP, ModelSpec
from dougong.parts.attention import Attention
from dougong.parts.latent import LatentAttention


def with_found(spec: ModelSpec, keys: KeyMap, names: Container[str]) -> ModelSpec:
    """`spec` with as many such layers as a file with these names of tensors has, and with the head that it has."""
    if keys.may_tie and spec.head is not None and keys.tied[0] not in names:
        spec = replace(spec, head=replace(spec.head, tied=True))
    depth = 0
    while keys.predicting is not None and keys.predicting(depth) in names:
        depth += 1
    return replace(spec, mtp=replace(_usual(spec), depth=depth)) if depth else spec


def without(family: str, spec: ModelSpec) -> ModelSpec:
    """`spec` as a config.json has it. Raises DougongError for layers other than the family's files can hold."""
    if spec.mtp is not None and spec.mtp != replace(_usual(spec), depth=spec.mtp.depth):
        raise DougongError(f"{family} cannot express mtp.layer = {spec.mtp.layer!r}; expected one of the model's own")
    return replace(spec, mtp=None)


def _usual(spec: ModelSpec) -> MTP:
    """A layer like the model's last one with attention (hybrids predict with attention), and the last norm."""
    last = [layer for layer in spec.layers if isinstance(layer.mixer, (Attention, LatentAttention))][-1:]
    layer = (last or spec.layers[-1:])[0]
    return MTP(1, layer, spec.norm or layer.norm)
